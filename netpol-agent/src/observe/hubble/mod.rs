//! Hubble's API: enriched flows in ([`Hub::take`]), gRPC for any number of Hubble's clients out ([`listen`]).
//!
//! One bounded ring serves all observers. Feeding it never waits: an observer that does not keep up loses flows, is told how
//! many, and slows nobody. What the messages mean, and which fields clients trip over, is in [`convert`] and [`mask`].

pub mod convert;
pub mod filter;
pub mod identity;
pub mod json;
pub mod listen;
pub mod mask;
pub mod peers;
pub mod proto;
pub mod reading;
pub mod ring;
mod service;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod words;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use self::convert::Stamp;
use self::identity::Identities;
use self::peers::PeerNode;
use self::proto::flow::{LostEvent, LostEventSource};
use self::ring::{Content, Entry, Ring};
use crate::flow::Flow;

/// Flows that are kept where nobody says how many.
pub const DEFAULT_CAPACITY: usize = 4095;
/// How long a namespace counts as seen.
const NAMESPACE_LIFETIME: Duration = Duration::from_secs(3600);
/// Most namespaces that are remembered.
const MOST_NAMESPACES: usize = 4096;

/// Most interfaces whose names are remembered.
const MOST_INTERFACES: usize = 4096;

/// What is known beyond the ring.
#[derive(Debug)]
struct Knowledge {
    identities: Identities,
    namespaces: BTreeMap<String, Instant>,
    /// Names of interfaces: an index is not given twice while it matters.
    interfaces: HashMap<u32, String>,
    sequence: u64,
    seed: RandomState,
}

/// Everything that observers ask about. Shared by the pipeline, which feeds it, and the servers.
#[derive(Debug)]
pub struct Hub {
    ring: Arc<Ring>,
    stamp: Stamp,
    node: Arc<str>,
    started: Instant,
    knowledge: Mutex<Knowledge>,
    peers: watch::Sender<Arc<[PeerNode]>>,
}

impl Hub {
    /// A hub of this node that keeps so many flows.
    #[must_use]
    pub fn new(node: &str, capacity: usize) -> Self {
        Self {
            ring: Arc::new(Ring::new(capacity)),
            stamp: Stamp { node: node.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
            node: node.into(),
            started: Instant::now(),
            knowledge: Mutex::new(Knowledge {
                identities: Identities::default(),
                namespaces: BTreeMap::new(),
                interfaces: HashMap::new(),
                sequence: 0,
                seed: RandomState::new(),
            }),
            peers: watch::Sender::new(Arc::default()),
        }
    }

    /// Takes a flow in, and returns what observers are told of it. Never waits for an observer.
    pub fn take(&self, flow: &Flow) -> Vec<Arc<Entry>> {
        let mut knowledge = self.knowledge.lock().unwrap_or_else(PoisonError::into_inner);
        let mut messages = convert::messages(flow, &self.stamp, &mut knowledge.identities);
        for message in &mut messages {
            message.uuid = knowledge.uuid();
            if let Some(interface) = &mut message.interface {
                interface.name = knowledge.interface_name(interface.index);
            }
        }
        if let Some(message) = messages.first() {
            knowledge.see(message);
        }
        drop(knowledge);
        messages.into_iter().map(|message| self.push(message)).collect()
    }

    /// Takes a message in as it is.
    pub fn push(&self, message: proto::flow::Flow) -> Arc<Entry> {
        let time = message.time.unwrap_or_default();
        self.ring.push(Entry { time, content: Content::Flow(Box::new(message)) })
    }

    /// Takes in that events were lost before they came here, now; returns what observers are told of it.
    pub fn lost(&self, source: LostEventSource, count: u64) -> Option<Arc<Entry>> {
        if count == 0 {
            return None;
        }
        let lost = LostEvent { source: source.into(), num_events_lost: count, ..LostEvent::default() };
        Some(self.ring.push(Entry { time: SystemTime::now().into(), content: Content::Lost(lost) }))
    }

    /// The nodes whose agents can be asked likewise, this one included.
    pub fn set_peers(&self, peers: Vec<PeerNode>) {
        self.peers.send_if_modified(|known| {
            let changed = **known != *peers;
            if changed {
                *known = peers.into();
            }
            changed
        });
    }

    /// The ring, for figures.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Namespaces of recent flows, sorted.
    fn namespaces(&self) -> Vec<String> {
        let mut knowledge = self.knowledge.lock().unwrap_or_else(PoisonError::into_inner);
        knowledge.namespaces.retain(|_, seen| seen.elapsed() < NAMESPACE_LIFETIME);
        knowledge.namespaces.keys().cloned().collect()
    }
}

impl Knowledge {
    /// Empty for one that is gone already.
    fn interface_name(&mut self, index: u32) -> String {
        if let Some(name) = self.interfaces.get(&index) {
            return name.clone();
        }
        let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        let Some(name) = name else { return String::new() };
        if self.interfaces.len() >= MOST_INTERFACES {
            self.interfaces.clear();
        }
        self.interfaces.insert(index, name.clone());
        name
    }

    fn see(&mut self, message: &proto::flow::Flow) {
        let now = Instant::now();
        for end in [&message.source, &message.destination].into_iter().flatten() {
            if let Some(seen) = self.namespaces.get_mut(&end.namespace) {
                *seen = now;
            } else if !end.namespace.is_empty() && self.namespaces.len() < MOST_NAMESPACES {
                self.namespaces.insert(end.namespace.clone(), now);
            }
        }
    }

    /// A random UUID (version 4): unpredictable enough to tell flows apart, and nothing hangs on it.
    fn uuid(&mut self) -> String {
        self.sequence = self.sequence.wrapping_add(1);
        let high = self.seed.hash_one((self.sequence, 0_u8)) & 0xffff_ffff_ffff_0fff | 0x4000;
        let low = self.seed.hash_one((self.sequence, 1_u8)) & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}
