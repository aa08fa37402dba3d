//! The wire layout between the agent and the BPF object: map names, keys, values, events, reasons.
//!
//! Every type is `repr(C)`, `Copy`, without hidden padding, and carries a layout assert beside it. Addresses are
//! network-order bytes, ports host-order `u16`, times jiffies (`u32`) unless a field says otherwise. A change of any
//! size, field, name or number here is a change of [`layout()`] of the maps that hold it, and of [`ABI_VERSION`].

mod address;
mod event;
mod keys;
mod layout;
mod mark;
#[cfg(feature = "user")]
mod pod;
mod reason;
mod tracking;
mod values;

pub use address::{Mac, V4, V6};
pub use event::{Event, Hook};
pub use keys::{AllowKey, BackendKey, CounterIndex, FlowKey};
pub use layout::{ENDPOINT_PREFIX, layout};
pub use mark::{Mark, Sender};
pub use reason::{Reason, UnknownReason};
pub use tracking::{Backend, Flow, FlowState, FlowWord, FragmentCell, RingHeads};
pub use values::{
    AddressRole, AllowValue, Config, Counter, Direction, Endpoint, EndpointFlags, EventGate, PolicyWord, PortRule,
    Prefix, Timeouts, TokenBucket,
};

/// Version of everything in this module, for people: what a pinned map looks like is told by its [`layout()`].
pub const ABI_VERSION: u32 = if cfg!(feature = "next-abi") { 3 } else { 2 };

/// Identity of an address that no peer selector and no ipBlock of any local policy matches.
pub const IDENTITY_NONE: u32 = 0;

/// Policy id of a direction in which the pod is not isolated: everything is allowed and nothing is looked up.
pub const POLICY_NOT_ISOLATED: u16 = 0;
/// Policy id that no allow entry ever names: everything is denied. Used when a tightening could not be applied.
pub const POLICY_DENY: u16 = 1;
/// First policy id that the compiler hands out.
pub const POLICY_FIRST: u16 = 2;

/// Slot of no pod: counters and events that belong to no known endpoint.
pub const SLOT_NONE: u16 = 0;

/// Bits in a port set: one a port.
pub const PORT_SET_BITS: usize = 65_536;
/// Bytes in a port set.
pub const PORT_SET_BYTES: usize = PORT_SET_BITS / 8;

/// Default map capacities; the loader may size them to the node, the compiler refuses (loudly) what does not fit.
pub mod capacity {
    /// Interface indexes read from an array; larger ones come from the hash behind it.
    pub const NEAR_IFINDEXES: u32 = 32_768;
    /// Endpoints whose interface index is above [`NEAR_IFINDEXES`].
    pub const FAR_ENDPOINTS: u32 = 1_024;
    /// Slots, one a local pod; slot 0 is nobody's.
    pub const SLOTS: u32 = 128;
    /// Exact addresses with an identity, for each family.
    pub const ADDRESSES: u32 = 131_072;
    /// ipBlock regions, for each family.
    pub const CIDRS: u32 = 65_536;
    /// (policy id, identity) pairs that allow something; the compiler fills half, so that those of an agent that is being
    /// replaced fit beside.
    pub const ALLOW: u32 = 262_144;
    /// Distinct port sets (8 KiB each); 0 and 1 are never used, see `PortRule`; the compiler fills half.
    pub const PORT_SETS: u32 = 1_024;
    /// Answered flows of one pod, for each family.
    pub const FLOWS_PER_POD: u32 = 2_048;
    /// Flows of one pod that nobody has answered yet, for each family.
    pub const UNANSWERED_PER_POD: u32 = 1_024;
    /// The node's own addresses and service addresses, for each family.
    pub const ADDRESS_ROLES: u32 = 32_768;
    /// Backends of one pod's deferred flows, both families.
    pub const BACKENDS_PER_POD: u32 = 1_024;
    /// Transport protocols with a set of node ports: TCP, UDP, SCTP, in this order.
    pub const NODE_PORTS: u32 = 3;
    /// Bytes of the event ring buffer (a power of two of pages).
    pub const EVENT_RING_BYTES: u32 = 1 << 20;
    /// Cells of the table that keeps one flow from filling the event ring.
    pub const EVENT_GATES: u32 = 8_192;
}

