//! The passes of a step: what changed -> subjects -> pods -> addresses and regions -> allow entries.
//!
//! Each pass looks only at what the ones before it found changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{AllowKey, Direction, IDENTITY_NONE, POLICY_DENY, POLICY_NOT_ISOLATED};

use super::{AddressCount, Compiler};
use crate::cluster::Change;
use crate::cluster::model::{IpBlock, Pod, PodKey, PolicyKey};
use crate::cluster::state::is_live;
use crate::datapath::desired::PolicyIds;
use crate::policy::content::{Content, Rule, normalise, rules_of};
use crate::policy::criteria::{Criterion, CriterionId};

/// What is to be looked at again.
#[derive(Default)]
pub(super) struct Work {
    slots: BTreeSet<u16>,
    pods: BTreeSet<PodKey>,
    addresses: BTreeSet<IpAddr>,
    regions: BTreeSet<IpNet>,
    entries: BTreeSet<AllowKey>,
    new_policies: BTreeSet<u16>,
    new_identities: BTreeSet<u32>,
    /// Rules in normal form, as several local pods share them.
    rules: BTreeMap<(PolicyKey, Direction), Arc<[Rule]>>,
}

impl Compiler {
    /// Carries changes through all passes.
    pub(super) fn carry_through(&mut self, mut work: Work) {
        for slot in std::mem::take(&mut work.slots) {
            self.isolate(slot, &mut work);
        }
        for pod in std::mem::take(&mut work.pods) {
            self.evaluate(&pod, &mut work);
        }
        for region in std::mem::take(&mut work.regions) {
            self.place_region(region, &mut work);
        }
        for address in std::mem::take(&mut work.addresses) {
            self.place_address(address, &mut work);
        }
        self.answer(&work);
    }

    /// Drops what nobody has any more. False if there is nothing to drop.
    pub(super) fn retire(&mut self) -> bool {
        let (policies, identities) = (self.subjects.unused(), self.identities.unused());
        if policies.is_empty() && identities.is_empty() {
            return false;
        }
        let (step, mut work) = (self.step(), Work::default());
        for policy in policies {
            let Some(content) = self.subjects.drop_unused(policy, step) else { continue };
            self.answers.erase_policy(policy, step, &mut self.out);
            for criterion in &content.criteria {
                self.release_criterion(*criterion, &mut work);
            }
        }
        self.carry_through(work);
        for identity in identities {
            if self.identities.drop_unused(identity, step) {
                let policies: Vec<u16> = self.subjects.all().map(|(policy, _)| policy).collect();
                for policy in policies {
                    self.answers.erase(AllowKey::new(policy, identity), step, &mut self.out);
                }
            }
        }
        true
    }

    /// Tries again what did not fit.
    pub(super) fn retry_refused(&mut self) {
        let mut work = Work {
            slots: std::mem::take(&mut self.subjects.refused),
            addresses: std::mem::take(&mut self.refused_addresses),
            entries: self.answers.refused().keys().copied().collect(),
            ..Work::default()
        };
        let blocks: Vec<(CriterionId, IpBlock)> =
            self.regions.refused().map(|(id, block)| (id, block.clone())).collect();
        for (id, block) in blocks {
            self.add_block(id, &block, &mut work);
        }
        self.carry_through(work);
    }

    pub(super) fn set_slot(&mut self, slot: u16, pod: Option<PodKey>, work: &mut Work) {
        self.impossible.remove(&slot);
        let possible = slot > 0 && u32::from(slot) < self.limits.slots;
        if let Some(pod) = pod.as_ref().filter(|_| !possible) {
            self.impossible.insert(slot, pod.clone());
        }
        let pod = pod.filter(|_| possible);
        if self.subjects.slots.contains_key(&slot) && pod.is_some() {
            self.out.touched.reassigned.insert(slot);
        }
        Arc::make_mut(&mut self.provenance).set_slot(slot, pod.clone());
        self.subjects.set_slot(slot, pod);
        work.slots.insert(slot);
    }

