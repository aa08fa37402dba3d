//! One plan being carried out, phase by phase; see the module above for the rules.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::abi::{AllowKey, AllowValue, Direction, POLICY_DENY, PolicyWord, PortRule};

use super::{Fallback, OnFailure, Outcome};
use crate::datapath::desired::{PolicyIds, Touched};
use crate::datapath::installed::Installed;
use crate::datapath::plan::{Effect, IdentityMove, MapStore, Op, Plan, SlotChange};

/// State of a run.
pub(super) struct Run<'a, S> {
    installed: &'a mut Installed,
    store: &'a mut S,
    on_failure: OnFailure,
    outcome: Outcome,
    unresolved: Touched,
    /// Identities that lack an entry: nobody may pass to them.
    unwritable: BTreeSet<u32>,
    /// Policy ids that lack an entry: no slot may pass to them.
    incomplete: BTreeSet<u16>,
    /// Policy ids that lack a changed entry of an identity that is in use.
    outdated: BTreeSet<u16>,
    /// Policy ids that would let an address do more than they should, as it could not be moved.
    overruled: BTreeSet<u16>,
    regions_failed: bool,
}

impl<'a, S: MapStore> Run<'a, S> {
    pub(super) fn new(installed: &'a mut Installed, store: &'a mut S, on_failure: OnFailure) -> Self {
        Self {
            installed,
            store,
            on_failure,
            outcome: Outcome::default(),
            unresolved: Touched::default(),
            unwritable: BTreeSet::new(),
            incomplete: BTreeSet::new(),
            outdated: BTreeSet::new(),
            overruled: BTreeSet::new(),
            regions_failed: false,
        }
    }

    pub(super) fn carry_out(&mut self, plan: &Plan) {
        self.write_entries(plan);
        let (regions, addresses): (Vec<&IdentityMove>, Vec<&IdentityMove>) =
            plan.moves.iter().partition(|one| matches!(one.op, Op::WriteCidr(..) | Op::RemoveCidr(_)));
        self.move_addresses(plan, addresses);
        self.move_regions(plan, regions);
        self.write_words(&plan.words);
        self.remove_unused(&plan.removals);
    }

    pub(super) fn finish(mut self) -> (Outcome, Touched) {
        self.outcome.complete = self.unresolved.is_empty();
        (self.outcome, self.unresolved)
    }

    /// Carries out as many of `ops` as the store takes; returns those that it refused.
    fn attempt(&mut self, ops: Vec<Op>) -> Vec<Op> {
        let mut refused = Vec::new();
        let mut rest = ops.as_slice();
        while !rest.is_empty() {
            let done = match self.store.apply(rest) {
                Ok(()) => rest.len(),
                Err((done, error)) => {
                    self.outcome.failures.push(error);
                    done
                }
            };
            let (written, left) = rest.split_at_checked(done).unwrap_or((rest, &[]));
            for op in written {
                self.installed.record(op);
            }
            rest = match left.split_first() {
                Some((failed, left)) => {
                    refused.push(failed.clone());
                    left
                }
                None => &[],
            };
        }
        refused
    }

    fn attempt_one(&mut self, op: Op) -> bool {
        self.attempt(vec![op]).is_empty()
    }

    fn write_entries(&mut self, plan: &Plan) {
        let mut missing_sets = BTreeSet::new();
        for op in self.attempt(plan.port_sets.clone()) {
            if let Op::WritePortSet { number, .. } = op {
                missing_sets.insert(number);
                self.unresolved.port_sets.insert(number);
            }
        }
        let names_missing = |op: &Op| matches!(op, Op::WriteAllow(_, value) if names_any(*value, &missing_sets));
        let (unnameable, writable): (Vec<Op>, Vec<Op>) = plan.allow.iter().cloned().partition(names_missing);
        let refused = self.attempt(writable);
        let targets: BTreeSet<u32> = plan.moves.iter().map(|one| one.to).collect();
        for op in unnameable.into_iter().chain(refused) {
            if let Op::WriteAllow(key, _) = op {
                self.entry_is_missing(key, &targets);
            }
        }
    }

    fn entry_is_missing(&mut self, key: AllowKey, targets: &BTreeSet<u32>) {
        self.unresolved.allow.insert(key);
        self.unresolved.rewritten.insert(key);
        self.incomplete.insert(key.policy);
        if targets.contains(&key.identity) {
            self.unwritable.insert(key.identity);
        } else {
            self.outdated.insert(key.policy);
        }
    }

    fn move_addresses(&mut self, plan: &Plan, moves: Vec<&IdentityMove>) {
        let (writable, unwritable): (Vec<&IdentityMove>, Vec<&IdentityMove>) =
            moves.into_iter().partition(|one| !self.unwritable.contains(&one.to));
        let refused = self.attempt(writable.iter().map(|one| one.op.clone()).collect());
        let failed = writable.into_iter().filter(|one| refused.contains(&one.op)).chain(unwritable);
        for one in failed {
            self.address_stays(one, plan.tightened.get(&(one.from, one.to)));
        }
    }

    /// The address could not be moved. `losing` are the policy ids that should let it do less from now on.
    fn address_stays(&mut self, one: &IdentityMove, losing: Option<&BTreeSet<u16>>) {
        let (Op::WriteAddress(address, _) | Op::RemoveAddress(address)) = &one.op else { return };
        self.unresolved.addresses.insert(*address);
        let Some(losing) = losing else {
            self.outcome.stale.insert(*address);
            return;
        };
        if self.attempt_one(Op::RemoveAddress(*address)) {
            self.outcome.removed.insert(*address);
        } else {
            self.outcome.stale.insert(*address);
            self.overruled.extend(losing);
        }
    }

