//! What the cluster is like now: events in, answers and "what changed" out.
//!
//! A no-op update says [`Change::Nothing`], so that nothing downstream runs for it. This module does not know which pods
//! are on this node, nor what any policy means.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{
    ClusterEvent, Labels, Namespace, NetworkPolicy, Object, ObjectKey, ObjectRef, Pod, PodKey, PolicyKey, Service,
};

/// The label that every namespace carries and nobody can change.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What an event really changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object was so already, or was not there.
    Nothing,
    /// The labels of this namespace.
    Namespace(Arc<str>),
    /// A pod.
    Pod {
        /// Which.
        key: PodKey,
        /// What it was, if it was there.
        before: Option<Arc<Pod>>,
        /// What it is, if it is there.
        after: Option<Arc<Pod>>,
    },
    /// A NetworkPolicy.
    NetworkPolicy {
        /// Which.
        key: PolicyKey,
        /// What it was, if it was there.
        before: Option<Arc<NetworkPolicy>>,
        /// What it is, if it is there.
        after: Option<Arc<NetworkPolicy>>,
    },
    /// A service.
    Service(ObjectKey),
}

/// One namespace and what lives in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamespaceState {
    /// True if a Namespace object said so; else it exists because something lives in it.
    declared: bool,
    labels: Labels,
    pods: BTreeMap<Arc<str>, Arc<Pod>>,
    policies: BTreeMap<Arc<str>, Arc<NetworkPolicy>>,
}

impl NamespaceState {
    fn undeclared(name: &Arc<str>) -> Self {
        Self {
            declared: false,
            labels: with_name(Labels::new(), name),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
        }
    }

    fn is_needed(&self) -> bool {
        self.declared || !self.pods.is_empty() || !self.policies.is_empty()
    }
}

/// The labels of a namespace: `kubernetes.io/metadata.name` is always its name, whatever the object says.
fn with_name(mut labels: Labels, name: &Arc<str>) -> Labels {
    labels.insert(NAMESPACE_NAME_LABEL.into(), name.clone());
    labels
}

/// The live pods that claim an address: nearly always one, which then needs no set of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claimants {
    One(PodKey),
    Several(BTreeSet<PodKey>),
}

impl Claimants {
    fn iter(&self) -> impl Iterator<Item = &PodKey> {
        let (one, several) = match self {
            Self::One(key) => (Some(key), None),
            Self::Several(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    /// All of them and another; `None` of both is nobody.
    fn with(before: Option<Self>, key: PodKey) -> Self {
        match before {
            None => Self::One(key),
            Some(Self::One(other)) if other == key => Self::One(key),
            Some(Self::One(other)) => Self::Several(BTreeSet::from([other, key])),
            Some(Self::Several(mut keys)) => {
                keys.insert(key);
                Self::Several(keys)
            }
        }
    }

    /// All of them but one, `None` if that leaves nobody.
    fn without(self, key: &PodKey) -> Option<Self> {
        match self {
            Self::One(other) => (other != *key).then_some(Self::One(other)),
            Self::Several(mut keys) => {
                keys.remove(key);
                let last = if keys.len() < 2 { keys.pop_first() } else { None };
                match last {
                    Some(last) => Some(Self::One(last)),
                    None => (!keys.is_empty()).then_some(Self::Several(keys)),
                }
            }
        }
    }

    fn is_contested(&self) -> bool {
        matches!(self, Self::Several(_))
    }
}

/// Every object known, indexed the ways that policy asks for them.
///
/// Pods and policies live under their namespace, as a selector reaches either one namespace or those that match; the
/// index by address crosses namespaces, as packets do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    namespaces: BTreeMap<Arc<str>, NamespaceState>,
    services: BTreeMap<ObjectKey, Arc<Service>>,
    /// Live pods by each of their own addresses.
    claims: BTreeMap<IpAddr, Claimants>,
    /// Addresses that more than one live pod claims.
    contested: BTreeSet<IpAddr>,
    /// Services by each of their addresses.
    fronts: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Pods in a node's network namespace by the node's address.
    hosted: BTreeMap<IpAddr, BTreeSet<PodKey>>,
}

/// True if the pod owns its addresses and selectors see it: it is neither completed nor in the node's network namespace.
#[must_use]
pub fn is_live(pod: &Pod) -> bool {
    !pod.terminal && !pod.host_network
}

impl ClusterState {
    /// Takes an event in and says what it changed.
    pub fn apply(&mut self, event: ClusterEvent) -> Change {
        match event {
            ClusterEvent::Apply(Object::Namespace(namespace)) => self.apply_namespace(namespace),
            ClusterEvent::Apply(Object::Pod(pod)) => self.set_pod(pod.key.clone(), Some(pod)),
            ClusterEvent::Apply(Object::NetworkPolicy(policy)) => self.set_policy(policy.key.clone(), Some(policy)),
            ClusterEvent::Apply(Object::Service(service)) => self.set_service(service.key.clone(), Some(service)),
            ClusterEvent::Delete(ObjectRef::Namespace(name)) => self.delete_namespace(&name),
            ClusterEvent::Delete(ObjectRef::Pod(key)) => self.set_pod(key, None),
            ClusterEvent::Delete(ObjectRef::NetworkPolicy(key)) => self.set_policy(key, None),
            ClusterEvent::Delete(ObjectRef::Service(key)) => self.set_service(key, None),
        }
    }

    /// Names of all namespaces with their labels.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &Labels)> {
        self.namespaces.iter().map(|(name, namespace)| (name, &namespace.labels))
    }

    /// Labels of a namespace, if it exists.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name).map(|namespace| &namespace.labels)
    }

    /// A pod, completed ones too.
    #[must_use]
    pub fn pod(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.namespaces.get(&key.namespace)?.pods.get(&key.name)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.namespaces.values().flat_map(|namespace| namespace.pods.values())
    }

