//! Which pods meet which selectors and declare which port names: the part of a signature that an address owes to its pod.
//!
//! Kept per pod and brought up to date only for pods, namespaces and criteria that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::content::PortName;
use super::criteria::{Criteria, Criterion, CriterionId, named_port};
use crate::cluster::ClusterState;
use crate::cluster::model::{Labels, PodKey};
use crate::cluster::state::is_live;

/// What pods mean to the policies of this node.
#[derive(Default)]
pub(super) struct PeerIndex {
    /// The pairs of selectors in use.
    selectors: BTreeSet<CriterionId>,
    /// Of those, the ones that may match pods of a namespace.
    by_namespace: BTreeMap<Arc<str>, BTreeSet<CriterionId>>,
    /// The port names in use, and the numbers that pods give them.
    names: BTreeMap<PortName, BTreeSet<CriterionId>>,
    /// What each pod meets; pods that meet nothing are left out.
    pods: BTreeMap<PodKey, BTreeSet<CriterionId>>,
}

impl PeerIndex {
    /// Takes a criterion into use. Returns the pods that are to be evaluated again.
    pub(super) fn add(&mut self, id: CriterionId, criterion: &Criterion, state: &ClusterState) -> Vec<PodKey> {
        match criterion {
            Criterion::Pods { namespaces, pods } => {
                self.selectors.insert(id);
                let mut affected = Vec::new();
                for (name, _) in state.namespaces().filter(|(name, labels)| namespaces.matches(name, labels)) {
                    self.by_namespace.entry(name.clone()).or_default().insert(id);
                    let matching = state.pods_in(name).filter(|pod| is_live(pod) && pods.matches(&pod.labels));
                    affected.extend(matching.map(|pod| pod.key.clone()));
                }
                affected
            }
            Criterion::PortName { name, protocol } => {
                self.names.entry((name.clone(), *protocol)).or_default();
                let naming = state.pods().filter(|pod| is_live(pod) && named_port(pod, name, *protocol).is_some());
                naming.map(|pod| pod.key.clone()).collect()
            }
            Criterion::Block(_) | Criterion::NamedPort { .. } => Vec::new(),
        }
    }

    /// Takes a criterion out of use. Returns the pods that are to be evaluated again.
    pub(super) fn remove(&mut self, id: CriterionId, criterion: &Criterion, criteria: &mut Criteria) -> Vec<PodKey> {
        let mut gone = BTreeSet::new();
        match criterion {
            Criterion::Pods { .. } => {
                self.selectors.remove(&id);
                self.by_namespace.values_mut().for_each(|applicable| {
                    applicable.remove(&id);
                });
                gone.insert(id);
            }
            Criterion::PortName { name, protocol } => {
                let numbers = self.names.remove(&(name.clone(), *protocol)).into_iter().flatten();
                for number in numbers {
                    criteria.forget(number);
                    gone.insert(number);
                }
            }
            Criterion::Block(_) | Criterion::NamedPort { .. } => {}
        }
        let affected = self.pods.iter().filter(|(_, meets)| !meets.is_disjoint(&gone));
        affected.map(|(key, _)| key.clone()).collect()
    }

    /// Looks at the labels of a namespace. True if other selectors reach its pods now.
    pub(super) fn namespace_changed(&mut self, name: &Arc<str>, state: &ClusterState, criteria: &Criteria) -> bool {
        let Some(labels) = state.namespace_labels(name) else { return self.by_namespace.remove(name).is_some() };
        let applicable = self.applicable(name, labels, criteria);
        if self.by_namespace.get(name) == Some(&applicable) {
            return false;
        }
        self.by_namespace.insert(name.clone(), applicable);
        true
    }

    /// True if the namespace has been looked at.
    pub(super) fn knows_namespace(&self, name: &str) -> bool {
        self.by_namespace.contains_key(name)
    }

    /// Finds out again what a pod meets. True if that is something else than before.
    pub(super) fn evaluate(&mut self, key: &PodKey, state: &ClusterState, criteria: &mut Criteria) -> bool {
        let meets = self.met_by(key, state, criteria);
        let before =
            if meets.is_empty() { self.pods.remove(key) } else { self.pods.insert(key.clone(), meets.clone()) };
        before.unwrap_or_default() != meets
    }

    /// What an address meets for the pod that owns it. If several live pods claim it, only what all of them meet: any of
    /// them may be the one that is reached.
    pub(super) fn met_at(&self, address: IpAddr, state: &ClusterState) -> BTreeSet<CriterionId> {
        let mut claimants = state.claimants(address).map(|key| self.pods.get(key));
        let Some(Some(first)) = claimants.next() else { return BTreeSet::new() };
        let mut met = first.clone();
        for other in claimants {
            met.retain(|id| other.is_some_and(|other| other.contains(id)));
        }
        met
    }

    fn applicable(&self, name: &str, labels: &Labels, criteria: &Criteria) -> BTreeSet<CriterionId> {
        let reaches = |id: &CriterionId| match criteria.get(*id).map(|criterion| &**criterion) {
            Some(Criterion::Pods { namespaces, .. }) => namespaces.matches(name, labels),
            Some(Criterion::Block(_) | Criterion::PortName { .. } | Criterion::NamedPort { .. }) | None => false,
        };
        self.selectors.iter().copied().filter(reaches).collect()
    }

    fn met_by(&mut self, key: &PodKey, state: &ClusterState, criteria: &mut Criteria) -> BTreeSet<CriterionId> {
        let Some(pod) = state.pod(key).filter(|pod| is_live(pod)) else { return BTreeSet::new() };
        let matches = |id: &CriterionId| match criteria.get(*id).map(|criterion| &**criterion) {
            Some(Criterion::Pods { pods, .. }) => pods.matches(&pod.labels),
            Some(Criterion::Block(_) | Criterion::PortName { .. } | Criterion::NamedPort { .. }) | None => false,
        };
        let applicable = self.by_namespace.get(&key.namespace).into_iter().flatten().copied();
        let mut meets: BTreeSet<CriterionId> = applicable.filter(matches).collect();
        for declared in &pod.named_ports {
            let Some(numbers) = self.names.get_mut(&(declared.name.clone(), declared.protocol)) else { continue };
            let Some(port) = named_port(pod, &declared.name, declared.protocol) else { continue };
            let number = Criterion::NamedPort { name: declared.name.clone(), protocol: declared.protocol, port };
            let id = criteria.intern(number);
            numbers.insert(id);
            meets.insert(id);
        }
        meets
    }
}