    fn move_regions(&mut self, plan: &Plan, moves: Vec<&IdentityMove>) {
        for one in moves {
            let (Op::WriteCidr(region, _) | Op::RemoveCidr(region)) = &one.op else { continue };
            let possible = !self.regions_failed && !self.unwritable.contains(&one.to);
            if possible && self.attempt_one(one.op.clone()) {
                continue;
            }
            self.regions_failed = true;
            self.unresolved.cidrs.insert(*region);
            if let Some(losing) = plan.tightened.get(&(one.from, one.to)) {
                self.overruled.extend(losing);
            }
        }
    }

    fn write_words(&mut self, changes: &[SlotChange]) {
        let mut planned: BTreeMap<u16, (&SlotChange, PolicyIds)> = BTreeMap::new();
        for change in changes {
            planned.insert(change.slot, (change, self.possible_ids(change)));
        }
        let ops = planned.values().map(|(change, ids)| word_op(change, *ids)).collect();
        for op in self.attempt(ops) {
            if let Op::WritePolicyWord { slot, .. } = op
                && let Some((change, _)) = planned.get(&slot)
            {
                self.word_stays(change);
            }
        }
    }

    /// The ids that the slot can pass to: the desired ones, where nothing that they need is missing.
    fn possible_ids(&mut self, change: &SlotChange) -> PolicyIds {
        let mut ids = PolicyIds::DENY;
        for direction in Direction::ALL {
            let (before, after) = (change.before.policy(direction), change.after.policy(direction));
            let held_back = if change.changes_id(direction) {
                self.regions_failed || self.incomplete.contains(&after)
            } else {
                self.outdated.contains(&after)
            };
            let mut id = if held_back { before } else { after };
            let too_wide = held_back && change.effect(direction) == Effect::Tightening || self.overruled.contains(&id);
            if too_wide && self.on_failure == OnFailure::Deny {
                id = POLICY_DENY;
            }
            if held_back || too_wide {
                self.unresolved.slots.insert(change.slot);
                let fallback = if id == POLICY_DENY { Fallback::Denied } else { Fallback::Kept };
                self.outcome.slots.insert((change.slot, direction), fallback);
            }
            ids = ids.with(direction, id);
        }
        ids
    }

    /// The word could not be written. Where it should have taken something away, everything is taken away, if possible.
    fn word_stays(&mut self, change: &SlotChange) {
        self.unresolved.slots.insert(change.slot);
        // The revision is still to come even if no policy id changes.
        self.unresolved.reassigned.insert(change.slot);
        let tightens = |direction: &Direction| change.effect(*direction) == Effect::Tightening;
        let mut ids = PolicyIds {
            ingress: change.before.policy(Direction::Ingress),
            egress: change.before.policy(Direction::Egress),
        };
        for direction in Direction::ALL.into_iter().filter(tightens) {
            ids = ids.with(direction, POLICY_DENY);
        }
        let wanted = self.on_failure == OnFailure::Deny && Direction::ALL.iter().any(tightens);
        let denied = wanted && self.attempt_one(word_op(change, ids));
        for direction in Direction::ALL {
            if change.effect(direction) == Effect::Unchanged {
                continue;
            }
            let fallback = match (tightens(&direction), denied, wanted) {
                (true, true, _) => Fallback::Denied,
                (true, false, true) => Fallback::Stuck,
                (true, false, false) | (false, _, _) => Fallback::Kept,
            };
            self.outcome.slots.insert((change.slot, direction), fallback);
        }
    }

    /// Removals go last, and only once nothing can need what they remove any more. After a failure that is certain only
    /// of the entries of policy ids that no slot has; removing those makes room, which may be what was missing.
    fn remove_unused(&mut self, removals: &[Op]) {
        let healthy = self.unresolved.is_empty();
        let in_force = |policy: u16| {
            let mut words = self.installed.words.values();
            words.any(|word| Direction::ALL.iter().any(|direction| word.policy(*direction) == policy))
        };
        let safe = |op: &Op| healthy || matches!(op, Op::RemoveAllow(key) if !in_force(key.policy));
        let (safe, unsafe_now): (Vec<Op>, Vec<Op>) = removals.iter().cloned().partition(safe);
        let refused = self.attempt(safe);
        let left = unsafe_now.into_iter().chain(refused);
        for op in left {
            match op {
                Op::RemoveAllow(key) => self.unresolved.allow.insert(key),
                Op::RemoveAddress(address) => self.unresolved.addresses.insert(address),
                Op::RemoveCidr(region) => self.unresolved.cidrs.insert(region),
                Op::WritePortSet { .. }
                | Op::WriteAllow(..)
                | Op::WriteAddress(..)
                | Op::WriteCidr(..)
                | Op::WritePolicyWord { .. } => false,
            };
        }
    }
}

fn word_op(change: &SlotChange, ids: PolicyIds) -> Op {
    Op::WritePolicyWord { slot: change.slot, word: PolicyWord::new(ids.ingress, ids.egress, change.after.revision()) }
}

fn names_any(value: AllowValue, sets: &BTreeSet<u16>) -> bool {
    [value.tcp, value.udp, value.sctp].iter().any(|field| match PortRule::decode(*field) {
        PortRule::Set(number) => sets.contains(&number),
        PortRule::None | PortRule::All => false,
    })
}