    /// The pods of a namespace.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.namespaces.get(namespace).into_iter().flat_map(|namespace| namespace.pods.values())
    }

    /// A NetworkPolicy.
    #[must_use]
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<NetworkPolicy>> {
        self.namespaces.get(&key.namespace)?.policies.get(&key.name)
    }

    /// All NetworkPolicies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.namespaces.values().flat_map(|namespace| namespace.policies.values())
    }

    /// The NetworkPolicies of a namespace.
    pub fn policies_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.namespaces.get(namespace).into_iter().flat_map(|namespace| namespace.policies.values())
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The live pods that claim an address: none for addresses outside the cluster, of nodes and hostNetwork pods.
    pub fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &PodKey> {
        self.claims.get(&address).into_iter().flat_map(Claimants::iter)
    }

    /// The service that has an address: of several the first by name.
    #[must_use]
    pub fn service_at(&self, address: IpAddr) -> Option<&ObjectKey> {
        self.fronts.get(&address)?.first()
    }

    /// Running pods in the network namespace of the node that has an address; none if no node is known to have it.
    pub fn hosted_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Pod>> {
        self.hosted.get(&address).into_iter().flatten().filter_map(|key| self.pod(key))
    }

    /// Addresses that more than one live pod claims.
    pub fn contested(&self) -> impl Iterator<Item = IpAddr> {
        self.contested.iter().copied()
    }

    fn apply_namespace(&mut self, namespace: Namespace) -> Change {
        let name = namespace.name;
        let known = self.namespaces.entry(name.clone()).or_insert_with(|| NamespaceState::undeclared(&name));
        let labels = with_name(namespace.labels, &name);
        known.declared = true;
        if known.labels == labels {
            return Change::Nothing;
        }
        known.labels = labels;
        Change::Namespace(name)
    }

    fn delete_namespace(&mut self, name: &Arc<str>) -> Change {
        let Some(known) = self.namespaces.get_mut(name) else { return Change::Nothing };
        let labels = with_name(Labels::new(), name);
        let changed = known.labels != labels;
        known.declared = false;
        known.labels = labels;
        self.forget_unneeded(name);
        if changed { Change::Namespace(name.clone()) } else { Change::Nothing }
    }

    fn set_pod(&mut self, key: PodKey, after: Option<Pod>) -> Change {
        let after = after.map(Arc::new);
        let before = self.pod(&key).cloned();
        if before == after {
            return Change::Nothing;
        }
        if let Some(before) = &before {
            self.release_addresses(before);
        }
        if let Some(after) = &after {
            self.claim_addresses(after);
            self.living(&key.namespace).pods.insert(key.name.clone(), after.clone());
        } else {
            self.living(&key.namespace).pods.remove(&key.name);
            self.forget_unneeded(&key.namespace);
        }
        Change::Pod { key, before, after }
    }

    fn set_policy(&mut self, key: PolicyKey, after: Option<NetworkPolicy>) -> Change {
        let after = after.map(Arc::new);
        let before = self.policy(&key).cloned();
        if before == after {
            return Change::Nothing;
        }
        if let Some(after) = &after {
            self.living(&key.namespace).policies.insert(key.name.clone(), after.clone());
        } else {
            self.living(&key.namespace).policies.remove(&key.name);
            self.forget_unneeded(&key.namespace);
        }
        Change::NetworkPolicy { key, before, after }
    }

    fn set_service(&mut self, key: ObjectKey, after: Option<Service>) -> Change {
        let after = after.map(Arc::new);
        let before = self.services.get(&key);
        if before == after.as_ref() {
            return Change::Nothing;
        }
        for address in before.map(|before| before.addresses.clone()).unwrap_or_default() {
            remove(&mut self.fronts, address, &key);
        }
        for address in after.iter().flat_map(|after| &after.addresses) {
            self.fronts.entry(*address).or_default().insert(key.clone());
        }
        match after {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(&key),
        };
        Change::Service(key)
    }

    /// The namespace, which exists from now on if it did not.
    fn living(&mut self, name: &Arc<str>) -> &mut NamespaceState {
        self.namespaces.entry(name.clone()).or_insert_with(|| NamespaceState::undeclared(name))
    }

    fn forget_unneeded(&mut self, name: &Arc<str>) {
        if self.namespaces.get(name).is_some_and(|namespace| !namespace.is_needed()) {
            self.namespaces.remove(name);
        }
    }

    fn claim_addresses(&mut self, pod: &Pod) {
        if !is_live(pod) {
            for address in pod.addresses.iter().filter(|_| !pod.terminal) {
                self.hosted.entry(*address).or_default().insert(pod.key.clone());
            }
            return;
        }
        for address in &pod.addresses {
            let claimants = Claimants::with(self.claims.remove(address), pod.key.clone());
            if claimants.is_contested() {
                self.contested.insert(*address);
            }
            self.claims.insert(*address, claimants);
        }
    }

    fn release_addresses(&mut self, pod: &Pod) {
        if !is_live(pod) {
            for address in pod.addresses.iter().filter(|_| !pod.terminal) {
                remove(&mut self.hosted, *address, &pod.key);
            }
            return;
        }
        for address in &pod.addresses {
            let left = self.claims.remove(address).and_then(|claimants| claimants.without(&pod.key));
            if !left.as_ref().is_some_and(Claimants::is_contested) {
                self.contested.remove(address);
            }
            if let Some(left) = left {
                self.claims.insert(*address, left);
            }
        }
    }
}

/// Takes an object out of an index by address.
fn remove(index: &mut BTreeMap<IpAddr, BTreeSet<ObjectKey>>, address: IpAddr, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(&address) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&address);
        }
    }
}
