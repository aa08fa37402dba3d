//! What a change does to the answers of a policy id, or of a slot that passes from one id to another.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use netpol_common::abi::{
    AllowKey, AllowValue, Direction, IDENTITY_NONE, POLICY_DENY, POLICY_NOT_ISOLATED, PolicyWord,
};

use super::Pairs;
use crate::datapath::desired::{Answer, DesiredDatapath, PolicyIds};
use crate::datapath::installed::Installed;
use crate::datapath::plan::Effect;

/// Compares answers before and after a change.
pub(super) struct Effects<'a> {
    installed: &'a Installed,
    desired: &'a DesiredDatapath,
    pairs: &'a Pairs,
    rewritten: &'a BTreeSet<AllowKey>,
    bridged: &'a BTreeMap<AllowKey, AllowValue>,
    /// Slots share policy ids, so the same question comes up often.
    known: RefCell<BTreeMap<(u16, u16), Effect>>,
    /// Identities that something has afterwards; made only if it matters.
    in_use: OnceCell<BTreeSet<u32>>,
}

impl<'a> Effects<'a> {
    pub(super) fn new(
        installed: &'a Installed,
        desired: &'a DesiredDatapath,
        pairs: &'a Pairs,
        rewritten: &'a BTreeSet<AllowKey>,
        bridged: &'a BTreeMap<AllowKey, AllowValue>,
    ) -> Self {
        Self { installed, desired, pairs, rewritten, bridged, known: RefCell::default(), in_use: OnceCell::new() }
    }

    /// True if slots whose policy ids stay may still see other answers.
    pub(super) fn any_moves(&self) -> bool {
        !self.pairs.is_empty() || !self.rewritten.is_empty()
    }

    /// What happens to a slot, in both directions, that passes from a word to other policy ids.
    pub(super) fn of_word(&self, before: PolicyWord, after: PolicyIds) -> (Effect, Effect) {
        let of = |direction: Direction| self.of_ids(before.policy(direction), after.get(direction));
        (of(Direction::Ingress), of(Direction::Egress))
    }

    fn of_ids(&self, before: u16, after: u16) -> Effect {
        if let Some(effect) = self.known.borrow().get(&(before, after)) {
            return *effect;
        }
        let effect = self.compare_ids(before, after);
        self.known.borrow_mut().insert((before, after), effect);
        effect
    }

    fn compare_ids(&self, before: u16, after: u16) -> Effect {
        let mut effect = Effect::Unchanged;
        if before != after {
            effect = Effect::Widening.max(self.of_rows(before, after));
        }
        for (from, to) in self.pairs {
            effect = effect.max(compare(&self.installed.tables.answer(before, *from), &self.afterwards(after, *to)));
        }
        if before == after {
            for key in self.rewritten.iter().filter(|key| key.policy == before) {
                let now = self.installed.tables.answer(before, key.identity);
                effect = effect.max(compare(&now, &self.afterwards(after, key.identity)));
            }
        }
        effect
    }

    /// The change for addresses that keep their identity.
    fn of_rows(&self, before: u16, after: u16) -> Effect {
        match (before, after) {
            (POLICY_DENY, _) | (_, POLICY_NOT_ISOLATED) => Effect::Widening,
            (POLICY_NOT_ISOLATED, _) => Effect::Tightening,
            (before, after) => {
                let row = self.installed.tables.allow.get(&before);
                let kept = row.into_iter().flatten().all(|(identity, value)| {
                    let now = Answer::Entry(*value, &self.installed.tables);
                    // Who had an identity that nobody has afterwards is among those that move.
                    self.afterwards(after, *identity).covers(&now) || !self.is_in_use(*identity)
                });
                if kept { Effect::Widening } else { Effect::Tightening }
            }
        }
    }

    fn is_in_use(&self, identity: u32) -> bool {
        let tables = &self.desired.tables;
        let in_use = || tables.addresses.values().chain(tables.cidrs.values()).copied().collect();
        identity == IDENTITY_NONE || self.in_use.get_or_init(in_use).contains(&identity)
    }

    /// The answer once every entry is written.
    fn afterwards(&self, policy: u16, identity: u32) -> Answer<'_> {
        if policy <= POLICY_DENY || self.desired.tables.allow.contains_key(&policy) {
            return self.desired.tables.answer(policy, identity);
        }
        match self.bridged.get(&AllowKey::new(policy, identity)) {
            Some(value) => Answer::Entry(*value, &self.installed.tables),
            None => self.installed.tables.answer(policy, identity),
        }
    }

    /// The answer for an identity that may be about to go: what is written by the time that addresses move.
    fn while_moving(&self, policy: u16, identity: u32) -> Answer<'_> {
        match self.desired.tables.allow_entry(AllowKey::new(policy, identity)) {
            Some(value) => Answer::Entry(value, &self.desired.tables),
            None => self.installed.tables.answer(policy, identity),
        }
    }

    /// See `Plan::tightened`.
    pub(super) fn tightened(&self) -> BTreeMap<(u32, u32), BTreeSet<u16>> {
        let words = self.installed.words.values();
        let before = words.flat_map(|word| Direction::ALL.map(|direction| word.policy(direction)));
        let after = self.desired.words.values().flat_map(|ids| [ids.ingress, ids.egress]);
        let policies: BTreeSet<u16> = before.chain(after).filter(|id| *id > POLICY_DENY).collect();
        let mut tightened = BTreeMap::new();
        for (from, to) in self.pairs {
            let lose = |policy: &u16| !self.afterwards(*policy, *to).covers(&self.while_moving(*policy, *from));
            let losing: BTreeSet<u16> = policies.iter().copied().filter(lose).collect();
            if !losing.is_empty() {
                tightened.insert((*from, *to), losing);
            }
        }
        tightened
    }
}

fn compare(before: &Answer<'_>, after: &Answer<'_>) -> Effect {
    if !after.covers(before) {
        Effect::Tightening
    } else if !before.covers(after) {
        Effect::Widening
    } else {
        Effect::Unchanged
    }
}
