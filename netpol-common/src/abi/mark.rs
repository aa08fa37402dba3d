//! What a pod's packets carry in `skb->mark` through the node.

use super::SLOT_NONE;

/// Whose packet it is, as its mark says. It identifies a sender and never grants anything: who may set marks on the node
/// (`SO_MARK`, nftables) may speak for it anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// No pod of this node.
    None,
    /// A pod of this node, whose egress policy was applied where it sent the packet.
    Judged,
    /// The pod of this slot; its egress policy is to be applied where the packet leaves, after translation.
    Deferred(u16),
}

/// The bits of `skb->mark` that are ours. All of them set is [`Sender::Judged`], none [`Sender::None`], else a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    mask: u32,
    shift: u32,
}

impl Mark {
    /// The bits of `mask`, the lowest of which is at `shift` (the BPF target has no instruction to find it).
    #[must_use]
    #[inline(always)]
    pub const fn new(mask: u32, shift: u32) -> Self {
        Self { mask, shift: shift & 31 }
    }

    /// Slots that a mask tells apart, `SLOT_NONE` not among them.
    #[must_use]
    pub const fn slots(mask: u32) -> u32 {
        if mask == 0 { 0 } else { (mask >> mask.trailing_zeros()).saturating_sub(1) }
    }

    /// What `mark` says.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a slot has 16 bits; the loader refuses wider masks")]
    pub const fn read(self, mark: u32) -> Sender {
        let bits = mark & self.mask;
        if bits == 0 {
            Sender::None
        } else if bits == self.mask {
            Sender::Judged
        } else {
            Sender::Deferred((bits >> self.shift) as u16)
        }
    }

    /// `mark` with our bits saying `sender`, and its others kept.
    #[must_use]
    #[inline(always)]
    pub const fn write(self, mark: u32, sender: Sender) -> u32 {
        let bits = match sender {
            Sender::None | Sender::Deferred(SLOT_NONE) => 0,
            Sender::Judged => self.mask,
            Sender::Deferred(slot) => (slot as u32) << self.shift & self.mask,
        };
        mark & !self.mask | bits
    }
}
