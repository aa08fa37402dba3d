//! Map keys. None has padding: a padded key misses look-ups at random, as the kernel hashes every byte.

use super::{Direction, Reason, V4, V6, assert_wire_layout};

/// Key of the allow table: what does this policy id let this identity do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowKey {
    /// Identity of the peer, `IDENTITY_NONE` for an address that nothing matches.
    pub identity: u32,
    /// Policy id of the subject in one direction.
    pub policy: u16,
    /// Always zero.
    pub pad: u16,
}
assert_wire_layout!(AllowKey, size = 8, align = 4, { identity: u32, policy: u16, pad: u16 });

impl AllowKey {
    /// The key of (`policy`, `identity`).
    #[must_use]
    #[inline(always)]
    pub const fn new(policy: u16, identity: u32) -> Self {
        Self { identity, policy, pad: 0 }
    }
}

/// A flow as one pod sees it: both directions of the flow have the same key. `A` is [`V4`] or [`V6`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey<A> {
    /// The local pod's address, network order.
    pub pod: A,
    /// The other end's address, network order.
    pub peer: A,
    /// Port at the pod, host order. ICMP echo: the identifier when the pod asks, else 0.
    pub pod_port: u16,
    /// Port at the peer, host order. ICMP echo: the identifier when the peer asks, else 0.
    pub peer_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
    /// The pod's slot: two pods of one node have an entry each.
    pub slot: u16,
}
assert_wire_layout!(FlowKey<V4>, size = 16, align = 4, {
    pod: V4, peer: V4, pod_port: u16, peer_port: u16, protocol: u8, pad: u8, slot: u16
});
assert_wire_layout!(FlowKey<V6>, size = 40, align = 4, {
    pod: V6, peer: V6, pod_port: u16, peer_port: u16, protocol: u8, pad: u8, slot: u16
});

/// A deferred flow at the place where its packets leave: its cookie, and whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// `classify::cookie` of the flow as its pod sees it, from `skb->hash`.
    pub cookie: u32,
    /// The pod's slot.
    pub slot: u16,
    /// Always zero.
    pub pad: u16,
}
assert_wire_layout!(BackendKey, size = 8, align = 4, { cookie: u32, slot: u16, pad: u16 });

/// Index into the counters: (slot, direction, reason) flattened, so that counting is one array access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CounterIndex(pub u32);

impl CounterIndex {
    /// Counters of one slot.
    pub const PER_SLOT: u32 = 2 * Reason::SLOTS;

    /// The counter of (`slot`, `direction`, `reason`).
    #[must_use]
    #[inline(always)]
    pub const fn new(slot: u16, direction: Direction, reason: Reason) -> Self {
        Self(slot as u32 * Self::PER_SLOT + direction as u32 * Reason::SLOTS + reason as u32)
    }

    /// Entries of the counter map for `slots` slots.
    #[must_use]
    pub const fn entries(slots: u32) -> u32 {
        slots * Self::PER_SLOT
    }
}
