//! Objects with their versions, and the events of a bounded past.

#![expect(clippy::indexing_slicing, reason = "of JSON that is built here")]

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

/// Events kept by default.
const HISTORY: usize = 10_000;

/// A kind that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 Namespace, without a namespace.
    Namespace,
    /// v1 Pod.
    Pod,
    /// v1 Service.
    Service,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Namespace, Self::Pod, Self::Service, Self::NetworkPolicy];

    /// The kind as objects have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The kind as paths have it.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::NetworkPolicy => "networkpolicies",
        }
    }

    /// apiVersion.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Service => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }
}

/// Namespace (empty if the kind has none) and name; the order of lists.
pub(super) type Key = (String, String);

/// An object as JSON.
pub(super) type Text = Arc<[u8]>;

#[derive(Clone, Debug)]
struct Stored {
    version: u64,
    text: Text,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) event: &'static str,
    pub(super) text: Text,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Kind, BTreeMap<Key, Stored>>,
    history: VecDeque<Event>,
    kept: usize,
    /// Events up to this one are forgotten.
    compacted: u64,
}

impl Default for Store {
    fn default() -> Self {
        // A cluster has a past: version 1 and below mean something else.
        let version = 1000;
        Self { version, objects: BTreeMap::new(), history: VecDeque::new(), kept: HISTORY, compacted: version }
    }
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// See [`ApiServer::apply`](super::ApiServer::apply).
    pub(super) fn apply(&mut self, object: &Value) -> u64 {
        let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap_or_else(|| {
            unknown_kind(object);
        });
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = match kind {
            Kind::Namespace => String::new(),
            Kind::Pod | Kind::Service | Kind::NetworkPolicy => {
                object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned()
            }
        };
        self.version += 1;
        let version = self.version;
        let mut object = object.clone();
        object["apiVersion"] = kind.api_version().into();
        let before = self.objects.entry(kind).or_default().get(&(namespace.clone(), name.clone()));
        let before: Option<Value> = before.and_then(|before| serde_json::from_slice(&before.text).ok());
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = version.to_string().into();
        if kind == Kind::Namespace {
            metadata["labels"]["kubernetes.io/metadata.name"] = name.clone().into();
        } else {
            metadata["namespace"] = namespace.clone().into();
        }
        let given = |field: &str| before.as_ref().map(|before| before["metadata"][field].clone());
        if metadata["uid"].is_null() {
            metadata["uid"] = given("uid").unwrap_or_else(|| uid(version).into());
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = given("creationTimestamp").unwrap_or_else(|| "2026-01-01T00:00:00Z".into());
        }
        let text: Text = object.to_string().into_bytes().into();
        let key = (namespace, name);
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        let stored = Stored { version, text: text.clone() };
        self.objects.entry(kind).or_default().insert(key.clone(), stored);
        self.remember(Event { version, kind, key, event, text });
        version
    }

    /// Takes an object out; its last state has the version of its deletion.
    pub(super) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> Option<u64> {
        let key = (namespace.to_owned(), name.to_owned());
        let stored = self.objects.get_mut(&kind)?.remove(&key)?;
        self.version += 1;
        let mut object: Value = serde_json::from_slice(&stored.text).ok()?;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let text = object.to_string().into_bytes().into();
        self.remember(Event { version: self.version, kind, key, event: "DELETED", text });
        Some(self.version)
    }

    fn remember(&mut self, event: Event) {
        self.history.push_back(event);
        self.keep(self.kept);
    }

    /// Keeps this many events at most.
    pub(super) fn keep(&mut self, events: usize) {
        self.kept = events;
        while self.history.len() > events {
            if let Some(event) = self.history.pop_front() {
                self.compacted = event.version;
            }
        }
    }

    pub(super) fn compact(&mut self) {
        // The version itself passes too: what is compacted is everything before "now".
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
    }

    pub(super) fn objects(&self, kind: Kind) -> impl Iterator<Item = Text> {
        self.objects.get(&kind).into_iter().flat_map(|objects| objects.values().map(|stored| stored.text.clone()))
    }

    /// One object.
    pub(super) fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<Text> {
        let stored = self.objects.get(&kind)?.get(&(namespace.to_owned(), name.to_owned()))?;
        Some(stored.text.clone())
    }

    /// Objects in a namespace (or all), after `after`, at most `most`; and how many more there are.
    pub(super) fn page(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        (after, most): (Option<&Key>, usize),
    ) -> (Vec<(Key, Text)>, usize) {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        let objects = self.objects.get(&kind).into_iter().flat_map(|all| all.range((from.clone(), Bound::Unbounded)));
        let mut objects = objects.filter(|((own, _), _)| namespace.is_none_or(|namespace| own == namespace));
        let page = objects.by_ref().take(most).map(|(key, stored)| (key.clone(), stored.text.clone())).collect();
        (page, objects.count())
    }

    /// True if something of the kind happened after `version`.
    pub(super) fn changed_since(&self, kind: Kind, version: u64) -> bool {
        let newest = self.objects.get(&kind).into_iter().flat_map(BTreeMap::values).map(|stored| stored.version).max();
        newest.is_some_and(|newest| newest > version)
            || self.history.iter().any(|event| event.kind == kind && event.version > version)
    }

    /// Events after `version`; `Err` with the oldest version to go on from if they are not kept.
    pub(super) fn events(&self, kind: Kind, namespace: Option<&str>, version: u64) -> Result<Vec<Event>, u64> {
        if version < self.compacted {
            return Err(self.compacted);
        }
        let from = self.history.partition_point(|event| event.version <= version);
        let events = self.history.range(from..).filter(|event| event.kind == kind);
        let events = events.filter(|event| namespace.is_none_or(|namespace| event.key.0 == namespace));
        Ok(events.cloned().collect())
    }
}

#[expect(clippy::panic, reason = "a fault of the test that applies it")]
fn unknown_kind(object: &Value) -> ! {
    panic!("the double does not serve {}", object["kind"])
}

fn uid(version: u64) -> String {
    format!("{version:08x}-0000-4000-8000-{:012x}", version.wrapping_mul(0x9e37_79b9_7f4a) & 0xffff_ffff_ffff)
}

/// A Status object, as errors are told.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}
