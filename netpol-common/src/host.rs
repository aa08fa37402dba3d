//! The tables as ordinary maps: the same decision in userspace, for host tests, property tests and `explain`.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Config, Direction, Endpoint, Flow, FlowKey, FragmentCell, IDENTITY_NONE,
    PolicyWord, Reason, V4, V6,
};
use crate::classify::{self, Decision, Found, Frame, Report, Shared, Subject, Tables};
use crate::flow::Setting;
use crate::packet::{Address, Workspace};

/// Tables of one family.
#[derive(Clone, Debug, Default)]
pub struct FamilyTables<A> {
    /// Exact address to identity.
    pub identities: HashMap<A, u32>,
    /// (prefix, its length, identity).
    pub cidrs: Vec<(A, u8, u32)>,
    /// Address roles.
    pub roles: HashMap<A, u32>,
    /// Answered flows.
    pub flows: RefCell<HashMap<FlowKey<A>, Flow>>,
    /// Unanswered flows.
    pub unanswered: RefCell<HashMap<FlowKey<A>, Flow>>,
}

/// A drop that a host run reported: what an [`Event`](crate::abi::Event) says of the packet itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// Why.
    pub reason: Reason,
    /// Direction as the pod sees it.
    pub direction: Direction,
    /// EtherType, host order.
    pub ether_type: u16,
    /// The slot whose policy it was.
    pub slot: u16,
    /// The slot's revision.
    pub revision: u32,
    /// Identity that the peer was judged as.
    pub identity: u32,
    /// Policy id that denied.
    pub policy: u16,
    /// Source and destination as sixteen bytes; zero for a frame that is not IP, like all that follows.
    pub addresses: [V6; 2],
    /// Source and destination port.
    pub ports: [u16; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP flags, low byte.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
}

/// Every table, with a clock that the test moves.
#[derive(Clone, Debug)]
pub struct HostTables {
    /// Configuration.
    pub config: Config,
    /// Jiffies.
    pub now: Cell<u32>,
    /// Allow table.
    pub allow: HashMap<AllowKey, AllowValue>,
    /// Port sets: bit `p % 8` of byte `p / 8` is port `p`.
    pub port_sets: HashMap<u16, Vec<u8>>,
    /// IPv4.
    pub v4: FamilyTables<V4>,
    /// IPv6.
    pub v6: FamilyTables<V6>,
    /// Pods by slot, and what they are subject to.
    pub pods: HashMap<u16, (Endpoint, PolicyWord)>,
    /// (protocol, port) of the node that services translate.
    pub node_ports: HashSet<(u8, u16)>,
    /// What hashes are keyed with.
    pub secret: [u32; 2],
    /// Where deferred flows were led to.
    pub backends: RefCell<HashMap<BackendKey, Backend>>,
    /// The cookie that the last packet was given, until somebody takes it.
    pub cookie: Cell<u32>,
    /// What became of first fragments, by index.
    pub fragments: RefCell<HashMap<u32, FragmentCell>>,
    /// What was counted for senders.
    pub counted: RefCell<Vec<(u16, Reason)>>,
    /// What was reported.
    pub reports: RefCell<Vec<HostReport>>,
    /// True to refuse new flow entries, as a full table does.
    pub flows_full: Cell<bool>,
}

