//! What the maps hold now, as far as this process knows: read from the pins at start, then followed operation by
//! operation. `diff` compares it with what is desired, so that whatever failed is simply found again.

use std::collections::BTreeMap;

use netpol_common::abi::{AllowKey, Direction, PolicyWord};

use super::desired::{Tables, Touched};
use super::ids::NumbersInUse;
use super::plan::Op;

/// What the maps hold now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Everything but the words.
    pub tables: Tables,
    /// The word of each slot; a slot that was never written holds the zero word. Revisions go on from these.
    pub words: BTreeMap<u16, PolicyWord>,
}

impl Installed {
    /// The word of `slot`.
    #[must_use]
    pub fn word(&self, slot: u16) -> PolicyWord {
        self.words.get(&slot).copied().unwrap_or_default()
    }

    /// Everything that is there, for the first comparison after a start.
    #[must_use]
    pub fn everything(&self) -> Touched {
        Touched::everything(&self.tables, self.words.keys().copied())
    }

    /// The numbers that are in use, which the compiler must not hand out until they are gone.
    #[must_use]
    pub fn numbers(&self) -> NumbersInUse {
        let mut numbers = NumbersInUse::default();
        numbers.identities.extend(self.tables.addresses.values().chain(self.tables.cidrs.values()));
        for (key, value) in self.tables.allow_entries() {
            numbers.policies.insert(key.policy);
            numbers.identities.insert(key.identity);
            numbers.port_sets.extend([value.tcp, value.udp, value.sctp]);
        }
        for word in self.words.values() {
            numbers.policies.extend(Direction::ALL.map(|direction| word.policy(direction)));
        }
        numbers
    }

    /// Takes note of an operation that was carried out.
    pub fn record(&mut self, op: &Op) {
        let tables = &mut self.tables;
        match op {
            Op::WritePortSet { number, bits } => {
                tables.port_sets.insert(*number, bits.clone());
            }
            Op::WriteAllow(key, value) => {
                tables.allow.entry(key.policy).or_default().insert(key.identity, *value);
            }
            Op::RemoveAllow(key) => remove_allow(tables, *key),
            Op::WriteAddress(address, identity) => {
                tables.addresses.insert(*address, *identity);
            }
            Op::RemoveAddress(address) => {
                tables.addresses.remove(address);
            }
            Op::WriteCidr(region, identity) => {
                tables.cidrs.insert(*region, *identity);
            }
            Op::RemoveCidr(region) => {
                tables.cidrs.remove(region);
            }
            Op::WritePolicyWord { slot, word } => {
                self.words.insert(*slot, *word);
            }
        }
    }
}

fn remove_allow(tables: &mut Tables, key: AllowKey) {
    let Some(row) = tables.allow.get_mut(&key.policy) else { return };
    row.remove(&key.identity);
    if row.is_empty() {
        tables.allow.remove(&key.policy);
    }
}
