//! One scene: the pod sends and gets packets, policy changes, time passes. Every packet has its expected reason.
//!
//! In: operations of a [`super::Case`]. Out: an error at the first packet that was judged otherwise, or, with a kernel, that
//! the programs and the host do not treat alike. Start at [`Play::sends`] and [`Play::gets`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netpol_common::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Config, Direction, Endpoint, EndpointFlags, Flow, Hook, Mark,
    PolicyWord, Reason, Sender,
};
use netpol_common::classify::Frame;
use netpol_common::flow;
use netpol_common::host::{HostReport, HostTables};

use super::cast::{self, BRIDGE_MAC, Cast, Family, Isolation};
use super::kernel::flows::{FlowTables, Place};
use super::kernel::{Kernel, Observed};
use crate::frame::datagram::{Datagram, Transport};

/// First revision of a scene.
const FIRST_REVISION: u32 = 10;
/// What a node marks packets with for itself; not the bits that are the slot's.
pub const FOREIGN_MARK: u32 = 0x0000_4321;

/// A scene in progress.
pub struct Play<'a> {
    /// Who takes part.
    pub cast: Cast,
    /// The endpoint whose hooks packets meet; change it at will.
    pub endpoint: Endpoint,
    /// What its slot is subject to; change it at will.
    pub policy: PolicyWord,
    /// What is known of the next frames beside their bytes.
    pub frame: Frame,
    /// The tables of the host. Change what policy allows through [`Play::allow`].
    pub host: HostTables,
    /// Reasons that packets had so far.
    pub reasons: BTreeSet<Reason>,
    /// Drops that were reported, the last at the end.
    pub reports: Vec<HostReport>,
    /// Whom the last packet was counted for besides: the sender of a deferred one, and why.
    pub counted: Vec<(u16, Reason)>,
    isolation: Isolation,
    kernel: Option<&'a mut Kernel>,
}

