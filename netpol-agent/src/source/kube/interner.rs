//! One copy of each text that many pods have: label keys and values, names of namespaces and nodes, whole label sets.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::cluster::model::{Labels, Object, ObjectKey, Pod};

/// Below this many values nothing is ever swept out.
const SWEPT_FROM: usize = 1024;

/// Texts and label sets in use.
#[derive(Default)]
pub(super) struct Interner {
    texts: Pool<str>,
    labels: Pool<Labels>,
}

struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// Swept when it has grown to this size.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), sweep_at: SWEPT_FROM }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.values.len() * 2).max(SWEPT_FROM);
        }
        self.values.insert(value.clone());
        value.clone()
    }
}

impl Interner {
    /// The same object, sharing what others have too.
    pub(super) fn share(&mut self, mut object: Object) -> Object {
        match &mut object {
            Object::Pod(pod) => self.share_pod(pod),
            Object::Namespace(namespace) => namespace.name = self.texts.share(&namespace.name),
            Object::NetworkPolicy(policy) => self.share_key(&mut policy.key),
            Object::Service(service) => self.share_key(&mut service.key),
        }
        object
    }

    fn share_pod(&mut self, pod: &mut Pod) {
        self.share_key(&mut pod.key);
        pod.node = self.texts.share(&pod.node);
        pod.static_uid = self.texts.share(&pod.static_uid);
        if let Some(workload) = &mut pod.workload {
            workload.kind = self.texts.share(&workload.kind);
            workload.name = self.texts.share(&workload.name);
        }
        pod.labels = match self.labels.values.get(&pod.labels) {
            Some(known) => known.clone(),
            None => {
                let labels = pod.labels.iter().map(|(key, value)| (self.texts.share(key), self.texts.share(value)));
                let labels = Arc::new(labels.collect());
                self.labels.share(&labels)
            }
        };
    }

    /// Names are nearly always one of a kind; namespaces are not.
    pub(super) fn share_key(&mut self, key: &mut ObjectKey) {
        key.namespace = self.texts.share(&key.namespace);
    }
}
