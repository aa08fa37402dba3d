//! Desired against installed contents -> [`Plan`]: which operations, in which order, and what they do to each slot.
//!
//! The order is what makes a change safe (see [`Plan`]). Three things need care:
//! - A region that goes away is first given the identity that it will fall to, and removed at the end: removing it at once
//!   would show the old contents of the larger region for a moment. The same for exact addresses.
//! - A slot gets a newer revision only if one of its answers changes, as a new revision empties its flow cache.
//! - Words left by an earlier run name policy ids that the desired contents do not know. They get entries for new
//!   identities too ([`bridge`]), so that a restart cuts nothing while it passes from the old numbers to the new ones.

mod bridge;
mod effect;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::abi::PolicyWord;

use super::desired::{DesiredDatapath, PolicyIds, Touched};
use super::installed::Installed;
use super::plan::{Effect, IdentityMove, Op, Plan, SlotChange};
use effect::Effects;

/// Distinct (from, to) pairs of identity moves.
type Pairs = BTreeSet<(u32, u32)>;

/// The plan that makes `installed` what is desired, wherever `touched` says that they may differ.
#[must_use]
pub fn diff(installed: &Installed, desired: &DesiredDatapath, touched: &Touched) -> Plan {
    let mut plan = Plan { port_sets: port_sets(installed, desired, touched), ..Plan::default() };
    let mut removals = Removals::default();
    allow_entries(installed, desired, touched, &mut plan.allow, &mut removals);
    for address in &touched.addresses {
        address_move(installed, desired, *address, &mut plan.moves, &mut removals);
    }
    let mut regions: Vec<&IpNet> = touched.cidrs.iter().collect();
    regions.sort_by_key(|region| Reverse(region.prefix_len()));
    for region in regions {
        region_move(installed, desired, *region, &mut plan.moves, &mut removals);
    }
    let pairs: Pairs = plan.moves.iter().filter(|one| one.from != one.to).map(|one| (one.from, one.to)).collect();
    let bridged = bridge::entries(installed, desired, &pairs);
    for (key, value) in &bridged {
        plan.allow.push(Op::WriteAllow(*key, *value));
        removals.allow.push(Op::RemoveAllow(*key));
    }
    let effects = Effects::new(installed, desired, &pairs, &touched.rewritten, &bridged);
    plan.words = words(installed, desired, touched, &effects);
    plan.tightened = effects.tightened();
    plan.removals = removals.ordered();
    plan
}

/// What is to be removed, by kind: names before what they name.
#[derive(Default)]
struct Removals {
    cidrs: Vec<Op>,
    addresses: Vec<Op>,
    allow: Vec<Op>,
}

impl Removals {
    fn ordered(self) -> Vec<Op> {
        [self.cidrs, self.addresses, self.allow].concat()
    }
}

fn port_sets(installed: &Installed, desired: &DesiredDatapath, touched: &Touched) -> Vec<Op> {
    let wanted = touched.port_sets.iter().filter_map(|number| Some((*number, desired.tables.port_sets.get(number)?)));
    wanted
        .filter(|(number, bits)| installed.tables.port_sets.get(number) != Some(*bits))
        .map(|(number, bits)| Op::WritePortSet { number, bits: bits.clone() })
        .collect()
}

fn allow_entries(
    installed: &Installed,
    desired: &DesiredDatapath,
    touched: &Touched,
    writes: &mut Vec<Op>,
    removals: &mut Removals,
) {
    for key in touched.allow.union(&touched.rewritten) {
        match (installed.tables.allow_entry(*key), desired.tables.allow_entry(*key)) {
            (Some(_), None) => removals.allow.push(Op::RemoveAllow(*key)),
            (have, Some(want)) if have != Some(want) => writes.push(Op::WriteAllow(*key, want)),
            (Some(_) | None, Some(_)) | (None, None) => {}
        }
    }
}

fn address_move(
    installed: &Installed,
    desired: &DesiredDatapath,
    address: IpAddr,
    moves: &mut Vec<IdentityMove>,
    removals: &mut Removals,
) {
    let (from, to) = (installed.tables.identity_of(address), desired.tables.identity_of(address));
    match (installed.tables.addresses.get(&address), desired.tables.addresses.get(&address)) {
        (have, Some(want)) if have != Some(want) => {
            moves.push(IdentityMove { op: Op::WriteAddress(address, *want), from, to });
        }
        (Some(have), None) => {
            if installed.tables.region_identity(address.into()) == to {
                moves.push(IdentityMove { op: Op::RemoveAddress(address), from, to });
            } else {
                if *have != to {
                    moves.push(IdentityMove { op: Op::WriteAddress(address, to), from, to });
                }
                removals.addresses.push(Op::RemoveAddress(address));
            }
        }
        (Some(_) | None, Some(_)) | (None, None) => {}
    }
}

fn region_move(
    installed: &Installed,
    desired: &DesiredDatapath,
    region: IpNet,
    moves: &mut Vec<IdentityMove>,
    removals: &mut Removals,
) {
    let (from, to) = (installed.tables.region_identity(region), desired.tables.region_identity(region));
    match (installed.tables.cidrs.get(&region), desired.tables.cidrs.get(&region)) {
        (have, Some(want)) if have != Some(want) => {
            moves.push(IdentityMove { op: Op::WriteCidr(region, *want), from, to });
        }
        (Some(have), None) => {
            if *have != to {
                moves.push(IdentityMove { op: Op::WriteCidr(region, to), from, to });
            }
            removals.cidrs.push(Op::RemoveCidr(region));
        }
        (Some(_) | None, Some(_)) | (None, None) => {}
    }
}

/// The words to write: of slots whose policy ids change, that passed to another pod, or one of whose answers changes.
fn words(
    installed: &Installed,
    desired: &DesiredDatapath,
    touched: &Touched,
    effects: &Effects<'_>,
) -> Vec<SlotChange> {
    let mut slots: BTreeSet<u16> = touched.slots.union(&touched.reassigned).copied().collect();
    if effects.any_moves() {
        slots.extend(desired.words.keys());
    }
    let mut changes = Vec::new();
    for slot in slots {
        let before = installed.word(slot);
        // A slot that is nobody's is closed: its number, and the policy ids in it, may come to mean something else.
        let ids = desired.words.get(&slot).copied().unwrap_or(PolicyIds::DENY);
        let (mut ingress, mut egress) = effects.of_word(before, ids);
        if touched.reassigned.contains(&slot) {
            // The flows of the pod that had the slot before must not pass for those of the new one.
            (ingress, egress) = (Effect::Tightening, Effect::Tightening);
        }
        if ingress != Effect::Unchanged || egress != Effect::Unchanged {
            let after = PolicyWord::new(ids.ingress, ids.egress, before.revision().wrapping_add(1));
            changes.push(SlotChange { slot, before, after, ingress, egress });
        }
    }
    changes
}
