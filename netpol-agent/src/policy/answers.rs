//! The allow table: what each content allows each signature, with port sets numbered and capacities kept.

use std::collections::BTreeMap;

use netpol_common::abi::{AllowKey, AllowValue, PortRule};

use super::limits::Limits;
use super::ports::{Allowed, PortRanges};
use crate::datapath::desired::{DesiredDatapath, Touched};
use crate::datapath::ids::Numbers;

/// The desired contents and the note of what changes in them.
#[derive(Default)]
pub(super) struct Output {
    pub(super) desired: DesiredDatapath,
    pub(super) touched: Touched,
}

/// Why an answer is narrower than written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shortage {
    /// The allow table is full: the peer is allowed nothing.
    AllowEntries,
    /// All port sets are in use: the peer is allowed no port of some protocol.
    PortSets,
}

struct SetUse {
    number: u16,
    uses: usize,
}

/// Port set numbers and the entries that did not fit.
pub(super) struct Answers {
    sets: BTreeMap<PortRanges, SetUse>,
    by_number: BTreeMap<u16, PortRanges>,
    numbers: Numbers,
    /// Entries in the map; those erased in this step count until its end, as removals come last.
    entries: usize,
    erased: usize,
    capacity: usize,
    max_sets: usize,
    refused: BTreeMap<AllowKey, Shortage>,
}

impl Answers {
    pub(super) fn new(limits: &Limits, found: impl IntoIterator<Item = u16>) -> Self {
        Self {
            sets: BTreeMap::new(),
            by_number: BTreeMap::new(),
            numbers: Numbers::new(
                u32::from(PortRule::FIRST_SET),
                u32::from(limits.last_port_set),
                found.into_iter().map(u32::from),
            ),
            entries: 0,
            erased: 0,
            capacity: limits.allow,
            max_sets: limits.port_sets,
            refused: BTreeMap::new(),
        }
    }

    /// Entries that are narrower than written.
    pub(super) fn refused(&self) -> &BTreeMap<AllowKey, Shortage> {
        &self.refused
    }

    /// Writes what a content allows a signature; nothing at all has no entry.
    pub(super) fn write(&mut self, key: AllowKey, allowed: &Allowed, step: u64, out: &mut Output) {
        let before = out.desired.tables.allow_entry(key);
        self.refused.remove(&key);
        let value = self.encode(key, allowed, out);
        let row = out.desired.tables.allow.entry(key.policy).or_default();
        let fits = before.is_some() || self.entries < self.capacity;
        if value != AllowValue::default() && fits {
            self.entries += usize::from(before.is_none());
            row.insert(key.identity, value);
            out.touched.allow.insert(key);
        } else if value != AllowValue::default() {
            self.refused.insert(key, Shortage::AllowEntries);
            self.release_sets(value, step, out);
        } else if row.remove(&key.identity).is_some() {
            self.erased += 1;
            out.touched.allow.insert(key);
        }
        if let Some(before) = before {
            self.release_sets(before, step, out);
        }
    }

    /// Removes an entry.
    pub(super) fn erase(&mut self, key: AllowKey, step: u64, out: &mut Output) {
        self.refused.remove(&key);
        let removed = out.desired.tables.allow.get_mut(&key.policy).and_then(|row| row.remove(&key.identity));
        if let Some(value) = removed {
            self.erased += 1;
            out.touched.allow.insert(key);
            self.release_sets(value, step, out);
        }
    }

    /// Removes all entries of a policy id.
    pub(super) fn erase_policy(&mut self, policy: u16, step: u64, out: &mut Output) {
        let row = out.desired.tables.allow.get(&policy).into_iter().flatten();
        let refused = self.refused.keys().filter(|key| key.policy == policy).map(|key| key.identity);
        let identities: Vec<u32> = row.map(|(identity, _)| *identity).chain(refused).collect();
        for identity in identities {
            self.erase(AllowKey::new(policy, identity), step, out);
        }
        out.desired.tables.allow.remove(&policy);
    }

    /// What was erased makes room from the next step on.
    pub(super) fn end_step(&mut self) {
        self.entries -= std::mem::take(&mut self.erased);
    }

    /// See [`Numbers::carried_out`].
    pub(super) fn carried_out(&mut self, step: u64) {
        self.numbers.carried_out(step);
    }

    fn encode(&mut self, key: AllowKey, allowed: &Allowed, out: &mut Output) -> AllowValue {
        let rules = [&allowed.ports.tcp, &allowed.ports.udp, &allowed.ports.sctp].map(|ranges| self.rule(ranges, out));
        if rules.contains(&None) {
            self.refused.insert(key, Shortage::PortSets);
        }
        let [tcp, udp, sctp] = rules.map(|rule| rule.unwrap_or(PortRule::None).encode());
        AllowValue { tcp, udp, sctp, other: u16::from(allowed.other) }
    }

    fn rule(&mut self, ranges: &PortRanges, out: &mut Output) -> Option<PortRule> {
        if ranges.is_empty() {
            return Some(PortRule::None);
        }
        if ranges.is_all() {
            return Some(PortRule::All);
        }
        if let Some(set) = self.sets.get_mut(ranges) {
            set.uses += 1;
            return Some(PortRule::Set(set.number));
        }
        if self.sets.len() >= self.max_sets {
            return None;
        }
        let number = u16::try_from(self.numbers.allocate()?).ok()?;
        self.sets.insert(ranges.clone(), SetUse { number, uses: 1 });
        self.by_number.insert(number, ranges.clone());
        out.desired.tables.port_sets.insert(number, ranges.bits());
        out.touched.port_sets.insert(number);
        Some(PortRule::Set(number))
    }

    fn release_sets(&mut self, value: AllowValue, step: u64, out: &mut Output) {
        for field in [value.tcp, value.udp, value.sctp] {
            let PortRule::Set(number) = PortRule::decode(field) else { continue };
            let Some(ranges) = self.by_number.get(&number) else { continue };
            let Some(set) = self.sets.get_mut(ranges) else { continue };
            set.uses -= 1;
            if set.uses == 0 {
                self.sets.remove(ranges);
                self.by_number.remove(&number);
                self.numbers.release(u32::from(number), step);
                out.desired.tables.port_sets.remove(&number);
            }
        }
    }
}
