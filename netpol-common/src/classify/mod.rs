//! The decision: bytes and table look-ups in, one [`Verdict`] out. Compiled into the BPF programs and into userspace.
//!
//! A program is: build the two adapters, call [`from_pod`] or [`to_pod`], count, return. The stages are
//! `parse -> source checks -> always allowed -> flow -> policy`, in that order, for both families and both directions
//! by parameters. No clock, no allocation, no I/O: time and tables come through [`Tables`].

mod decide;
mod from_pod;
mod to_pod;

pub use from_pod::from_pod;
pub use to_pod::to_pod;

use crate::abi::{
    AllowKey, AllowValue, Direction, Endpoint, Flow, FlowKey, Fragment, FragmentKey, PolicyWord, Reason, V4, V6,
};
use crate::flow::Setting;
use crate::packet::{Address, Header};

/// What is known of a frame beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// True if the frame came in through no interface: the node's own stack sent it (`ingress_ifindex == 0`). Not
    /// enough by itself to be the node's: reassembled fragments of a pod lose it (design §3.5).
    pub from_host_stack: bool,
    /// `skb->mark`.
    pub mark: u32,
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
}

/// A drop as told to userspace.
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
    /// The slot's revision.
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
    /// A word of the configuration.
    fn setting(&self, setting: Setting) -> u32;
    /// Jiffies, low 32 bits.
    fn now(&self) -> u32;
    /// What a policy id lets an identity do.
    fn allow(&self, key: &AllowKey) -> Option<AllowValue>;
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
    /// Ports of a fragmented datagram.
    fn find_fragment(&self, key: &FragmentKey<A>) -> Option<Fragment>;
    /// Remembers the ports of a fragmented datagram.
    fn record_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment);
    /// Tells userspace of a drop; bounded by the implementation.
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
    ) -> Verdict
    where
        T: Tables<A>,
    {
        let (Ok(reason) | Err(reason)) = result;
        let Verdict(reason) = merge(header, Verdict(reason));
        if reason.is_drop() && !reason.is_quiet() {
            self.tables.report(&Report {
                header: Some(header),
                ether_type: A::ETHER_TYPE,
                direction,
                reason,
                revision: self.subject.policy.revision(),
            });
        }
        Verdict(reason)
    }
}
