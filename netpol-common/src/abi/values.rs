//! Map values and the object's configuration.

use super::{Mac, POLICY_NOT_ISOLATED, SLOT_NONE, V4, V6, assert_wire_layout};

/// Direction of traffic **as the pod sees it**. The TC hook is the other type, [`super::Hook`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the pod.
    Ingress = 0,
    /// From the pod.
    Egress = 1,
}

impl Direction {
    /// Both directions, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The direction of a reply.
    #[must_use]
    #[inline(always)]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// `ingress` or `egress`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Bits of [`Endpoint::flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointFlags;

impl EndpointFlags {
    /// `ipv4` is set.
    pub const HAS_V4: u16 = 1;
    /// `ipv6` is set.
    pub const HAS_V6: u16 = 1 << 1;
    /// Attached, but nobody has said yet whose it is: only ARP and neighbour discovery pass.
    pub const PENDING: u16 = 1 << 2;
    /// The operator switched the source checks off for this pod.
    pub const ANY_SOURCE: u16 = 1 << 3;
    /// First install: everything passes until the first full sync (flows are recorded all the same).
    pub const PASS_THROUGH: u16 = 1 << 4;
    /// No pod's interface but a device whose frames begin with the IP header (WireGuard, IP in IP, tun).
    pub const NO_LINK_HEADER: u16 = 1 << 5;
}

/// A local pod's interface. Written before its hooks are attached and when its addresses change; what changes with
/// policy is the slot's [`PolicyWord`], as an array value is torn while it is written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's slot on this node, `SLOT_NONE` if the interface is not an endpoint.
    pub slot: u16,
    /// See [`EndpointFlags`].
    pub flags: u16,
    /// MAC address of the pod's side.
    pub mac: Mac,
    /// Always zero.
    pub pad: u16,
    /// IPv4 address, if `HAS_V4`.
    pub ipv4: V4,
    /// IPv6 address, if `HAS_V6`.
    pub ipv6: V6,
    /// Nothing: makes the layout another one.
    #[cfg(feature = "next-abi")]
    pub next: [u32; 2],
}
#[cfg(not(feature = "next-abi"))]
assert_wire_layout!(Endpoint, size = 32, align = 4, {
    slot: u16, flags: u16, mac: Mac, pad: u16, ipv4: V4, ipv6: V6
});
#[cfg(feature = "next-abi")]
assert_wire_layout!(Endpoint, size = 40, align = 4, {
    slot: u16, flags: u16, mac: Mac, pad: u16, ipv4: V4, ipv6: V6, next: [u32; 2]
});
const _: () = assert!(core::mem::offset_of!(Endpoint, ipv6) + size_of::<V6>() == super::ENDPOINT_PREFIX);

impl Endpoint {
    /// True for the zeroed value of an interface that nobody registered.
    #[must_use]
    #[inline(always)]
    pub const fn is_absent(&self) -> bool {
        self.slot == SLOT_NONE
    }

    /// True if all bits of `flag` are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag == flag
    }
}

/// What a slot's pod is subject to: both policy ids and the revision, in one aligned `u64` that one store changes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyWord(pub u64);
assert_wire_layout!(PolicyWord, size = 8, align = 8, { 0: u64 });

impl PolicyWord {
    /// Bits below the ingress policy id; the egress id takes the other half of the lower 32.
    const INGRESS: u32 = if cfg!(feature = "next-abi") { 16 } else { 0 };

    /// A word of its parts. Revisions of a slot never restart: a flow remembers the one it was allowed under.
    #[must_use]
    pub const fn new(ingress: u16, egress: u16, revision: u32) -> Self {
        let ids = (ingress as u64) << Self::INGRESS | (egress as u64) << (16 - Self::INGRESS);
        Self(ids | (revision as u64) << 32)
    }

    /// The policy id of `direction`.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes the 16 bits of one field")]
    pub const fn policy(self, direction: super::Direction) -> u16 {
        match direction {
            super::Direction::Ingress => (self.0 >> Self::INGRESS) as u16,
            super::Direction::Egress => (self.0 >> (16 - Self::INGRESS)) as u16,
        }
    }