impl HostTables {
    /// Empty tables under this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Cell::new(1_000_000),
            allow: HashMap::new(),
            port_sets: HashMap::new(),
            v4: FamilyTables::default(),
            v6: FamilyTables::default(),
            pods: HashMap::new(),
            node_ports: HashSet::new(),
            secret: [0x6e65_7470, 0x6f6c_2121],
            backends: RefCell::default(),
            cookie: Cell::new(0),
            fragments: RefCell::default(),
            counted: RefCell::default(),
            reports: RefCell::new(Vec::new()),
            flows_full: Cell::new(false),
        }
    }

    /// Gives an exact address its identity.
    pub fn set_identity(&mut self, address: IpAddr, identity: u32) {
        match address {
            IpAddr::V4(address) => _ = self.v4.identities.insert(address.into(), identity),
            IpAddr::V6(address) => _ = self.v6.identities.insert(address.into(), identity),
        }
    }

    /// Gives a prefix its identity.
    pub fn set_cidr(&mut self, network: IpAddr, prefix_len: u8, identity: u32) {
        match network {
            IpAddr::V4(address) => self.v4.cidrs.push((address.into(), prefix_len, identity)),
            IpAddr::V6(address) => self.v6.cidrs.push((address.into(), prefix_len, identity)),
        }
    }

    /// Says what an address is to the node.
    pub fn set_role(&mut self, address: IpAddr, role: u32) {
        match address {
            IpAddr::V4(address) => _ = self.v4.roles.insert(address.into(), role),
            IpAddr::V6(address) => _ = self.v6.roles.insert(address.into(), role),
        }
    }

    /// Judges a frame that a pod sends.
    pub fn from_pod(&self, packet: &[u8], frame: &Frame, endpoint: &Endpoint, policy: PolicyWord) -> Decision {
        classify::from_pod(packet, frame, &Subject { endpoint, policy }, self, &mut Workspace::default())
    }

    /// Judges a frame that a pod is about to receive.
    pub fn to_pod(&self, packet: &[u8], frame: &Frame, endpoint: &Endpoint, policy: PolicyWord) -> Decision {
        classify::to_pod(packet, frame, &Subject { endpoint, policy }, self, &mut Workspace::default())
    }

    /// Judges a frame that leaves this node; `protocol` is its EtherType.
    pub fn to_uplink(&self, packet: &[u8], protocol: u16, frame: &Frame) -> Decision {
        classify::to_uplink(packet, protocol, frame, self, &mut Workspace::default())
    }
}

impl Shared for HostTables {
    fn setting_behind(&self, first: Setting, words: usize) -> u32 {
        let config = &self.config;
        let behind = |list: &[u32]| list.get(words).copied().unwrap_or(0);
        match first {
            Setting::TcpOpening => config.timeouts.tcp_opening,
            Setting::TcpEstablished => config.timeouts.tcp_established,
            Setting::TcpClosing => config.timeouts.tcp_closing,
            Setting::OtherOpening => config.timeouts.other_opening,
            Setting::OtherEstablished => config.timeouts.other_established,
            Setting::SctpEstablished => config.timeouts.sctp_established,
            Setting::Fragment => config.timeouts.fragment,
            Setting::MarkMask => config.mark_mask,
            Setting::Flags => config.flags,
            Setting::Hz => config.hz,
            Setting::EventInterval => config.event_interval,
            Setting::EventsPerSecond => config.events_per_second,
            Setting::Slots => config.slots,
            Setting::MarkShift => config.mark_shift,
            Setting::FlowsPerPod => config.flows_per_pod,
            Setting::UnansweredPerPod => config.unanswered_per_pod,
            Setting::BackendsPerPod => config.backends_per_pod,
            Setting::ServicesV4 => behind(&[config.services_v4.address, config.services_v4.mask].concat()),
            Setting::ServicesV6 => behind(&[config.services_v6.address, config.services_v6.mask].concat()),
        }
    }

    fn is_node_port(&self, protocol: u8, port: u16) -> bool {
        self.node_ports.contains(&(protocol, port))
    }

    fn secret(&self) -> [u32; 2] {
        self.secret
    }

