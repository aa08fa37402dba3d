//! Signatures and their numbers, the identities.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::abi::IDENTITY_NONE;

use super::content::Signature;
use super::criteria::{Criteria, CriterionId};
use crate::datapath::ids::Numbers;

struct Entry {
    key: Arc<BTreeSet<CriterionId>>,
    signature: Arc<Signature>,
    /// Addresses and regions that have it.
    uses: usize,
}

/// All identities that are in the maps, those that nothing has any more included until they are dropped.
pub(super) struct Identities {
    ids: BTreeMap<Arc<BTreeSet<CriterionId>>, u32>,
    entries: BTreeMap<u32, Entry>,
    unused: BTreeSet<u32>,
    numbers: Numbers,
    nobody: Arc<Signature>,
}

impl Identities {
    pub(super) fn new(found: impl IntoIterator<Item = u32>) -> Self {
        Self {
            ids: BTreeMap::new(),
            entries: BTreeMap::new(),
            unused: BTreeSet::new(),
            numbers: Numbers::new(IDENTITY_NONE + 1, u32::MAX, found),
            nobody: Arc::default(),
        }
    }

    /// The identity of a signature for one more address or region, and whether it is a new one. `None` if there are no
    /// more numbers.
    pub(super) fn acquire(&mut self, met: BTreeSet<CriterionId>, criteria: &Criteria) -> Option<(u32, bool)> {
        if met.is_empty() {
            return Some((IDENTITY_NONE, false));
        }
        if let Some(id) = self.ids.get(&met) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.uses += 1;
                self.unused.remove(id);
            }
            return Some((*id, false));
        }
        let id = self.numbers.allocate()?;
        let known = met.iter().filter_map(|criterion| Some((*criterion, criteria.get(*criterion)?.clone())));
        let signature = Arc::new(Signature { criteria: known.collect() });
        let key = Arc::new(met);
        self.ids.insert(key.clone(), id);
        self.entries.insert(id, Entry { key, signature, uses: 1 });
        Some((id, true))
    }

    /// One address or region less has this identity.
    pub(super) fn release(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.uses = entry.uses.saturating_sub(1);
        if entry.uses == 0 {
            self.unused.insert(id);
        }
    }

    /// Identities that nothing has.
    pub(super) fn unused(&self) -> BTreeSet<u32> {
        self.unused.clone()
    }

    /// Drops an identity, if still nothing has it. True if so.
    pub(super) fn drop_unused(&mut self, id: u32, step: u64) -> bool {
        if !self.unused.remove(&id) {
            return false;
        }
        if let Some(entry) = self.entries.remove(&id) {
            self.ids.remove(&entry.key);
        }
        self.numbers.release(id, step);
        true
    }

    /// Every identity with its signature, the empty one first.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &Arc<Signature>)> {
        let entries = self.entries.iter().map(|(id, entry)| (*id, &entry.signature));
        std::iter::once((IDENTITY_NONE, &self.nobody)).chain(entries)
    }

    pub(super) fn signature(&self, id: u32) -> Option<&Arc<Signature>> {
        if id == IDENTITY_NONE {
            return Some(&self.nobody);
        }
        self.entries.get(&id).map(|entry| &entry.signature)
    }

    /// See [`Numbers::carried_out`].
    pub(super) fn carried_out(&mut self, step: u64) -> Vec<u32> {
        self.numbers.carried_out(step)
    }
}