/// Map names in the object and file names of their pins.
pub mod map {
    /// [`Endpoint`](super::Endpoint) by interface index, below `capacity::NEAR_IFINDEXES`.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// [`Endpoint`](super::Endpoint) by interface index, the rest.
    pub const ENDPOINTS_FAR: &str = "ENDPOINTS_FAR";
    /// [`PolicyWord`](super::PolicyWord) by slot; memory-mapped, so that one store changes all of it.
    pub const POLICY_WORDS: &str = "POLICY_WORDS";
    /// [`Endpoint`](super::Endpoint) by slot: whose packet a mark speaks of.
    pub const PODS: &str = "PODS";
    /// IPv4 address to identity.
    pub const IDENTITY_V4: &str = "IDENTITY_V4";
    /// IPv6 address to identity.
    pub const IDENTITY_V6: &str = "IDENTITY_V6";
    /// IPv4 prefix to identity (LPM).
    pub const CIDR_V4: &str = "CIDR_V4";
    /// IPv6 prefix to identity (LPM).
    pub const CIDR_V6: &str = "CIDR_V6";
    /// [`AllowKey`](super::AllowKey) to [`AllowValue`](super::AllowValue).
    pub const ALLOW: &str = "ALLOW";
    /// Port set number to its 65,536 bits.
    pub const PORT_SETS: &str = "PORT_SETS";
    /// Answered IPv4 flows.
    pub const FLOWS_V4: &str = "FLOWS_V4";
    /// Answered IPv6 flows.
    pub const FLOWS_V6: &str = "FLOWS_V6";
    /// Unanswered IPv4 flows.
    pub const UNANSWERED_V4: &str = "UNANSWERED_V4";
    /// Unanswered IPv6 flows.
    pub const UNANSWERED_V6: &str = "UNANSWERED_V6";
    /// Keys in `FLOWS_V4`, a stretch for each slot.
    pub const FLOWS_V4_RING: &str = "FLOWS_V4_RING";
    /// Keys in `FLOWS_V6`, a stretch for each slot.
    pub const FLOWS_V6_RING: &str = "FLOWS_V6_RING";
    /// Keys in `UNANSWERED_V4`, a stretch for each slot.
    pub const UNANSWERED_V4_RING: &str = "UNANSWERED_V4_RING";
    /// Keys in `UNANSWERED_V6`, a stretch for each slot.
    pub const UNANSWERED_V6_RING: &str = "UNANSWERED_V6_RING";
    /// Keys in `BACKENDS`, a stretch for each slot.
    pub const BACKENDS_RING: &str = "BACKENDS_RING";
    /// Where in each of its stretches a slot is, see [`RingHeads`](super::RingHeads).
    pub const RING_HEADS: &str = "RING_HEADS";
    /// [`FragmentCell`](super::FragmentCell) by its index.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`AddressRole`](super::AddressRole) of an IPv4 address.
    pub const ADDRESS_ROLES_V4: &str = "ADDRESS_ROLES_V4";
    /// [`AddressRole`](super::AddressRole) of an IPv6 address.
    pub const ADDRESS_ROLES_V6: &str = "ADDRESS_ROLES_V6";
    /// [`Backend`](super::Backend) by [`BackendKey`](super::BackendKey): where a service's translation led.
    pub const BACKENDS: &str = "BACKENDS";
    /// Bit sets of the node's own ports that services translate, one a transport protocol.
    pub const NODE_PORTS: &str = "NODE_PORTS";
    /// Four random words that hashes are keyed with; zero until userspace has filled them.
    pub const SECRET: &str = "SECRET";
    /// [`Counter`](super::Counter) by [`CounterIndex`](super::CounterIndex), per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// Event gates by flow hash, per CPU.
    pub const EVENT_GATES: &str = "EVENT_GATES";
    /// Event token buckets by slot, per CPU.
    pub const EVENT_TOKENS: &str = "EVENT_TOKENS";
    /// Events that were lost because the ring was full, per CPU.
    pub const EVENTS_LOST: &str = "EVENTS_LOST";
    /// The event ring buffer.
    pub const EVENTS: &str = "EVENTS";
    /// The object's global variable of type [`Config`](super::Config), set at load.
    pub const CONFIG: &str = "CONFIG";
}

/// Program names in the object; a program is named after its hook.
pub mod program {
    /// TC ingress of the pod's host veth.
    pub const FROM_POD: &str = "from_pod";
    /// TC egress of the pod's host veth.
    pub const TO_POD: &str = "to_pod";
    /// TC egress of every other leaf device.
    pub const TO_UPLINK: &str = "to_uplink";
}

/// Fails the build when a wire type changes size, alignment or fields, or has hidden padding.
macro_rules! assert_wire_layout {
    ($ty:ty, size = $size:expr, align = $align:expr, { $($field:tt : $field_ty:ty),+ $(,)? }) => {
        const _: () = {
            assert!(size_of::<$ty>() == $size, "size changed: bump the layout and ABI_VERSION");
            assert!(align_of::<$ty>() == $align, "alignment changed: bump the layout and ABI_VERSION");
            assert!(0 $(+ size_of::<$field_ty>())+ == $size, "implicit padding: add an explicit pad field");
            fn _every_field_is_listed(value: $ty) {
                // A destructuring pattern cannot be written for a type parameterised in the macro call; field reads do.
                $(let _: $field_ty = value.$field;)+
            }
        };
    };
}
pub(crate) use assert_wire_layout;
