//! Which numbers (policy ids, identities, port sets) are free.
//!
//! A number that is given back is used again only after a *later* plan has been carried out: a packet in flight, a flow
//! or an event may still hold it. Numbers found in pinned maps at start are avoided in the same way.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers that the maps of an earlier run hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumbersInUse {
    /// Policy ids.
    pub policies: BTreeSet<u16>,
    /// Identities.
    pub identities: BTreeSet<u32>,
    /// Port sets.
    pub port_sets: BTreeSet<u16>,
}

/// Hands out the numbers `first..=last`.
#[derive(Clone, Debug)]
pub struct Numbers {
    first: u32,
    last: u32,
    /// Where to look next: numbers come round again as late as possible.
    next: u32,
    used: BTreeSet<u32>,
    /// Numbers given back, with the step that no longer names them.
    quarantine: BTreeMap<u32, u64>,
}

impl Numbers {
    /// Numbers `first..=last`; those in `found` are in the pinned maps of an earlier run, and in quarantine until the
    /// plan after the first one, which removes them.
    #[must_use]
    pub fn new(first: u32, last: u32, found: impl IntoIterator<Item = u32>) -> Self {
        let quarantine: BTreeMap<u32, u64> = found.into_iter().map(|number| (number, 1)).collect();
        let next = quarantine.last_key_value().map_or(first, |(number, _)| number.saturating_add(1));
        let next = if (first..=last).contains(&next) { next } else { first };
        Self { first, last, next, used: BTreeSet::new(), quarantine }
    }

    /// A free number, or `None` when all are used or in quarantine.
    pub fn allocate(&mut self) -> Option<u32> {
        let from = self.next;
        let number = (from..=self.last).chain(self.first..from).find(|number| self.is_free(*number))?;
        self.used.insert(number);
        self.next = if number >= self.last { self.first } else { number + 1 };
        Some(number)
    }

    /// Gives a number back; `step` is the first that no longer names it.
    pub fn release(&mut self, number: u32, step: u64) {
        if self.used.remove(&number) {
            self.quarantine.insert(number, step);
        }
    }

    /// Ends the quarantine of what was given back before `step`, which has been carried out completely. Returns the
    /// numbers that are free now.
    pub fn carried_out(&mut self, step: u64) -> Vec<u32> {
        let free: Vec<u32> = self.quarantine.iter().filter(|(_, since)| **since < step).map(|(n, _)| *n).collect();
        for number in &free {
            self.quarantine.remove(number);
        }
        free
    }

    fn is_free(&self, number: u32) -> bool {
        !self.used.contains(&number) && !self.quarantine.contains_key(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn a_number_is_used_again_only_after_a_later_plan() {
        let mut numbers = Numbers::new(2, 3, []);
        assert_eq!((numbers.allocate(), numbers.allocate(), numbers.allocate()), (Some(2), Some(3), None));
        numbers.release(2, 7);
        assert_eq!(numbers.allocate(), None);
        assert!(numbers.carried_out(7).is_empty());
        assert_eq!(numbers.allocate(), None);
        assert_eq!(numbers.carried_out(8), [2]);
        assert_eq!(numbers.allocate(), Some(2));
    }

    #[test]
    fn numbers_of_an_earlier_run_wait_until_they_were_cleaned_away() {
        let mut numbers = Numbers::new(2, 4, [2, 3]);
        assert_eq!((numbers.allocate(), numbers.allocate()), (Some(4), None));
        assert!(numbers.carried_out(1).is_empty());
        assert_eq!(numbers.carried_out(2), [2, 3]);
        assert_eq!(numbers.allocate(), Some(2));
    }

    #[test]
    fn numbers_come_round_as_late_as_possible() {
        let mut numbers = Numbers::new(2, 4, []);
        assert_eq!(numbers.allocate(), Some(2));
        numbers.release(2, 1);
        numbers.carried_out(2);
        assert_eq!((numbers.allocate(), numbers.allocate(), numbers.allocate()), (Some(3), Some(4), Some(2)));
    }
}