impl<'a> Play<'a> {
    /// A pod that nothing isolates, in the tables of [`Cast::tables`].
    ///
    /// # Errors
    /// The kernel refuses a map operation.
    pub fn new(family: Family, config: Config, mut kernel: Option<&'a mut Kernel>) -> Result<Self> {
        let cast = Cast::of(family);
        let mut host = cast.tables(config);
        if let Some(kernel) = &mut kernel {
            host.config = kernel.config();
            kernel.reset(&host)?;
        }
        Ok(Self {
            cast,
            endpoint: cast::endpoint(),
            policy: Isolation::Free.word(FIRST_REVISION),
            frame: Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false },
            host,
            reasons: BTreeSet::new(),
            reports: Vec::new(),
            counted: Vec::new(),
            isolation: Isolation::Free,
            kernel,
        })
    }

    /// The family that is played in.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.cast.family.is_v4()
    }

    /// Isolates the pod, under a new revision.
    pub fn isolate(&mut self, isolation: Isolation) {
        self.isolation = isolation;
        self.revise();
    }

    /// Moves the revision: flows must be judged again.
    pub fn revise(&mut self) {
        self.policy = self.isolation.word(self.policy.revision() + 1);
    }

    /// Sets or clears bits of the endpoint's flags.
    pub const fn flag(&mut self, flag: u16, on: bool) {
        self.endpoint.flags = if on { self.endpoint.flags | flag } else { self.endpoint.flags & !flag };
    }

    /// From here on packets come from the node's own stack, without a mark.
    pub const fn from_node_stack(&mut self) {
        self.frame.from_host_stack = true;
    }

    /// Says what a policy allows the client from now on, without a new revision.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn allow(&mut self, policy: u16, value: Option<AllowValue>) -> Result<()> {
        let key = AllowKey::new(policy, cast::CLIENT_IDENTITY);
        match value {
            Some(value) => _ = self.host.allow.insert(key, value),
            None => _ = self.host.allow.remove(&key),
        }
        match &mut self.kernel {
            Some(kernel) => kernel.set_allow(key, value),
            None => Ok(()),
        }
    }

    /// Says what an address is to the node.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_role(&mut self, address: IpAddr, role: u32) -> Result<()> {
        self.host.set_role(address, role);
        self.take_over()
    }

    /// Gives an address an identity that policies know.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_identity(&mut self, address: IpAddr, identity: u32) -> Result<()> {
        self.host.set_identity(address, identity);
        self.take_over()
    }

    /// Says that services translate a port of the node.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_node_port(&mut self, protocol: u8, port: u16) -> Result<()> {
        self.host.node_ports.insert((protocol, port));
        self.take_over()
    }

    /// The kernel takes over the host's tables; its flows are forgotten.
    fn take_over(&mut self) -> Result<()> {
        match &mut self.kernel {
            Some(kernel) => kernel.reset(&self.host),
            None => Ok(()),
        }
    }

    /// The policy of `direction` no longer allows the client anything.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn forbid_client(&mut self, direction: Direction) -> Result<()> {
        self.allow(policy_of(direction), None)?;
        self.revise();
        Ok(())
    }

    /// The policy of `direction` allows the client again.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn permit_client(&mut self, direction: Direction) -> Result<()> {
        self.allow(policy_of(direction), Some(cast::client_may()))?;
        self.revise();
        Ok(())
    }

    /// Lets time pass: flows and fragments are so much older. (Made older, as nobody moves the kernel's clock.)
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn seconds_pass(&mut self, seconds: u32) -> Result<()> {
        let jiffies = seconds * self.host.config.hz;
        FlowTables::age_host(&self.host, jiffies);
        match &mut self.kernel {
            Some(kernel) => kernel.age(jiffies),
            None => Ok(()),
        }
    }

    /// The pod sends this packet, over the bridge.
    ///
    /// # Errors
    /// It is judged otherwise, or not alike.
    pub fn sends(&mut self, datagram: &Datagram, expected: Reason) -> Result<()> {
        let destination = mac_towards(datagram.destination).unwrap_or(BRIDGE_MAC);
        self.sends_between(self.endpoint.mac.octets(), destination, datagram, expected)
    }

    /// The pod sends this packet between these link addresses.
    ///
    /// # Errors
    /// It is judged otherwise, or not alike.
    pub fn sends_between(
        &mut self,
        source: [u8; 6],
        destination: [u8; 6],
        datagram: &Datagram,
        expected: Reason,
    ) -> Result<()> {
        let frame = datagram.frame(source, destination).context("no such packet")?;
        self.passes(Hook::FromPod, &frame, expected).with_context(|| format!("the pod sends {datagram:x?}"))
    }

    /// The pod is about to get this packet, over the bridge.
    ///
    /// # Errors
    /// It is judged otherwise, or not alike.
    pub fn gets(&mut self, datagram: &Datagram, expected: Reason) -> Result<()> {
        let destination = mac_towards(datagram.destination).unwrap_or(self.endpoint.mac.octets());
        self.gets_at(destination, datagram, expected)
    }

    /// The pod is about to get this packet, in a frame to this link address.
    ///
    /// # Errors
    /// It is judged otherwise, or not alike.
    pub fn gets_at(&mut self, destination: [u8; 6], datagram: &Datagram, expected: Reason) -> Result<()> {
        let frame = datagram.frame(BRIDGE_MAC, destination).context("no such packet")?;
        self.passes(Hook::ToPod, &frame, expected).with_context(|| format!("the pod gets {datagram:x?}"))
    }

    /// The frame meets the hook, with this reason.
    ///
    /// # Errors
    /// It is judged otherwise, or not alike.
    pub fn passes(&mut self, hook: Hook, frame: &[u8], expected: Reason) -> Result<()> {
        let reason = self.meets(hook, frame)?;
        ensure!(
            reason == expected,
            "judged {reason}, expected {expected}; flows {:?}; frame {frame:02x?}",
            FlowTables::of_host(&self.host)
        );
        Ok(())
    }

    /// The frame meets the hook, and host and kernel treat it alike. Its reason.
    ///
    /// # Errors
    /// They do not.
    pub fn meets(&mut self, hook: Hook, frame: &[u8]) -> Result<Reason> {
        // Nobody's slot has no policy.
        let policy = if self.endpoint.is_absent() { PolicyWord::default() } else { self.policy };
        self.host.pods.insert(self.endpoint.slot, (self.endpoint, policy));
        let decision = match hook {
            Hook::FromPod => self.host.from_pod(frame, &self.frame, &self.endpoint, policy),
            Hook::ToPod => self.host.to_pod(frame, &self.frame, &self.endpoint, policy),
            Hook::ToUplink => self.host.to_uplink(frame, ether_type(frame), &self.frame),
        };
        let reason = decision.reason;
        let counted = self.host.counted.take();
        self.reasons.insert(reason);
        let reports = self.host.reports.take();
        let tells_more = self.host.config.flags & (Config::TELL_ALLOWED | Config::TELL_UNPOLICED) != 0;
        let told = usize::from(reason.is_drop() && !reason.is_quiet());
        ensure!(
            reports.len() == told || tells_more && !reason.is_drop() && reports.len() == 1,
            "{} reports of a packet judged {reason}",
            reports.len()
        );
        if let Some(kernel) = &mut self.kernel {
            let observed = Observed {
                hook,
                bytes: frame,
                frame: self.frame,
                endpoint: self.endpoint,
                policy,
                decision,
                counted: &counted,
                report: reports.last(),
            };
            kernel.require_alike(&observed, &self.host)?;
        }
        self.reports.extend(reports);
        self.counted = counted;
        Ok(reason)
    }

    /// The pod of another slot, whose deferred packets come by.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_sender(&mut self, endpoint: Endpoint, policy: PolicyWord) -> Result<()> {
        self.host.pods.insert(endpoint.slot, (endpoint, policy));
        match &mut self.kernel {
            Some(kernel) => kernel.set_pod(&endpoint, policy),
            None => Ok(()),
        }
    }

    /// The next frames carry the mark of a deferred packet of this slot.
    pub const fn deferred_by(&mut self, slot: u16) {
        let config = &self.host.config;
        self.frame.mark = Mark::new(config.mark_mask, config.mark_shift).write(FOREIGN_MARK, Sender::Deferred(slot));
    }

    /// The hook where the pod's flow left says where it was led to: what `skb->hash` carries there (BPF_PROG_TEST_RUN gives
    /// no packet a hash).
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn led_to(&mut self, backend: Backend) -> Result<()> {
        let key = BackendKey { cookie: self.host.cookie.get(), slot: self.endpoint.slot, pad: 0 };
        self.host.backends.borrow_mut().insert(key, backend);
        match &mut self.kernel {
            Some(kernel) => kernel.record_backend(key, backend),
            None => Ok(()),
        }
    }

    /// The only flow there is, and in which table it is.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn flow(&self) -> Result<(Flow, Place)> {
        let flows = FlowTables::of_host(&self.host);
        ensure!(flows.0.len() == 1, "not one flow but {flows:?}");
        flows.0.into_values().next().context("one flow")
    }

    /// There is no flow.
    ///
    /// # Errors
    /// There is one.
    pub fn has_no_flow(&self) -> Result<()> {
        let flows = FlowTables::of_host(&self.host);
        ensure!(flows.0.is_empty(), "flows {flows:?}");
        Ok(())
    }

    /// A conversation of the pod with this peer.
    #[must_use]
    pub const fn talk(&self, peer: IpAddr, protocol: u8, pod_port: u16, peer_port: u16) -> Talk {
        Talk { pod: self.cast.pod, peer, protocol, pod_port, peer_port }
    }

    /// TCP from a peer's port 40000 to a port of the pod.
    #[must_use]
    pub const fn tcp_in(&self, peer: IpAddr, port: u16) -> Talk {
        self.talk(peer, 6, port, 40_000)
    }

    /// TCP from the pod's port 40000 to a port of the peer.
    #[must_use]
    pub const fn tcp_out(&self, peer: IpAddr, port: u16) -> Talk {
        self.talk(peer, 6, 40_000, port)
    }

    /// UDP from a peer's port 40000 to a port of the pod.
    #[must_use]
    pub const fn udp_in(&self, peer: IpAddr, port: u16) -> Talk {
        self.talk(peer, 17, port, 40_000)
    }

    /// UDP from the pod's port 40000 to a port of the peer.
    #[must_use]
    pub const fn udp_out(&self, peer: IpAddr, port: u16) -> Talk {
        self.talk(peer, 17, 40_000, port)
    }

    /// Becomes the other pod of the node, which nothing isolates, or the first one again.
    pub fn turn_to(&mut self, endpoint: Endpoint, policy: PolicyWord) -> (Endpoint, PolicyWord) {
        (std::mem::replace(&mut self.endpoint, endpoint), std::mem::replace(&mut self.policy, policy))
    }

    /// Nobody has said yet whose interface it is.
    pub const fn pend(&mut self) {
        self.flag(EndpointFlags::PENDING, true);
    }
}

