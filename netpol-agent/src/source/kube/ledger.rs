//! What was given out, what waits to be, and in which order: the part of the source that decides. Pure.
//!
//! Comes in: what each kind's list and watch say. Goes out: batches of [`ClusterEvent`]s. The rules:
//! - Objects of a list are held until the list is whole. Only then is what it lacks gone; a list that breaks off changes
//!   nothing.
//! - Nothing is given out before every kind was listed once.
//! - Selectors never see a namespace without its labels, which would match `NotIn` and `DoesNotExist`: the kinds' watches
//!   are not in step, so a pod waits for its namespace, and a namespace stays as long as it has pods.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::interner::Interner;
use super::resource::Resource;
use super::wire::{Cut, Decoded};
use crate::cluster::model::{ClusterEvent, Object, ObjectKey};
use crate::problem::Problem;

/// Stands for a version of an object (its UID and resourceVersion) by which it is only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version(u64);

/// A list that is not whole yet.
#[derive(Default)]
struct Listing {
    seen: HashMap<ObjectKey, Version>,
    /// Of those, the ones that are not as they were before.
    changed: HashMap<ObjectKey, Decoded>,
}

#[derive(Default)]
struct KindLedger {
    /// Objects that were given out or wait to be.
    known: HashMap<ObjectKey, Version>,
    /// What is to be given out: the object, or that it is gone.
    waiting: BTreeMap<ObjectKey, Option<Object>>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    listing: Option<Listing>,
    synced: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    network_policies: KindLedger,
    namespaces: KindLedger,
    pods: KindLedger,
    services: KindLedger,
    /// How many known pods each namespace has.
    pods_in: HashMap<Arc<str>, usize>,
    interner: Interner,
    /// Keyed, so that nobody can make two versions look the same.
    hasher: RandomState,
}

impl Ledger {
    /// A list of the kind begins; one that was going on is forgotten.
    pub(super) fn begin(&mut self, resource: Resource) {
        self.kind_mut(resource).listing = Some(Listing::default());
    }

    /// The list of the kind will not become whole.
    pub(super) fn abandon(&mut self, resource: Resource) {
        self.kind_mut(resource).listing = None;
    }

    /// True if this very version of the object is known: there is no need to decode it.
    pub(super) fn knows(&self, resource: Resource, cut: &Cut) -> bool {
        self.kind(resource).known.get(&cut.key) == Some(&self.version(cut))
    }

    /// The version of an object.
    pub(super) fn version(&self, cut: &Cut) -> Version {
        self.version_of(&cut.uid, &cut.resource_version)
    }

    /// The version of an object with this UID and resourceVersion.
    pub(super) fn version_of(&self, uid: &str, resource_version: &str) -> Version {
        Version(self.hasher.hash_one((uid, resource_version)))
    }

    /// The list has this object; `decoded` is `None` if its version is known.
    pub(super) fn listed(
        &mut self,
        resource: Resource,
        (key, version): (ObjectKey, Version),
        decoded: Option<Decoded>,
    ) {
        let (key, decoded) = self.shared(key, decoded);
        let Some(listing) = &mut self.kind_mut(resource).listing else { return };
        if let Some(decoded) = decoded {
            listing.changed.insert(key.clone(), decoded);
        }
        listing.seen.insert(key, version);
    }

    /// An object that was listed a moment ago is gone.
    pub(super) fn unlisted(&mut self, resource: Resource, key: &ObjectKey) {
        if let Some(listing) = &mut self.kind_mut(resource).listing {
            listing.seen.remove(key);
            listing.changed.remove(key);
        }
    }

    /// The list is whole: what changed and what is gone waits from now on.
    pub(super) fn complete(&mut self, resource: Resource) {
        let kind = self.kind_mut(resource);
        let Some(Listing { seen, changed }) = kind.listing.take() else { return };
        kind.synced = true;
        let gone: Vec<ObjectKey> = kind.known.keys().filter(|key| !seen.contains_key(key)).cloned().collect();
        let mut seen = seen;
        for (key, decoded) in changed {
            if let Some(version) = seen.remove(&key) {
                self.record(resource, (key, version), decoded);
            }
        }
        for key in gone {
            self.gone(resource, &key);
        }
    }

    /// An object is new, or changed.
    pub(super) fn changed(&mut self, resource: Resource, (key, version): (ObjectKey, Version), decoded: Decoded) {
        if let (key, Some(decoded)) = self.shared(key, Some(decoded)) {
            self.record(resource, (key, version), decoded);
        }
    }