    /// Finds what a change of the cluster may change here.
    pub(super) fn note(&mut self, change: &Change, work: &mut Work) {
        match change {
            Change::Nothing | Change::Service(_) => {}
            Change::Namespace(name) => self.namespace_changed(name, work),
            Change::Pod { key, before, after } => {
                if self.state.namespace_labels(&key.namespace).is_none() || !self.peers.knows_namespace(&key.namespace)
                {
                    self.namespace_changed(&key.namespace, work);
                }
                work.pods.insert(key.clone());
                let pods = [before, after].map(|pod| pod.iter().flat_map(|pod| &pod.addresses));
                work.addresses.extend(pods.into_iter().flatten());
                let slots = self.subjects.slots_of(key);
                if let (Some(before), Some(after)) = (before, after)
                    && (before.uid != after.uid || before.addresses != after.addresses)
                {
                    self.out.touched.reassigned.extend(&slots);
                }
                work.slots.extend(slots);
            }
            Change::NetworkPolicy { key, before, after } => {
                let selects = |pod: &Pod| {
                    [before, after]
                        .iter()
                        .any(|policy| policy.as_ref().is_some_and(|policy| policy.subjects.matches(&pod.labels)))
                };
                let subjects = self.subjects.local_in(&key.namespace);
                let subjects = subjects.filter(|key| self.state.pod(key).is_some_and(|pod| selects(pod)));
                work.slots.extend(subjects.flat_map(|key| self.subjects.slots_of(key)));
            }
        }
    }

    fn namespace_changed(&mut self, name: &Arc<str>, work: &mut Work) {
        if self.peers.namespace_changed(name, &self.state, &self.criteria) {
            work.pods.extend(self.state.pods_in(name).map(|pod| pod.key.clone()));
        }
    }

    /// Finds out what isolates the pod in a slot.
    fn isolate(&mut self, slot: u16, work: &mut Work) {
        let before = self.out.desired.words.get(&slot).copied();
        self.subjects.refused.remove(&slot);
        let after = self.subjects.slots.get(&slot).cloned().map(|pod| match self.state.pod(&pod).cloned() {
            None => PolicyIds::DENY,
            Some(pod) => PolicyIds {
                ingress: self.policy_id(slot, &pod, Direction::Ingress, work),
                egress: self.policy_id(slot, &pod, Direction::Egress, work),
            },
        });
        for direction in Direction::ALL {
            if let Some(ids) = before {
                self.subjects.release(ids.get(direction));
            }
        }
        if before == after {
            return;
        }
        match after {
            Some(ids) => self.out.desired.words.insert(slot, ids),
            None => self.out.desired.words.remove(&slot),
        };
        self.out.touched.slots.insert(slot);
    }

    fn policy_id(&mut self, slot: u16, subject: &Pod, direction: Direction, work: &mut Work) -> u16 {
        if !is_live(subject) {
            return POLICY_NOT_ISOLATED;
        }
        let mut policies = BTreeMap::new();
        for policy in self.state.policies_in(&subject.key.namespace) {
            let Some(written) = rules_of(policy, direction) else { continue };
            if policy.subjects.matches(&subject.labels) {
                let rules = work.rules.entry((policy.key.clone(), direction));
                let rules = rules.or_insert_with(|| normalise(policy, written, &mut self.criteria));
                policies.insert(policy.key.clone(), rules.clone());
            }
        }
        if policies.is_empty() {
            return POLICY_NOT_ISOLATED;
        }
        let content = Content::new(direction, policies, subject, &mut self.criteria);
        let asked = content.criteria.clone();
        let (id, new) = self.subjects.acquire(content);
        if new {
            work.new_policies.insert(id);
            if let Some(content) = self.subjects.content(id) {
                Arc::make_mut(&mut self.provenance).add_policy(id, content.clone());
            }
            for criterion in asked {
                self.acquire_criterion(criterion, work);
            }
        } else if id == POLICY_DENY {
            self.subjects.refused.insert(slot);
            for criterion in asked {
                self.criteria.forget(criterion);
            }
            // What was just forgotten must not be taken from the notes of this step.
            work.rules.clear();
        }
        id
    }

    fn acquire_criterion(&mut self, id: CriterionId, work: &mut Work) {
        if !self.criteria.acquire(id) {
            return;
        }
        let Some(criterion) = self.criteria.get(id).cloned() else { return };
        match &*criterion {
            Criterion::Block(block) => self.add_block(id, block, work),
            Criterion::Pods { .. } | Criterion::PortName { .. } | Criterion::NamedPort { .. } => {
                work.pods.extend(self.peers.add(id, &criterion, &self.state));
            }
        }
    }

    fn release_criterion(&mut self, id: CriterionId, work: &mut Work) {
        if !self.criteria.release(id) {
            return;
        }
        let Some(criterion) = self.criteria.get(id).cloned() else { return };
        match &*criterion {
            Criterion::Block(block) => {
                self.mark_within(block, work);
                self.regions.remove(id, block);
            }
            Criterion::Pods { .. } | Criterion::PortName { .. } | Criterion::NamedPort { .. } => {
                work.pods.extend(self.peers.remove(id, &criterion, &mut self.criteria));
            }
        }
        self.criteria.forget(id);
    }

