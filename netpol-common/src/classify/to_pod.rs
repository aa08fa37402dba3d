//! Packets that a pod is about to receive: are they for it, and does ingress policy allow them?

use super::{AllTables, Decision, Frame, Stage, Subject, Tables};
use crate::abi::{Direction, EndpointFlags, Reason, Sender};
use crate::packet::{
    Address, Ethernet, Header, Icmp, PacketBytes, Part, Scratch, Workspace, ether_type, protocol, settle_all,
};

/// Judges a frame at TC egress of a pod's host veth.
#[inline(always)]
pub fn to_pod<P: PacketBytes + ?Sized, T: AllTables>(
    packet: &P,
    frame: &Frame,
    subject: &Subject<'_>,
    tables: &T,
    workspace: &mut Workspace,
) -> Decision {
    let stage = Stage { packet, frame, subject, tables };
    let ethernet = match Ethernet::parse(packet) {
        Ok(ethernet) => ethernet,
        Err(reason) => return stage.refuse(reason, 0, Direction::Ingress),
    };
    if subject.endpoint.is_absent() {
        return stage.refuse(Reason::EndpointPending, ethernet.ether_type, Direction::Ingress);
    }
    if subject.endpoint.has(EndpointFlags::PASS_THROUGH) {
        return stage.accept(Reason::PassThrough, Direction::Ingress);
    }
    let for_pod = stage.is_pending() || ethernet.destination == subject.endpoint.mac;
    if !for_pod && !ethernet.destination.is_group() {
        return stage.accept(Reason::NotForThisPod, Direction::Ingress);
    }
    match ethernet.ether_type {
        ether_type::IPV4 => {
            workspace.v4.header.renew().for_pod = for_pod;
            let result = stage.ip_to_pod(&mut workspace.v4);
            stage.conclude(result, &mut workspace.v4.header, Direction::Ingress)
        }
        ether_type::IPV6 => {
            workspace.v6.header.renew().for_pod = for_pod;
            let result = stage.ip_to_pod(&mut workspace.v6);
            stage.conclude(result, &mut workspace.v6.header, Direction::Ingress)
        }
        ether_type::ARP => stage.accept(Reason::Neighbour, Direction::Ingress),
        other if stage.is_pending() || subject.policy.is_isolated(Direction::Ingress) => {
            stage.refuse(Reason::UnsupportedEtherType, other, Direction::Ingress)
        }
        _ => stage.accept(Reason::NotIsolated, Direction::Ingress),
    }
}

impl<P: PacketBytes + ?Sized, T: AllTables> Stage<'_, P, T> {
    #[inline(always)]
    fn ip_to_pod<A: Address>(&self, scratch: &mut Scratch<A>) -> Result<Reason, Reason>
    where
        T: Tables<A>,
    {
        let header = &mut scratch.header;
        A::parse(self.packet, header)?;
        header.from_own_node = self.is_from_own_node(&header.source);
        header.from_node_stack = self.is_from_node_stack();
        // Masqueraded as the node, or not at all: a mark alone would let in whatever somebody else marks so.
        header.to_self = self.marked_sender() == Sender::Deferred(self.subject.endpoint.slot)
            && (self.is_own_node(&header.source) || A::of_endpoint(self.subject.endpoint) == Some(header.source));
        let scratch = settle_all(scratch);
        let header = &mut scratch.header;
        if is_neighbour(header) {
            return Ok(Reason::Neighbour);
        }
        if self.is_pending() {
            return Err(Reason::EndpointPending);
        }
        let endpoint = self.subject.endpoint;
        let is_own =
            A::of_endpoint(endpoint) == Some(header.destination) || header.destination.is_link_local_of(endpoint.mac);
        if !is_own && !header.destination.is_group() && !self.any_source() {
            // In a frame for the pod this may be a secondary address that someone relies on: it is told. In a flooded
            // frame it is somebody else's.
            let reason = if header.for_pod { Reason::UnknownDestination } else { Reason::NotForThisPod };
            return Err(reason);
        }
        self.judge_sender(scratch)?;
        if self.is_related_error(scratch, Direction::Ingress)? {
            return Ok(Reason::RelatedIcmp);
        }
        Ok(self.decide(scratch, Direction::Ingress).0)
    }
}

/// Neighbour discovery and MLD, which no pod of this node can have forged ([`super::from_pod`] saw to it) and no router
/// forwards (hop limit 255; or 1, which a sender further away can arrange for, but not for a group of the link).
#[inline(always)]
fn is_neighbour<A: Address>(header: &Header<A>) -> bool {
    if A::ICMP != protocol::ICMPV6 || header.protocol != protocol::ICMPV6 || header.part != Part::Whole {
        return false;
    }
    match A::icmp(header.icmp_type) {
        Icmp::Neighbour | Icmp::Router => header.hop_limit == 255,
        Icmp::Listener => header.hop_limit == 1 && header.destination.is_group(),
        Icmp::EchoRequest | Icmp::EchoReply | Icmp::Error | Icmp::Other => false,
    }
}