    fn record(&mut self, resource: Resource, (key, version): (ObjectKey, Version), decoded: Decoded) {
        let Decoded { object, problems } = decoded;
        let kind = self.kind_mut(resource);
        if problems.is_empty() {
            kind.problems.remove(&key);
        } else {
            kind.problems.insert(key.clone(), problems);
        }
        let new = kind.known.insert(key.clone(), version).is_none();
        // Of a policy that nothing can be made of, the last version goes on: without it pods would be open.
        if object.is_some() || resource != Resource::NetworkPolicy {
            kind.waiting.insert(key.clone(), object);
        }
        if new && resource == Resource::Pod {
            *self.pods_in.entry(key.namespace).or_default() += 1;
        }
    }

    /// An object is gone.
    pub(super) fn gone(&mut self, resource: Resource, key: &ObjectKey) {
        let kind = self.kind_mut(resource);
        kind.problems.remove(key);
        let Some((key, _)) = kind.known.remove_entry(key) else { return };
        if resource == Resource::Pod
            && let Some(count) = self.pods_in.get_mut(&key.namespace)
        {
            *count -= 1;
            if *count == 0 {
                self.pods_in.remove(&key.namespace);
            }
        }
        self.kind_mut(resource).waiting.insert(key, None);
    }

    /// True if every kind was listed whole once.
    pub(super) fn is_synced(&self) -> bool {
        Resource::ALL.into_iter().all(|resource| self.kind(resource).synced)
    }

    /// True if this kind was listed whole once.
    pub(super) fn is_kind_synced(&self, resource: Resource) -> bool {
        self.kind(resource).synced
    }

    /// True if some kind is being listed.
    pub(super) fn is_listing(&self) -> bool {
        Resource::ALL.into_iter().any(|resource| self.kind(resource).listing.is_some())
    }

    /// How many objects of the kind are known.
    pub(super) fn count(&self, resource: Resource) -> usize {
        self.kind(resource).known.len()
    }

    /// What is wrong with objects.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        Resource::ALL.into_iter().flat_map(|resource| self.kind(resource).problems.values().flatten())
    }

    /// Takes what waits, in the order that `Changes::events` promises. What must wait longer stays.
    pub(super) fn take(&mut self) -> Vec<ClusterEvent> {
        if !self.is_synced() {
            return Vec::new();
        }
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for resource in Resource::ALL {
            let waiting = std::mem::take(&mut self.kind_mut(resource).waiting);
            let mut held = BTreeMap::new();
            let mut left = Vec::new();
            changed.reserve(waiting.len());
            for (key, object) in waiting {
                if self.must_wait(resource, &key, object.is_some()) {
                    held.insert(key, object);
                    continue;
                }
                match object {
                    Some(object) => changed.push(ClusterEvent::Apply(object)),
                    None => left.push(ClusterEvent::Delete(resource.reference(key))),
                }
            }
            self.kind_mut(resource).waiting = held;
            gone.push((resource, left));
        }
        // Pods first, policies last.
        gone.sort_by_key(|(resource, _)| match resource {
            Resource::Pod => 0,
            Resource::Service => 1,
            Resource::Namespace => 2,
            Resource::NetworkPolicy => 3,
        });
        changed.extend(gone.into_iter().flat_map(|(_, events)| events));
        changed
    }

    fn must_wait(&self, resource: Resource, key: &ObjectKey, exists: bool) -> bool {
        match (resource, exists) {
            (Resource::Pod, true) => {
                let namespace = ObjectKey { namespace: key.namespace.clone(), name: key.namespace.clone() };
                !self.namespaces.known.contains_key(&namespace)
            }
            (Resource::Namespace, false) => self.pods_in.contains_key(&key.name),
            (Resource::Pod | Resource::Namespace | Resource::NetworkPolicy | Resource::Service, _) => false,
        }
    }

    /// The same, sharing texts: the key is the object's own.
    fn shared(&mut self, mut key: ObjectKey, decoded: Option<Decoded>) -> (ObjectKey, Option<Decoded>) {
        let decoded = decoded.map(|Decoded { object, problems }| Decoded {
            object: object.map(|object| self.interner.share(object)),
            problems,
        });
        match decoded.as_ref().and_then(|decoded| decoded.object.as_ref()) {
            Some(Object::Pod(pod)) => key = pod.key.clone(),
            Some(Object::NetworkPolicy(policy)) => key = policy.key.clone(),
            Some(Object::Service(service)) => key = service.key.clone(),
            Some(Object::Namespace(_)) | None => self.interner.share_key(&mut key),
        }
        (key, decoded)
    }

    fn kind(&self, resource: Resource) -> &KindLedger {
        match resource {
            Resource::NetworkPolicy => &self.network_policies,
            Resource::Namespace => &self.namespaces,
            Resource::Pod => &self.pods,
            Resource::Service => &self.services,
        }
    }

    fn kind_mut(&mut self, resource: Resource) -> &mut KindLedger {
        match resource {
            Resource::NetworkPolicy => &mut self.network_policies,
            Resource::Namespace => &mut self.namespaces,
            Resource::Pod => &mut self.pods,
            Resource::Service => &mut self.services,
        }
    }
}