    fn add_block(&mut self, id: CriterionId, block: &IpBlock, work: &mut Work) {
        if self.regions.add(id, block, self.limits.cidrs) {
            self.mark_within(block, work);
        }
    }

    fn mark_within(&self, block: &IpBlock, work: &mut Work) {
        work.regions.extend(self.regions.within(block.cidr));
        let addresses = self.out.desired.tables.addresses.range(block.cidr.network()..=block.cidr.broadcast());
        work.addresses.extend(addresses.map(|(address, _)| *address));
    }

    fn evaluate(&mut self, key: &PodKey, work: &mut Work) {
        if self.peers.evaluate(key, &self.state, &mut self.criteria)
            && let Some(pod) = self.state.pod(key)
        {
            work.addresses.extend(&pod.addresses);
        }
    }

    fn place_address(&mut self, address: IpAddr, work: &mut Work) {
        self.refused_addresses.remove(&address);
        let before = self.out.desired.tables.addresses.get(&address).copied();
        let mut met = self.peers.met_at(address, &self.state);
        let after = if met.is_empty() {
            None
        } else if before.is_none() && self.address_count(address).present >= self.limits.addresses {
            // Without an entry it gets the answer of its region, whose signature is a part of its own.
            self.refused_addresses.insert(address);
            None
        } else {
            met.extend(self.regions.holding(address.into()));
            self.identity(met, work)
        };
        if let Some(before) = before {
            self.identities.release(before);
        }
        if before == after {
            return;
        }
        let count = self.address_count(address);
        count.present += usize::from(before.is_none());
        count.removed += usize::from(after.is_none());
        self.retry |= after.is_none() && !self.refused_addresses.is_empty();
        match after {
            Some(identity) => self.out.desired.tables.addresses.insert(address, identity),
            None => self.out.desired.tables.addresses.remove(&address),
        };
        self.out.touched.addresses.insert(address);
    }

    fn place_region(&mut self, region: IpNet, work: &mut Work) {
        let before = self.out.desired.tables.cidrs.get(&region).copied();
        let after = self.regions.is_region(region).then(|| {
            let holding = self.regions.holding(region);
            self.identity(holding, work).unwrap_or(IDENTITY_NONE)
        });
        if let Some(before) = before {
            self.identities.release(before);
        }
        if before == after {
            return;
        }
        match after {
            Some(identity) => self.out.desired.tables.cidrs.insert(region, identity),
            None => self.out.desired.tables.cidrs.remove(&region),
        };
        self.out.touched.cidrs.insert(region);
    }

    fn identity(&mut self, met: BTreeSet<CriterionId>, work: &mut Work) -> Option<u32> {
        let (identity, new) = self.identities.acquire(met, &self.criteria)?;
        if new {
            work.new_identities.insert(identity);
            if let Some(signature) = self.identities.signature(identity) {
                Arc::make_mut(&mut self.provenance).add_identity(identity, signature.clone());
            }
        }
        Some(identity)
    }

    fn address_count(&mut self, address: IpAddr) -> &mut AddressCount {
        match address {
            IpAddr::V4(_) => &mut self.v4_addresses,
            IpAddr::V6(_) => &mut self.v6_addresses,
        }
    }

    /// Writes the allow entries of new policy ids for every identity, and of new identities for every policy id.
    fn answer(&mut self, work: &Work) {
        let step = self.step();
        for (policy, content) in self.subjects.all() {
            let mut write = |identity, signature| {
                let key = AllowKey::new(policy, identity);
                self.answers.write(key, &content.allowed(signature), step, &mut self.out);
            };
            if work.new_policies.contains(&policy) {
                self.identities.all().for_each(|(identity, signature)| write(identity, signature));
                continue;
            }
            for identity in &work.new_identities {
                if let Some(signature) = self.identities.signature(*identity) {
                    write(*identity, signature);
                }
            }
        }
        for key in &work.entries {
            let Some(content) = self.subjects.content(key.policy) else { continue };
            let Some(signature) = self.identities.signature(key.identity) else { continue };
            let before = self.out.desired.tables.allow_entry(*key);
            self.answers.write(*key, &content.allowed(signature), step, &mut self.out);
            if self.out.desired.tables.allow_entry(*key) != before {
                self.out.touched.rewritten.insert(*key);
            }
        }
    }
}
