//! The decision: bytes and table look-ups in, one [`Verdict`] out. Compiled into the BPF programs and into userspace.
//!
//! A program is: build the two adapters, call [`from_pod`] or [`to_pod`], count, return. The stages are
//! `parse -> source checks -> always allowed -> flow -> policy`, in that order, for both families and both directions
//! by parameters. No clock, no allocation, no I/O: time and tables come through [`Tables`].

mod cookie;
mod decide;
mod deferred;
mod from_pod;
mod to_pod;
mod to_uplink;

pub use cookie::cookie;
pub use from_pod::from_pod;
pub use to_pod::to_pod;
pub use to_uplink::to_uplink;

use crate::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Config, Direction, Endpoint, Flow, FlowKey, FragmentCell, Mark,
    PolicyWord, Reason, SLOT_NONE, Sender, V4, V6,
};
use crate::flow::{Setting, is_syn};
use crate::packet::{Address, Header, protocol};

/// What is known of a frame beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// True if the frame came in through no interface: the node's own stack sent it (`ingress_ifindex == 0`). Not
    /// enough by itself to be the node's: reassembled fragments of a pod lose it (design §3.5).
    pub from_host_stack: bool,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->hash`: of a deferred packet, the [`cookie`] of its flow.
    pub hash: u32,
    /// True if the frame carries a VLAN tag, which the kernel has already moved out of the bytes.
    pub vlan_tagged: bool,
}

/// Whose packet it is and what it is subject to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The endpoint of the interface; the zero value if nobody registered it.
    pub endpoint: &'a Endpoint,
    /// Its slot's policy ids and revision, read once: policy never changes within a packet.
    pub policy: PolicyWord,
}

/// The outcome: pass or drop, and why.
#[must_use = "a verdict that nobody acts on is a packet that nobody judged"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(pub Reason);

impl Verdict {
    /// True if the packet is dropped.
    #[must_use]
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self.0.is_drop()
    }

    #[inline(always)]
    const fn into_result(self) -> Result<Reason, Reason> {
        if self.0.is_drop() { Err(self.0) } else { Ok(self.0) }
    }
}

/// What became of a packet, and whose policy said so.
#[must_use = "a decision that nobody acts on is a packet that nobody judged"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Pass or drop, and why.
    pub reason: Reason,
    /// Direction as the pod of `slot` sees it.
    pub direction: Direction,
    /// The pod it is counted for: the one behind the hook, or the sender of a deferred packet that its own policy denies.
    pub slot: u16,
}

impl Decision {
    /// What the mark of a pod's packet is to say from here on.
    #[must_use]
    #[inline(always)]
    pub const fn sender(self) -> Sender {
        if deferred::is_deferred(self.reason) { Sender::Deferred(self.slot) } else { Sender::Judged }
    }
}

/// A drop, or what opens a flow, as told to userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a, A> {
    /// What was parsed (zero where parsing stopped), and what the peer was judged as; none for a frame that is not IP.
    pub header: Option<&'a Header<A>>,
    /// EtherType, host order.
    pub ether_type: u16,
    /// Direction as the pod sees it.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// The slot whose policy it was.
    pub slot: u16,
    /// That slot's revision.
    pub revision: u32,
}

/// A flow entry that a look-up found. `handle` is the table's own; the value is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<H> {
    /// What `update_flow` and `replace_flow` want back.
    pub handle: H,
    /// The entry when it was read.
    pub flow: Flow,
    /// True if it was in the table of answered flows.
    pub answered: bool,
}

/// The tables that do not depend on the address family.
pub trait Shared {
    /// The word of the configuration that is so many words behind the one named.
    fn setting_behind(&self, first: Setting, words: usize) -> u32;
    /// A word of the configuration.
    #[inline(always)]
    fn setting(&self, setting: Setting) -> u32 {
        self.setting_behind(setting, 0)
    }
    /// Jiffies, low 32 bits.
    fn now(&self) -> u32;
    /// What a policy id lets an identity do.
    fn allow(&self, key: &AllowKey) -> Option<AllowValue>;
    /// True if services translate this port of the node for the protocol (NodePort, hostPort).
    fn is_node_port(&self, protocol: u8, port: u16) -> bool;
    /// What hashes are keyed with.
    fn secret(&self) -> [u32; 2];
    /// The pod of a slot and what it is subject to; none if no pod has it.
    fn sender(&self, slot: u16) -> Option<Subject<'_>>;
    /// Gives the packet the cookie of its flow, for the hook where it leaves.
    fn set_cookie(&self, cookie: u32);
    /// Where the flow of a cookie was led to.
    fn backend(&self, key: &BackendKey) -> Option<Backend>;
    /// Remembers where the flow of a cookie is led to.
    fn record_backend(&self, key: &BackendKey, backend: &Backend);
    /// The cell of this index; zero if there is none.
    fn fragment(&self, index: u32) -> FragmentCell;
    /// Writes a cell.
    fn set_fragment(&self, index: u32, cell: FragmentCell);
    /// Counts this packet for the sender too, whose egress policy allows it after translation.
    fn count_sender(&self, slot: u16, reason: Reason);
    /// True if the bit of `port` is set in port set `set`; false for a set that does not exist.
    fn port_set_has(&self, set: u16, port: u16) -> bool;
}

/// The tables of one address family.
pub trait Tables<A>: Shared {
    /// See [`Found::handle`].
    type Handle: Copy;
    /// Identity of an address: exact, else the longest prefix, else `IDENTITY_NONE`.
    fn identity(&self, address: &A) -> u32;
    /// `AddressRole` bits of an address.
    fn address_role(&self, address: &A) -> u32;
    /// The flow's entry, among the answered ones first.
    fn find_flow(&self, key: &FlowKey<A>) -> Option<Found<Self::Handle>>;
    /// Writes what changed between `found.flow` and `flow` in place.
    fn update_flow(&self, found: &Found<Self::Handle>, flow: &Flow);
    /// Writes a new flow of the same key over an entry, in the table where that is.
    fn replace_flow(&self, handle: Self::Handle, flow: &Flow);
    /// Moves a flow to the answered ones. False if there was no room: it stays where it is.
    fn promote_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool;
    /// Adds an unanswered flow. False if there was no room.
    fn open_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool;
    /// Tells userspace of a drop or a new flow; bounded by the implementation.
    fn report(&self, report: &Report<'_, A>);
}

/// Both families: what a hook needs.
pub trait AllTables: Tables<V4> + Tables<V6> {}
impl<T: Tables<V4> + Tables<V6>> AllTables for T {}

/// The verdict by way of the header.
///
/// verifier: a reason is a constant on each path, and paths that differ in it alone would each be followed to the end. Read
/// back from map memory it is one number that nobody knows.
#[inline(always)]
pub(crate) fn merge<A>(header: &mut Header<A>, verdict: Verdict) -> Verdict {
    header.reason = verdict.0;
    Verdict(crate::packet::settle(header).reason)
}

/// Everything a stage needs of one packet.
pub(crate) struct Stage<'a, P: ?Sized, T> {
    pub(crate) packet: &'a P,
    pub(crate) frame: &'a Frame,
    pub(crate) subject: &'a Subject<'a>,
    pub(crate) tables: &'a T,
}

impl<P: ?Sized, T: Shared> Stage<'_, P, T> {
    #[inline(always)]
    pub(crate) fn flag(&self, flag: u32) -> bool {
        self.tables.setting(Setting::Flags) & flag == flag
    }

    /// Ends a stage's work: a refusal is reported (unless it is a quiet one) and becomes the verdict.
    #[inline(always)]
    pub(crate) fn conclude<A: Address>(
        &self,
        result: Result<Reason, Reason>,
        header: &mut Header<A>,
        direction: Direction,
    ) -> Decision
    where
        T: Tables<A>,
    {
        let (Ok(reason) | Err(reason)) = result;
        let Verdict(reason) = merge(header, Verdict(reason));
        let decision = self.decision(reason, header.on_behalf, direction);
        if self.is_told(reason, header) {
            let Decision { direction, slot, .. } = decision;
            let revision = self.revision_of(slot);
            self.tables.report(&Report {
                header: Some(header),
                ether_type: A::ETHER_TYPE,
                direction,
                reason,
                slot,
                revision,
            });
        }
        decision
    }

    /// True if userspace is to hear of it: of every drop but the quiet ones; of what opens a flow if it is asked for.
    #[inline(always)]
    fn is_told<A: Address>(&self, reason: Reason, header: &Header<A>) -> bool
    where
        T: Tables<A>,
    {
        if reason.is_drop() {
            return !reason.is_quiet();
        }
        let asked = if matches!(reason, Reason::AllowedByPolicy | Reason::AllowedAfterTranslation) {
            Config::TELL_ALLOWED
        } else if matches!(reason, Reason::NotIsolated | Reason::FromOwnNode) {
            Config::TELL_UNPOLICED
        } else {
            return false;
        };
        // Where nothing is remembered every packet of a connection is judged: the first one is told of.
        let opens = header.protocol != protocol::TCP || is_syn(header.protocol, header.tcp_flags);
        self.flag(asked) && opens
    }

    /// A decision of the pod behind the hook, or of a deferred packet's sender.
    #[inline(always)]
    fn decision(&self, reason: Reason, on_behalf: u16, direction: Direction) -> Decision {
        if on_behalf == SLOT_NONE {
            Decision { reason, direction, slot: self.subject.endpoint.slot }
        } else {
            Decision { reason, direction: Direction::Egress, slot: on_behalf }
        }
    }

    #[inline(always)]
    fn revision_of(&self, slot: u16) -> u32 {
        if slot == self.subject.endpoint.slot {
            return self.subject.policy.revision();
        }
        self.tables.sender(slot).map_or(0, |sender| sender.policy.revision())
    }

    /// Whose packet it is, as its mark says.
    #[inline(always)]
    pub(crate) fn marked_sender(&self) -> Sender {
        Mark::new(self.tables.setting(Setting::MarkMask), self.tables.setting(Setting::MarkShift)).read(self.frame.mark)
    }
}