/// EtherType of a frame.
fn ether_type(frame: &[u8]) -> u16 {
    frame.get(12..14).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

/// True if an entry would still be alive now: for scenes that look at entries themselves.
#[must_use]
pub fn is_live(host: &HostTables, protocol: u8, found: &Flow) -> bool {
    use netpol_common::classify::Shared as _;
    let limit = host.setting(flow::timeout(protocol, found.word.state()));
    flow::is_live(host.now.get(), found.last_seen, limit)
}

const fn policy_of(direction: Direction) -> u16 {
    match direction {
        Direction::Ingress => cast::INGRESS_POLICY,
        Direction::Egress => cast::EGRESS_POLICY,
    }
}

/// The group MAC address of a group (RFC 1112, RFC 2464); none for others.
#[must_use]
pub fn mac_towards(destination: IpAddr) -> Option<[u8; 6]> {
    match destination {
        IpAddr::V4(address) if address.is_broadcast() => Some([0xff; 6]),
        IpAddr::V4(address) if address.is_multicast() => {
            let [_, b, c, d] = address.octets();
            Some([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(address) if address.is_multicast() => {
            let [.., c, d, e, f] = address.octets();
            Some([0x33, 0x33, c, d, e, f])
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// A conversation of a pod, by its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Talk {
    /// The pod's address.
    pub pod: IpAddr,
    /// The peer's address.
    pub peer: IpAddr,
    /// Protocol number: TCP, UDP or SCTP; others have no ports.
    pub protocol: u8,
    /// The pod's port.
    pub pod_port: u16,
    /// The peer's port.
    pub peer_port: u16,
}

impl Talk {
    /// A packet of the pod; `flags` matter to TCP alone.
    #[must_use]
    pub fn out(&self, flags: u8) -> Datagram {
        Datagram::new(self.pod, self.peer, self.transport([self.pod_port, self.peer_port], flags))
    }

    /// A packet of the peer.
    #[must_use]
    pub fn back(&self, flags: u8) -> Datagram {
        Datagram::new(self.peer, self.pod, self.transport([self.peer_port, self.pod_port], flags))
    }

    fn transport(&self, ports: [u16; 2], flags: u8) -> Transport {
        match self.protocol {
            6 => Transport::Tcp { ports, flags },
            17 => Transport::Udp { ports },
            132 => Transport::Sctp { ports },
            protocol => Transport::Raw { protocol, bytes: vec![0; 16] },
        }
    }
}
