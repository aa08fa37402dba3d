//! Entries that let words of an earlier run go on answering while addresses pass to the identities of this run.
//!
//! The policy behind such an id is not known any more, only its answers. For a new identity it gets what it allowed all
//! the addresses that now come together under it: where those answers differ, the part that they share.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::abi::{AllowKey, AllowValue, Direction, IDENTITY_NONE, POLICY_DENY, PortRule};

use super::Pairs;
use crate::datapath::desired::{Answer, DesiredDatapath, Tables};
use crate::datapath::installed::Installed;

/// The entries to add, for policy ids that only the installed words know. They go as soon as the words have moved.
pub(super) fn entries(
    installed: &Installed,
    desired: &DesiredDatapath,
    pairs: &Pairs,
) -> BTreeMap<AllowKey, AllowValue> {
    let mut bridged = BTreeMap::new();
    let unknown = unknown_policies(installed, desired);
    if unknown.is_empty() || pairs.is_empty() {
        return bridged;
    }
    // An identity that other addresses have already means something to the old policy: it must not be widened.
    let tables = &installed.tables;
    let in_use: BTreeSet<u32> = tables.addresses.values().chain(tables.cidrs.values()).copied().collect();
    for policy in unknown {
        let mut row: BTreeMap<u32, AllowValue> = BTreeMap::new();
        for (from, to) in pairs.iter().filter(|(_, to)| *to != IDENTITY_NONE && !in_use.contains(to)) {
            let value = tables.allow_entry(AllowKey::new(policy, *from)).unwrap_or_default();
            row.entry(*to).and_modify(|so_far| *so_far = shared(*so_far, value, tables)).or_insert(value);
        }
        bridged.extend(
            row.into_iter()
                .map(|(identity, value)| (AllowKey::new(policy, identity), value))
                .filter(|(key, value)| *value != AllowValue::default() && tables.allow_entry(*key).is_none()),
        );
    }
    bridged
}

fn unknown_policies(installed: &Installed, desired: &DesiredDatapath) -> BTreeSet<u16> {
    let words = installed.words.values();
    let ids = words.flat_map(|word| Direction::ALL.map(|direction| word.policy(direction)));
    ids.filter(|id| *id > POLICY_DENY && !desired.tables.allow.contains_key(id)).collect()
}

/// What both values allow; of two port sets neither of which holds the other, nothing.
fn shared(a: AllowValue, b: AllowValue, tables: &Tables) -> AllowValue {
    let only = |field: u16| AllowValue { tcp: field, ..AllowValue::default() };
    let covers =
        |wide: u16, narrow: u16| Answer::Entry(only(wide), tables).covers(&Answer::Entry(only(narrow), tables));
    let ports = |a: u16, b: u16| match (covers(a, b), covers(b, a)) {
        (true, _) => b,
        (false, true) => a,
        (false, false) => PortRule::None.encode(),
    };
    AllowValue {
        tcp: ports(a.tcp, b.tcp),
        udp: ports(a.udp, b.udp),
        sctp: ports(a.sctp, b.sctp),
        other: a.other.min(b.other),
    }
}