    fn sender(&self, slot: u16) -> Option<Subject<'_>> {
        self.pods.get(&slot).map(|(endpoint, policy)| Subject { endpoint, policy: *policy })
    }

    fn set_cookie(&self, cookie: u32) {
        self.cookie.set(cookie);
    }

    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.backends.borrow().get(key).copied()
    }

    fn record_backend(&self, key: &BackendKey, backend: &Backend) {
        self.backends.borrow_mut().insert(*key, *backend);
    }

    fn fragment(&self, index: u32) -> FragmentCell {
        self.fragments.borrow().get(&index).copied().unwrap_or_default()
    }

    fn set_fragment(&self, index: u32, cell: FragmentCell) {
        self.fragments.borrow_mut().insert(index, cell);
    }

    fn count_sender(&self, slot: u16, reason: Reason) {
        self.counted.borrow_mut().push((slot, reason));
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn allow(&self, key: &AllowKey) -> Option<AllowValue> {
        self.allow.get(key).copied()
    }

    fn port_set_has(&self, set: u16, port: u16) -> bool {
        let byte = self.port_sets.get(&set).and_then(|bits| bits.get(usize::from(port / 8)));
        byte.is_some_and(|byte| byte >> (port % 8) & 1 == 1)
    }
}

/// True if the first `length` bits are equal.
fn shares_prefix<A: Address>(a: A, b: A, length: u8) -> bool {
    let mut left = u32::from(length);
    a.widen().iter().zip(b.widen()).all(|(&a, b)| {
        let bits = left.min(32);
        left -= bits;
        bits == 0 || (u32::from_be(a) ^ u32::from_be(b)) >> (32 - bits) == 0
    })
}

trait OfFamily<A> {
    fn family(&self) -> &FamilyTables<A>;
}

impl OfFamily<V4> for HostTables {
    fn family(&self) -> &FamilyTables<V4> {
        &self.v4
    }
}

impl OfFamily<V6> for HostTables {
    fn family(&self) -> &FamilyTables<V6> {
        &self.v6
    }
}

impl<A: Address + std::hash::Hash> Tables<A> for HostTables
where
    Self: OfFamily<A>,
{
    /// The key, and whether the entry is among the answered flows.
    type Handle = (FlowKey<A>, bool);

    fn identity(&self, address: &A) -> u32 {
        let family = self.family();
        if let Some(&identity) = family.identities.get(address) {
            return identity;
        }
        let covering = family.cidrs.iter().filter(|(network, length, _)| shares_prefix(*network, *address, *length));
        covering.max_by_key(|(_, length, _)| *length).map_or(IDENTITY_NONE, |(_, _, identity)| *identity)
    }

    fn address_role(&self, address: &A) -> u32 {
        self.family().roles.get(address).copied().unwrap_or(0)
    }

    fn find_flow(&self, key: &FlowKey<A>) -> Option<Found<Self::Handle>> {
        let answered = self.family().flows.borrow().get(key).copied();
        let flow = answered.or_else(|| self.family().unanswered.borrow().get(key).copied())?;
        let answered = answered.is_some();
        Some(Found { handle: (*key, answered), flow, answered })
    }

    fn update_flow(&self, found: &Found<Self::Handle>, flow: &Flow) {
        self.replace_flow(found.handle, flow);
    }

    fn replace_flow(&self, (key, answered): Self::Handle, flow: &Flow) {
        let table = if answered { &self.family().flows } else { &self.family().unanswered };
        table.borrow_mut().insert(key, *flow);
    }

    fn promote_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        if self.flows_full.get() {
            return false;
        }
        self.family().flows.borrow_mut().insert(*key, *flow);
        self.family().unanswered.borrow_mut().remove(key);
        true
    }

    fn open_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        if self.flows_full.get() {
            return false;
        }
        self.family().unanswered.borrow_mut().insert(*key, *flow);
        true
    }

    fn report(&self, report: &Report<'_, A>) {
        let &Report { reason, direction, ether_type, slot, revision, header } = report;
        let header = header.copied().unwrap_or_default();
        self.reports.borrow_mut().push(HostReport {
            reason,
            direction,
            ether_type,
            slot,
            revision,
            identity: header.judged_identity,
            policy: header.judged_policy,
            addresses: [header.source, header.destination].map(|address| V6(address.widen())),
            ports: [header.source_port, header.destination_port],
            protocol: header.protocol,
            tcp_flags: header.tcp_flags,
            icmp_type: header.icmp_type,
            icmp_code: header.icmp_code,
        });
    }
}
