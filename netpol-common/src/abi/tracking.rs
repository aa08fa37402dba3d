//! What the programs remember of traffic: flows, backends and fragments, as map values.

use super::{Reason, assert_wire_layout};

/// Where a flow is in its life. Numbers are never used again.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// Opened, not yet answered.
    Opening = 0,
    /// Answered.
    Established = 1,
    /// TCP: both sides have sent FIN, or one RST.
    Closing = 2,
    /// Policy no longer allows it: both directions stay closed until a fresh SYN or a newer revision. It is kept, as a
    /// removed entry would let the other side's next packet open the flow anew with the roles swapped.
    Revoked = 3,
}

/// State, opener, flags and revision of a flow in one `u64`, so that two CPUs can never mix the state of one with the
/// revision of the other: a lost update leaves an old revision behind, and the next packet judges again.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowWord(pub u64);

impl FlowWord {
    /// The peer is the node itself, or the pod itself through a service: always allowed, never judged again.
    pub const EXEMPT: u8 = 1;
    /// Taken up in mid-stream, without having seen its SYN.
    pub const PICKED_UP: u8 = 1 << 1;
    /// The opener has sent FIN.
    pub const FIN_OPENER: u8 = 1 << 2;
    /// The answering side has sent FIN.
    pub const FIN_ANSWERER: u8 = 1 << 3;
    /// Both FIN bits.
    pub const FIN_BOTH: u8 = Self::FIN_OPENER | Self::FIN_ANSWERER;
    /// Egress was not judged here but is where the packet leaves (design §3.5).
    pub const DEFERRED: u8 = 1 << 4;
    /// Has been answered at least once.
    pub const ANSWERED: u8 = 1 << 5;
    /// Deferred: under this revision, policy allows the backend that the translation leads to.
    pub const CONFIRMED: u8 = 1 << 6;

    /// A word of its parts.
    #[must_use]
    #[inline(always)]
    pub const fn new(state: FlowState, opener: super::Direction, flags: u8, revision: u32) -> Self {
        Self(state as u64 | (opener as u64) << 8 | (flags as u64) << 16 | (revision as u64) << 32)
    }

    /// The state; a number that this version does not know reads as revoked.
    #[must_use]
    #[inline(always)]
    pub const fn state(self) -> FlowState {
        match self.0 & 0xff {
            0 => FlowState::Opening,
            1 => FlowState::Established,
            2 => FlowState::Closing,
            _ => FlowState::Revoked,
        }
    }

    /// Direction of the packet that opened the flow.
    #[must_use]
    #[inline(always)]
    pub const fn opener(self) -> super::Direction {
        if self.0 >> 8 & 1 == 0 { super::Direction::Ingress } else { super::Direction::Egress }
    }

    /// The flag bits.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes the 8 bits of one field")]
    pub const fn flags(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// True if all bits of `flag` are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, flag: u8) -> bool {
        self.flags() & flag == flag
    }

    /// The slot's revision under which the flow was judged last.
    #[must_use]
    #[inline(always)]
    pub const fn revision(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same with another state.
    #[must_use]
    #[inline(always)]
    pub const fn with_state(self, state: FlowState) -> Self {
        Self(self.0 & !0xff | state as u64)
    }

    /// The same with `flag` set.
    #[must_use]
    #[inline(always)]
    pub const fn with_flag(self, flag: u8) -> Self {
        Self(self.0 | (flag as u64) << 16)
    }

    /// The same with `flag` cleared.
    #[must_use]
    #[inline(always)]
    pub const fn without_flag(self, flag: u8) -> Self {
        Self(self.0 & !((flag as u64) << 16))
    }

    /// The same under another revision.
    #[must_use]
    #[inline(always)]
    pub const fn with_revision(self, revision: u32) -> Self {
        Self(self.0 & 0xffff_ffff | (revision as u64) << 32)
    }
}

/// A flow entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// State and revision, see [`FlowWord`].
    pub word: FlowWord,
    /// Jiffies (low 32 bits) of the last packet.
    pub last_seen: u32,
    /// Slot of the local pod that opened the flow from behind a masquerade; `SLOT_NONE` if the peer's address tells who it is.
    pub origin: u16,
    /// Low half of the flow's place in its ring: a key that is at another place too is at that one by chance.
    pub place: u16,
}
assert_wire_layout!(Flow, size = 16, align = 8, { word: FlowWord, last_seen: u32, origin: u16, place: u16 });

