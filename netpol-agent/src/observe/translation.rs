//! How much of what pods send to services was judged behind the translation: a gap that grows is traffic that leaves
//! where nothing of ours sees it, or that nobody translates.
//!
//! In: a slot's counters. Out: figures. Pure.

use netpol_common::abi::{Direction, Reason};
use serde::Serialize;

use crate::datapath::store::SlotCounters;

/// Packets of one pod, or of all, that were to be judged where they leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// Let go at the pod's interface, to be judged later.
    pub deferred: u64,
    /// Judged where they left, or reached another pod.
    pub judged: u64,
    /// The difference: dropped on the way, answered by the node itself, on their way still, or unseen. Packets to
    /// the node's own ports are judged too where a service translates them, without having been counted as deferred.
    pub unjudged: u64,
}

impl Translation {
    /// The figures of one slot.
    #[must_use]
    pub fn of(counters: &SlotCounters) -> Self {
        let packets = |reason| counters.get(&(Direction::Egress, reason)).map_or(0, |counter| counter.packets);
        let judged = packets(Reason::AllowedAfterTranslation).saturating_add(packets(Reason::DeniedAfterTranslation));
        Self::default().plus(Self { deferred: packets(Reason::Deferred), judged, unjudged: 0 })
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        let deferred = self.deferred.saturating_add(other.deferred);
        let judged = self.judged.saturating_add(other.judged);
        Self { deferred, judged, unjudged: deferred.saturating_sub(judged) }
    }
}

#[cfg(test)]
mod tests {
    use netpol_common::abi::Counter;

    use super::*;

    fn counters(counts: &[(Direction, Reason, u64)]) -> SlotCounters {
        let counter = |packets| Counter { packets, bytes: 100 * packets };
        counts.iter().map(|&(direction, reason, packets)| ((direction, reason), counter(packets))).collect()
    }

    #[test]
    fn what_was_deferred_and_not_judged_is_the_gap() {
        let some = counters(&[
            (Direction::Egress, Reason::Deferred, 10),
            (Direction::Egress, Reason::AllowedAfterTranslation, 4),
            (Direction::Egress, Reason::DeniedAfterTranslation, 3),
            (Direction::Egress, Reason::Established, 50),
            (Direction::Ingress, Reason::AllowedAfterTranslation, 50),
        ]);
        let one = Translation::of(&some);
        assert_eq!(one, Translation { deferred: 10, judged: 7, unjudged: 3 });
        let other = Translation::of(&counters(&[(Direction::Egress, Reason::AllowedAfterTranslation, 1)]));
        assert_eq!(other, Translation { deferred: 0, judged: 1, unjudged: 0 });
        assert_eq!(one.plus(other), Translation { deferred: 10, judged: 8, unjudged: 2 });
        assert_eq!(Translation::of(&SlotCounters::new()), Translation::default());
    }
}
