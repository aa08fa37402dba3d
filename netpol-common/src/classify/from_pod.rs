//! Packets that a pod sends: is it really this pod, may any pod send that, and does egress policy allow it?

use super::{AllTables, Decision, Frame, Report, Shared, Stage, Subject, Tables};
use crate::abi::{AddressRole, Config, Direction, EndpointFlags, Mac, Reason, V4, V6};
use crate::packet::{
    Address, Ethernet, Header, Icmp, L2_LEN, PacketBytes, Part, Scratch, Workspace, ether_type, protocol, settle_all,
};

/// Judges a frame at TC ingress of a pod's host veth.
#[inline(always)]
pub fn from_pod<P: PacketBytes + ?Sized, T: AllTables>(
    packet: &P,
    frame: &Frame,
    subject: &Subject<'_>,
    tables: &T,
    workspace: &mut Workspace,
) -> Decision {
    let stage = Stage { packet, frame, subject, tables };
    let ethernet = match Ethernet::parse(packet) {
        Ok(ethernet) => ethernet,
        Err(reason) => return stage.refuse_unparsed(reason, 0),
    };
    match stage.check_link(&ethernet) {
        Ok(None) => {}
        Ok(Some(reason)) => return stage.accept(reason, Direction::Egress),
        Err(reason) => return stage.refuse_unparsed(reason, ethernet.ether_type),
    }
    match ethernet.ether_type {
        ether_type::IPV4 => {
            let result = stage.ip_from_pod(&ethernet, &mut workspace.v4);
            stage.conclude(result, &mut workspace.v4.header, Direction::Egress)
        }
        ether_type::IPV6 => {
            let result = stage.ip_from_pod(&ethernet, &mut workspace.v6);
            stage.conclude(result, &mut workspace.v6.header, Direction::Egress)
        }
        ether_type::ARP => match stage.arp_from_pod(&ethernet) {
            Ok(reason) => stage.accept(reason, Direction::Egress),
            Err(reason) => stage.refuse_unparsed(reason, ether_type::ARP),
        },
        other if stage.is_pending() || subject.policy.is_isolated(Direction::Egress) => {
            stage.refuse_unparsed(Reason::UnsupportedEtherType, other)
        }
        _ => stage.accept(Reason::NotIsolated, Direction::Egress),
    }
}