    /// The revision.
    #[must_use]
    #[inline(always)]
    pub const fn revision(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// True if some policy isolates the pod in `direction`.
    #[must_use]
    #[inline(always)]
    pub const fn is_isolated(self, direction: super::Direction) -> bool {
        self.policy(direction) != POLICY_NOT_ISOLATED
    }
}

/// What one protocol's field of an [`AllowValue`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRule {
    /// No port.
    None,
    /// Every port.
    All,
    /// The ports whose bit is set in this port set (2 or above).
    Set(u16),
}

impl PortRule {
    /// First number of a port set; 0 and 1 mean none and all.
    pub const FIRST_SET: u16 = 2;

    /// Decodes a field of an [`AllowValue`].
    #[must_use]
    #[inline(always)]
    pub const fn decode(field: u16) -> Self {
        match field {
            0 => Self::None,
            1 => Self::All,
            set => Self::Set(set),
        }
    }

    /// The number that stands for this rule.
    #[must_use]
    pub const fn encode(self) -> u16 {
        match self {
            Self::None => 0,
            Self::All => 1,
            Self::Set(set) => set,
        }
    }
}

/// What a policy id lets an identity do. A missing entry allows nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowValue {
    /// TCP destination ports, a [`PortRule`] encoded.
    pub tcp: u16,
    /// UDP destination ports, a [`PortRule`] encoded.
    pub udp: u16,
    /// SCTP destination ports, a [`PortRule`] encoded.
    pub sctp: u16,
    /// Every other protocol, ICMP included: 0 no, 1 yes.
    pub other: u16,
}
assert_wire_layout!(AllowValue, size = 8, align = 2, { tcp: u16, udp: u16, sctp: u16, other: u16 });

/// Bits that say what an address is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRole;

impl AddressRole {
    /// One of the node's own addresses.
    pub const OWN: u32 = 1;
    /// A service address: kube-proxy rewrites it, so egress is judged where the packet leaves, on the backend.
    pub const SERVICE: u32 = 1 << 1;
    /// An address of another node of the cluster: no pod may send it tunnel packets.
    pub const NODE: u32 = 1 << 2;
}

/// Packets and bytes of one (slot, direction, reason) on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets; a GSO packet counts as its segments.
    pub packets: u64,
    /// Bytes as seen at the hook, Ethernet header included.
    pub bytes: u64,
}
assert_wire_layout!(Counter, size = 16, align = 8, { packets: u64, bytes: u64 });

/// When a flow (by hash) last had an event, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventGate {
    /// Hash of the flow and reason.
    pub hash: u32,
    /// Jiffies (low 32 bits) of the last event.
    pub last: u32,
    /// Drops since then that had no event of their own.
    pub suppressed: u32,
    /// 1 once used.
    pub used: u32,
}
assert_wire_layout!(EventGate, size = 16, align = 4, { hash: u32, last: u32, suppressed: u32, used: u32 });

/// Event budget of one slot on one CPU: refilled by time, so that one pod cannot take another's events.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBucket {
    /// Events that may still be sent.
    pub tokens: u32,
    /// Jiffies (low 32 bits) of the last refill.
    pub refilled: u32,
    /// Events that found the bucket empty.
    pub refused: u64,
}
assert_wire_layout!(TokenBucket, size = 16, align = 8, { tokens: u32, refilled: u32, refused: u64 });

/// How long an idle flow lives, in jiffies. Defaults follow Linux' conntrack (nf_conntrack_proto_*.c).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, SYN not answered.
    pub tcp_opening: u32,
    /// TCP, established.
    pub tcp_established: u32,
    /// TCP, after both FIN or a RST.
    pub tcp_closing: u32,
    /// Anything else, not answered.
    pub other_opening: u32,
    /// UDP and all that has no timeout of its own, answered.
    pub other_established: u32,
    /// SCTP, answered (heartbeats come every 30 s).
    pub sctp_established: u32,
    /// Ports of a fragmented datagram.
    pub fragment: u32,
}
assert_wire_layout!(Timeouts, size = 28, align = 4, {
    tcp_opening: u32, tcp_established: u32, tcp_closing: u32, other_opening: u32, other_established: u32,
    sctp_established: u32, fragment: u32
});

