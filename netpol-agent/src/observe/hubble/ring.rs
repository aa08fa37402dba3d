//! The last flows of this node, one ring for all observers: the writer never waits, and a reader that does not keep up loses
//! what was overwritten, and learns how much.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost_types::Timestamp;
use tokio::sync::watch;

use super::proto::flow::{Flow, LostEvent};

/// What an observer may be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A flow.
    Flow(Box<Flow>),
    /// Events that no observer can be told of.
    Lost(LostEvent),
}

/// One place in the ring.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When it happened.
    pub time: Timestamp,
    /// What.
    pub content: Content,
}

impl Entry {
    /// The flow, if it is one.
    #[must_use]
    pub fn flow(&self) -> Option<&Flow> {
        match &self.content {
            Content::Flow(flow) => Some(flow),
            Content::Lost(_) => None,
        }
    }
}

#[derive(Debug, Default)]
struct Places {
    entries: VecDeque<Arc<Entry>>,
    /// Number of the oldest entry that is still there; numbers are never used twice.
    oldest: u64,
}

impl Places {
    fn end(&self) -> u64 {
        self.oldest + u64::try_from(self.entries.len()).unwrap_or(u64::MAX)
    }
}

/// Some entries in a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Entries between the one asked for and the first that is still there.
    pub overwritten: u64,
    /// Where to read on.
    pub next: u64,
    /// The entries.
    pub entries: Vec<Arc<Entry>>,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    places: Mutex<Places>,
    capacity: usize,
    seen: AtomicU64,
    missed: AtomicU64,
    end: watch::Sender<u64>,
}

impl Ring {
    /// A ring of so many places, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            places: Mutex::default(),
            capacity: capacity.max(1),
            seen: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            end: watch::Sender::new(0),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing panics while it is held; the entries would be sound all the same.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry, over the oldest if there is no place left.
    pub fn push(&self, entry: Entry) -> Arc<Entry> {
        if entry.flow().is_some() {
            self.seen.fetch_add(1, Ordering::Relaxed);
        }
        let entry = Arc::new(entry);
        let mut places = self.places();
        let old = if places.entries.len() >= self.capacity { places.entries.pop_front() } else { None };
        places.oldest += u64::from(old.is_some());
        places.entries.push_back(entry.clone());
        let end = places.end();
        drop(places);
        // Outside of the lock: it may be the last to hold the entry, and freeing takes a while.
        drop(old);
        self.end.send_replace(end);
        entry
    }

    /// Entries from number `from` on, at most `limit`, of those before `end`.
    #[must_use]
    pub fn read(&self, from: u64, end: u64, limit: usize) -> Batch {
        let places = self.places();
        let start = from.max(places.oldest);
        let end = end.min(places.end());
        let skip = usize::try_from(start - places.oldest).unwrap_or(usize::MAX);
        let count = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(limit);
        let entries: Vec<_> = places.entries.iter().skip(skip).take(count).cloned().collect();
        let next = start + u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let overwritten = start - from.min(start);
        drop(places);
        self.missed.fetch_add(overwritten, Ordering::Relaxed);
        Batch { overwritten, next, entries }
    }

    /// All that is in the ring, with the number of the first.
    #[must_use]
    pub fn snapshot(&self) -> (u64, Vec<Arc<Entry>>) {
        let places = self.places();
        (places.oldest, places.entries.iter().cloned().collect())
    }

    /// The number that the next entry will have; changes with every entry.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// The number that the next entry will have.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.places().end()
    }

    /// Flows in the ring.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places().entries.len()
    }

    /// True before the first entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places in the ring.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Flows that were ever put into it.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Entries that observers missed as they did not keep up, added over all of them.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}
