//! The pods of this node, the contents that isolate them, and the contents' numbers, the policy ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::abi::{POLICY_DENY, POLICY_FIRST};

use super::content::Content;
use crate::cluster::model::PodKey;
use crate::datapath::ids::Numbers;

struct Entry {
    content: Arc<Content>,
    /// Slots, counted once for each direction, that have it.
    uses: usize,
}

/// Slots and policy ids, those that no slot has any more included until they are dropped.
pub(super) struct Subjects {
    pub(super) slots: BTreeMap<u16, PodKey>,
    by_pod: BTreeMap<PodKey, BTreeSet<u16>>,
    ids: BTreeMap<Arc<Content>, u16>,
    entries: BTreeMap<u16, Entry>,
    unused: BTreeSet<u16>,
    numbers: Numbers,
    /// Slots for which there was no policy id left.
    pub(super) refused: BTreeSet<u16>,
}

impl Subjects {
    pub(super) fn new(last: u16, found: impl IntoIterator<Item = u16>) -> Self {
        let found = found.into_iter().map(u32::from);
        Self {
            slots: BTreeMap::new(),
            by_pod: BTreeMap::new(),
            ids: BTreeMap::new(),
            entries: BTreeMap::new(),
            unused: BTreeSet::new(),
            numbers: Numbers::new(u32::from(POLICY_FIRST), u32::from(last), found),
            refused: BTreeSet::new(),
        }
    }

    /// Gives a slot to a pod, or to nobody.
    pub(super) fn set_slot(&mut self, slot: u16, pod: Option<PodKey>) {
        if let Some(before) = self.slots.remove(&slot)
            && let Some(slots) = self.by_pod.get_mut(&before)
        {
            slots.remove(&slot);
            if slots.is_empty() {
                self.by_pod.remove(&before);
            }
        }
        if let Some(pod) = pod {
            self.by_pod.entry(pod.clone()).or_default().insert(slot);
            self.slots.insert(slot, pod);
        }
    }

    pub(super) fn slots_of(&self, pod: &PodKey) -> BTreeSet<u16> {
        self.by_pod.get(pod).cloned().unwrap_or_default()
    }

    pub(super) fn is_local(&self, pod: &PodKey) -> bool {
        self.by_pod.contains_key(pod)
    }

    /// Local pods of a namespace.
    pub(super) fn local_in(&self, namespace: &str) -> impl Iterator<Item = &PodKey> {
        self.by_pod.keys().filter(move |pod| *pod.namespace == *namespace)
    }

    /// The policy id of a content for one more slot, and whether it is a new one; the deny id if there is no number left.
    pub(super) fn acquire(&mut self, content: Content) -> (u16, bool) {
        if let Some(id) = self.ids.get(&content) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.uses += 1;
                self.unused.remove(id);
            }
            return (*id, false);
        }
        let Some(id) = self.numbers.allocate().and_then(|number| u16::try_from(number).ok()) else {
            return (POLICY_DENY, false);
        };
        let content = Arc::new(content);
        self.ids.insert(content.clone(), id);
        self.entries.insert(id, Entry { content, uses: 1 });
        (id, true)
    }

    /// One slot less has this policy id in some direction.
    pub(super) fn release(&mut self, id: u16) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.uses = entry.uses.saturating_sub(1);
        if entry.uses == 0 {
            self.unused.insert(id);
        }
    }

    /// Policy ids that no slot has.
    pub(super) fn unused(&self) -> BTreeSet<u16> {
        self.unused.clone()
    }

    /// Drops a policy id, if still no slot has it, and returns what it stood for.
    pub(super) fn drop_unused(&mut self, id: u16, step: u64) -> Option<Arc<Content>> {
        if !self.unused.remove(&id) {
            return None;
        }
        let entry = self.entries.remove(&id)?;
        self.ids.remove(&entry.content);
        self.numbers.release(u32::from(id), step);
        Some(entry.content)
    }

    /// Every policy id with what it stands for.
    pub(super) fn all(&self) -> impl Iterator<Item = (u16, &Arc<Content>)> {
        self.entries.iter().map(|(id, entry)| (*id, &entry.content))
    }

    pub(super) fn content(&self, id: u16) -> Option<&Arc<Content>> {
        self.entries.get(&id).map(|entry| &entry.content)
    }

    /// See [`Numbers::carried_out`].
    pub(super) fn carried_out(&mut self, step: u64) -> Vec<u16> {
        self.numbers.carried_out(step).into_iter().filter_map(|number| u16::try_from(number).ok()).collect()
    }
}