/// How far a slot has come in its stretch of each ring of keys. A new entry takes the place at the head, and what was there
/// leaves its table: a pod uses its own entries again and never another's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingHeads {
    /// In `FLOWS_V4_RING`.
    pub flows_v4: u32,
    /// In `FLOWS_V6_RING`.
    pub flows_v6: u32,
    /// In `UNANSWERED_V4_RING`.
    pub unanswered_v4: u32,
    /// In `UNANSWERED_V6_RING`.
    pub unanswered_v6: u32,
    /// In `BACKENDS_RING`.
    pub backends: u32,
    /// Always zero.
    pub pad: u32,
}
assert_wire_layout!(RingHeads, size = 24, align = 4, {
    flows_v4: u32, flows_v6: u32, unanswered_v4: u32, unanswered_v6: u32, backends: u32, pad: u32
});

/// Where a service's translation led a deferred flow, and policy allowed it to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The backend's address, network order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Its port, host order.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
}
assert_wire_layout!(Backend, size = 20, align = 4, { address: [u32; 4], port: u16, protocol: u8, pad: u8 });

/// What became of a datagram's first fragment, in one word that one store changes. Cells are indexed by slot and hash, so
/// that one pod's datagrams never take the room of another's; a later datagram in the same cell takes its place.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentCell(pub u64);
assert_wire_layout!(FragmentCell, size = 8, align = 8, { 0: u64 });

impl FragmentCell {
    /// Cells of a slot, a power of two.
    pub const PER_SLOT: u32 = 2_048;
    /// Jiffies to one tick of the cell's clock, as a shift: 16 bits last more than a quarter of an hour.
    pub const TICK_SHIFT: u32 = 4;
    const FINGERPRINT: u64 = !0xff_ffff;

    /// The cell of a datagram of `slot` with this fingerprint.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the cell")]
    pub const fn index(slot: u16, fingerprint: u64) -> u32 {
        slot as u32 * Self::PER_SLOT + (fingerprint as u32 & (Self::PER_SLOT - 1))
    }

    /// Cells for `slots` slots.
    #[must_use]
    pub const fn entries(slots: u32) -> u32 {
        slots * Self::PER_SLOT
    }

    /// A first fragment that was judged `reason` at `now` (jiffies).
    #[must_use]
    #[inline(always)]
    pub const fn new(fingerprint: u64, now: u32, reason: Reason) -> Self {
        let ticks = ((now >> Self::TICK_SHIFT) & 0xffff) as u64;
        Self((fingerprint & Self::FINGERPRINT) | (ticks << 8) | reason as u64)
    }

    /// The fingerprint's bits and the reason, without the time.
    #[must_use]
    pub const fn timeless(self) -> u64 {
        self.0 & !0xff_ff00
    }

    /// When it was written, in ticks of the cell's clock.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "takes the 16 bits of one field")]
    pub const fn ticks(self) -> u16 {
        (self.0 >> 8) as u16
    }

    /// The same, written so many jiffies earlier.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the clock has 16 bits")]
    pub const fn older(self, jiffies: u32) -> Self {
        let ticks = self.ticks().wrapping_sub((jiffies >> Self::TICK_SHIFT) as u16);
        Self(self.timeless() | (ticks as u64) << 8)
    }

    /// What later fragments of the datagram with this fingerprint are judged; none if its first one was not seen within
    /// `limit` jiffies.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes 16 bits of the clock and 8 of the reason")]
    pub const fn for_later(self, fingerprint: u64, now: u32, limit: u32) -> Option<Reason> {
        const DEFERRED: u8 = Reason::Deferred as u8;
        const TO_OWN_NODE: u8 = Reason::ToOwnNode as u8;
        let age = ((now >> Self::TICK_SHIFT) as u16).wrapping_sub((self.0 >> 8) as u16);
        // Another CPU may have written it in the tick after `now` was read.
        let age = if age == u16::MAX { 0 } else { age };
        if self.0 == 0 || (self.0 ^ fingerprint) & Self::FINGERPRINT != 0 || age as u32 > limit >> Self::TICK_SHIFT {
            return None;
        }
        Some(match self.0 as u8 {
            DEFERRED => Reason::Deferred,
            TO_OWN_NODE => Reason::ToOwnNode,
            denied if denied >= Reason::FIRST_DROP => Reason::FragmentOfDenied,
            _ => Reason::FragmentOfAllowed,
        })
    }
}