impl Timeouts {
    /// The defaults on a kernel of `hz` ticks a second.
    #[must_use]
    pub const fn for_hz(hz: u32) -> Self {
        Self {
            tcp_opening: 120 * hz,
            tcp_established: 432_000 * hz,
            tcp_closing: 60 * hz,
            other_opening: 30 * hz,
            other_established: 180 * hz,
            sctp_established: 210 * hz,
            fragment: 30 * hz,
        }
    }
}

/// Addresses whose bits under a mask are these, in words of network-order bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix<const WORDS: usize> {
    /// The bits.
    pub address: [u32; WORDS],
    /// Which bits count.
    pub mask: [u32; WORDS],
}
assert_wire_layout!(Prefix<1>, size = 8, align = 4, { address: [u32; 1], mask: [u32; 1] });
assert_wire_layout!(Prefix<4>, size = 32, align = 4, { address: [u32; 4], mask: [u32; 4] });

impl<const WORDS: usize> Prefix<WORDS> {
    /// No address.
    pub const NONE: Self = Self { address: [1; WORDS], mask: [0; WORDS] };
}

/// Settings that the loader writes into the object before it is verified (read-only to the programs, hence free).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Idle times of flows.
    pub timeouts: Timeouts,
    /// Bits of `skb->mark` that hold the slot of the pod that a packet comes from.
    pub mark_mask: u32,
    /// See the associated constants.
    pub flags: u32,
    /// Ticks a second.
    pub hz: u32,
    /// Jiffies between two events of one denied flow.
    pub event_interval: u32,
    /// Events a second of one pod on one CPU; the bucket holds as many.
    pub events_per_second: u32,
    /// Slots in the slot-indexed maps.
    pub slots: u32,
    /// Position of the lowest bit of `mark_mask`; the BPF target has no instruction to find it.
    pub mark_shift: u32,
    /// Answered flows of one pod, for each family.
    pub flows_per_pod: u32,
    /// Unanswered flows of one pod, for each family.
    pub unanswered_per_pod: u32,
    /// Backends of one pod's deferred flows.
    pub backends_per_pod: u32,
    /// The cluster's IPv4 service range.
    pub services_v4: Prefix<1>,
    /// The cluster's IPv6 service range.
    pub services_v6: Prefix<4>,
}
assert_wire_layout!(Config, size = 108, align = 4, {
    timeouts: Timeouts, mark_mask: u32, flags: u32, hz: u32, event_interval: u32, events_per_second: u32, slots: u32,
    mark_shift: u32, flows_per_pod: u32, unanswered_per_pod: u32, backends_per_pod: u32, services_v4: Prefix<1>, services_v6: Prefix<4>
});

impl Config {
    /// Refuse TCP packets in mid-stream that belong to no known flow, even where policy would allow a new one.
    pub const STRICT_TCP: u32 = 1;
    /// Judge a pod's traffic to its own node like any other (default: always allowed).
    pub const ENFORCE_OWN_NODE: u32 = 1 << 1;
    /// Switch the source checks off for every pod.
    pub const ANY_SOURCE: u32 = 1 << 2;
    /// Tell userspace of new flows that a policy allows, as far as drops leave room.
    pub const TELL_ALLOWED: u32 = 1 << 3;
    /// Tell userspace of new flows that no policy is asked about.
    pub const TELL_UNPOLICED: u32 = 1 << 4;

    /// The defaults on a kernel of `hz` ticks a second.
    #[must_use]
    pub const fn for_hz(hz: u32) -> Self {
        Self {
            timeouts: Timeouts::for_hz(hz),
            mark_mask: 0xff00_0000,
            flags: 0,
            hz,
            event_interval: hz,
            events_per_second: 100,
            slots: super::capacity::SLOTS,
            mark_shift: 24,
            flows_per_pod: super::capacity::FLOWS_PER_POD,
            unanswered_per_pod: super::capacity::UNANSWERED_PER_POD,
            backends_per_pod: super::capacity::BACKENDS_PER_POD,
            services_v4: Prefix::NONE,
            services_v6: Prefix::NONE,
        }
    }

    /// The same with the slot in other bits of the mark.
    #[must_use]
    pub const fn with_mark_mask(mut self, mask: u32) -> Self {
        self.mark_mask = mask;
        self.mark_shift = if mask == 0 { 0 } else { mask.trailing_zeros() };
        self
    }

    /// True if all bits of `flag` are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}