impl<P: PacketBytes + ?Sized, T: AllTables> Stage<'_, P, T> {
    #[inline(always)]
    pub(super) fn is_pending(&self) -> bool {
        self.subject.endpoint.has(EndpointFlags::PENDING)
    }

    /// What concerns the frame and not its payload. `Some` ends the judging with a pass.
    #[inline(always)]
    fn check_link(&self, ethernet: &Ethernet) -> Result<Option<Reason>, Reason> {
        if self.subject.endpoint.is_absent() {
            return Err(Reason::EndpointPending);
        }
        if self.subject.endpoint.has(EndpointFlags::PASS_THROUGH) {
            return Ok(Some(Reason::PassThrough));
        }
        if self.frame.vlan_tagged || ether_type::VLAN.contains(&ethernet.ether_type) {
            return Err(Reason::VlanTagged);
        }
        let any = self.is_pending() || self.any_source();
        if !any && ethernet.source != self.subject.endpoint.mac {
            return Err(Reason::SpoofedMac);
        }
        Ok(None)
    }

    #[inline(always)]
    fn ip_from_pod<A: Address>(&self, ethernet: &Ethernet, scratch: &mut Scratch<A>) -> Result<Reason, Reason>
    where
        T: Tables<A>,
    {
        A::parse(self.packet, scratch.header.renew())?;
        let scratch = settle_all(scratch);
        let header = &mut scratch.header;
        let endpoint = self.subject.endpoint;
        let any_source = self.any_source();
        let own = A::of_endpoint(endpoint);
        let is_own = own == Some(header.source) || header.source.is_link_local_of(endpoint.mac);
        if let Some(reason) = self.neighbour_from_pod(header, is_own, own)? {
            return Ok(reason);
        }
        if self.is_pending() {
            return Err(Reason::EndpointPending);
        }
        if !any_source {
            self.check_sender(ethernet, header, is_own)?;
        }
        if self.is_related_error(scratch, Direction::Egress)? {
            return Ok(Reason::RelatedIcmp);
        }
        Ok(self.decide(scratch, Direction::Egress).0)
    }

    /// What every pod must keep to, policed or not.
    #[inline(always)]
    fn check_sender<A: Address>(&self, ethernet: &Ethernet, header: &Header<A>, is_own: bool) -> Result<(), Reason>
    where
        T: Tables<A>,
    {
        if !is_own {
            return Err(Reason::SpoofedAddress);
        }
        if ethernet.destination.is_group() && !header.destination.is_group() {
            return Err(Reason::UnicastInMulticastFrame);
        }
        if header.source_routed {
            return Err(Reason::SourceRouted);
        }
        let is_icmp = header.protocol == A::ICMP && !matches!(header.part, Part::Later(_));
        if is_icmp && A::icmp(header.icmp_type) == Icmp::Router {
            return Err(Reason::RouterMessage);
        }
        if self.is_tunnel_to_node(header) { Err(Reason::TunnelFromPod) } else { Ok(()) }
    }

    /// Discovery that must work before and beside any policy: neighbour discovery, MLD, DHCP. `Some` is a pass.
    #[inline(always)]
    fn neighbour_from_pod<A: Address>(
        &self,
        header: &Header<A>,
        is_own: bool,
        own: Option<A>,
    ) -> Result<Option<Reason>, Reason>
    where
        T: Tables<A>,
    {
        let unchecked = self.is_pending() || self.any_source();
        let known_source = is_own || header.source.is_unspecified() || unchecked;
        if header.part != Part::Whole || !known_source {
            return Ok(None);
        }
        if header.protocol == protocol::UDP {
            // RFC 2131 §4.1; IPv6 asks from its link-local address.
            let is_dhcp = header.source.is_unspecified()
                && header.destination.is_broadcast()
                && header.source_port == 68
                && header.destination_port == 67;
            return Ok(is_dhcp.then_some(Reason::Neighbour));
        }
        if A::ICMP != protocol::ICMPV6 || header.protocol != protocol::ICMPV6 {
            return Ok(None);
        }
        match (A::icmp(header.icmp_type), header.hop_limit) {
            (Icmp::Listener, 1) if header.destination.is_group() => Ok(Some(Reason::Neighbour)),
            (Icmp::Neighbour, 255) => {
                const ADVERTISEMENT: u8 = 136;
                if header.icmp_type == ADVERTISEMENT && !unchecked {
                    self.check_advertised_target(header, own)?;
                }
                Ok(Some(Reason::Neighbour))
            }
            _ => Ok(None),
        }
    }

    /// A neighbour advertisement may only speak of the pod's own address (RFC 4861 §4.4: the target is behind the
    /// first eight bytes).
    #[inline(always)]
    fn check_advertised_target<A: Address>(&self, header: &Header<A>, own: Option<A>) -> Result<(), Reason> {
        let target = self.packet.load::<[u32; 4]>(usize::from(header.l4) + 8).ok_or(Reason::Truncated)?;
        let is_own = own.is_some_and(|own| own.widen() == target);
        if is_own || V6(target).is_link_local_of(self.subject.endpoint.mac) {
            Ok(())
        } else {
            Err(Reason::SpoofedNeighbour)
        }
    }

    /// ARP with the pod's own sender, and probes from 0.0.0.0 (RFC 5227).
    #[inline(always)]
    fn arp_from_pod(&self, ethernet: &Ethernet) -> Result<Reason, Reason> {
        // htype, ptype | hlen plen, op | sender MAC (6), sender address (4) | target MAC (6), target address (4).
        let sender = self.packet.load::<[u16; 5]>(L2_LEN + 8).ok_or(Reason::Truncated)?;
        let lengths = self.packet.load::<u16>(L2_LEN + 4).ok_or(Reason::Truncated)?;
        let _: [u16; 5] = self.packet.load(L2_LEN + 18).ok_or(Reason::Truncated)?;
        if u16::from_be(lengths) != 0x0604 {
            return Err(Reason::Malformed);
        }
        if self.is_pending() || self.any_source() {
            return Ok(Reason::Neighbour);
        }
        let [a, b, c, high, low] = sender;
        let sender_mac = Mac([a, b, c]);
        let [h0, h1] = high.to_ne_bytes();
        let [l0, l1] = low.to_ne_bytes();
        let address = V4::from_octets([h0, h1, l0, l1]);
        let is_own = address.is_unspecified() || V4::of_endpoint(self.subject.endpoint) == Some(address);
        if is_own && sender_mac == ethernet.source { Ok(Reason::Neighbour) } else { Err(Reason::SpoofedNeighbour) }
    }

    /// A drop before there is a header to tell of.
    #[inline(always)]
    pub(super) fn refuse_unparsed(&self, reason: Reason, ether_type: u16) -> Decision {
        self.refuse(reason, ether_type, Direction::Egress)
    }

    /// A drop before there is a header to tell of, in either direction.
    #[inline(always)]
    pub(super) fn refuse(&self, reason: Reason, ether_type: u16, direction: Direction) -> Decision {
        if !reason.is_quiet() {
            self.tables.report(&Report {
                header: None::<&Header<V4>>,
                ether_type,
                direction,
                reason,
                slot: self.subject.endpoint.slot,
                revision: self.subject.policy.revision(),
            });
        }
        self.accept(reason, direction)
    }

    /// A decision of which nothing is told.
    #[inline(always)]
    pub(super) fn accept(&self, reason: Reason, direction: Direction) -> Decision {
        Decision { reason, direction, slot: self.subject.endpoint.slot }
    }
}

impl<P: ?Sized, T: Shared> Stage<'_, P, T> {
    /// True if this pod may use any source address.
    #[inline(always)]
    pub(super) fn any_source(&self) -> bool {
        self.subject.endpoint.has(EndpointFlags::ANY_SOURCE) || self.flag(Config::ANY_SOURCE)
    }

    /// True for what a node would take apart.
    #[inline(always)]
    pub(super) fn is_tunnel_to_node<A: Address>(&self, header: &Header<A>) -> bool
    where
        T: Tables<A>,
    {
        is_tunnel(header) && self.tables.address_role(&header.destination) & (AddressRole::OWN | AddressRole::NODE) != 0
    }
}

/// True for what a node would take apart as a tunnel's (VXLAN, Flannel's UDP, IP in IP, GRE): the packet inside would
/// come from whoever the pod likes.
#[inline(always)]
fn is_tunnel<A: Address>(header: &Header<A>) -> bool {
    match header.protocol {
        // VXLAN as the kernel had it first and as IANA has it, Flannel's udp backend.
        protocol::UDP => matches!(header.destination_port, 8472 | 4789 | 8285),
        protocol::IPV4 | protocol::IPV6 | protocol::GRE => true,
        _ => false,
    }
}
