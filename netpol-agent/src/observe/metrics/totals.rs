//! Packets by direction, reason and namespace, exact, from the maps' counters.
//!
//! The maps count by slot, and slots change hands: what a slot has counted since it was last read goes to the namespace that
//! has it now. What was counted before this agent began counts for whoever has the slot at the first reading.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use netpol_common::abi::{Direction, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::OTHER;
use super::snapshot::{Snapshot, counter};
use crate::datapath::backstop;
use crate::datapath::figures::Figures;
use crate::datapath::store::SlotCounters;

/// Namespaces that have series of their own.
const MOST_NAMESPACES: usize = 100;

/// Reads what the programs count.
pub trait Reader: Send + Sync {
    /// The counters of a slot; none if they cannot be read.
    fn slot(&self, slot: u16) -> Option<SlotCounters>;
    /// Events that found the ring full.
    fn events_lost(&self) -> Option<u64>;
    /// Packets that the backstop dropped; none if it is not in force.
    fn backstop(&self) -> Option<u64>;
}

impl Reader for Figures {
    fn slot(&self, slot: u16) -> Option<SlotCounters> {
        Self::slot(self, slot).inspect_err(|error| tracing::debug!(%error, "cannot read counters")).ok()
    }

    fn events_lost(&self) -> Option<u64> {
        Self::events_lost(self).inspect_err(|error| tracing::debug!(%error, "cannot read counters")).ok()
    }

    fn backstop(&self) -> Option<u64> {
        backstop::dropped().ok().flatten().map(|dropped| dropped.packets)
    }
}

#[derive(Debug, Default)]
struct Sums {
    /// Packets of each slot when it was last read.
    last: BTreeMap<(u16, Direction, Reason), u64>,
    drops: BTreeMap<(Reason, Direction, Arc<str>), u64>,
    passed: BTreeMap<(Reason, Direction), u64>,
    namespaces: std::collections::BTreeSet<Arc<str>>,
}

pub(super) struct Totals {
    snapshot: Arc<Mutex<Snapshot>>,
    reader: Option<Box<dyn Reader>>,
    sums: Mutex<Sums>,
}

impl Totals {
    pub(super) fn new(snapshot: Arc<Mutex<Snapshot>>, reader: Option<Box<dyn Reader>>) -> Self {
        Self { snapshot, reader, sums: Mutex::default() }
    }
}

impl Sums {
    fn add(&mut self, slot: u16, namespace: &Arc<str>, counters: &SlotCounters) {
        let known = self.namespaces.contains(namespace)
            || (self.namespaces.len() < MOST_NAMESPACES && self.namespaces.insert(namespace.clone()));
        let namespace = if known { namespace.clone() } else { OTHER.into() };
        for ((direction, reason), counted) in counters {
            let last = self.last.insert((slot, *direction, *reason), counted.packets).unwrap_or(0);
            // Maps that were made anew begin at nothing.
            let more = counted.packets.checked_sub(last).unwrap_or(counted.packets);
            if reason.is_drop() {
                *self.drops.entry((*reason, *direction, namespace.clone())).or_default() += more;
            } else {
                *self.passed.entry((*reason, *direction)).or_default() += more;
            }
        }
    }
}

impl Collector for Totals {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (slots, untold, missed) = {
            let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
            (snapshot.slots.clone(), snapshot.untold, snapshot.missed)
        };
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = self.reader.as_deref();
        for (slot, namespace) in &slots {
            if let Some(counters) = reader.and_then(|reader| reader.slot(*slot)) {
                sums.add(*slot, namespace, &counters);
            }
        }
        let drops: Vec<([(&str, &str); 3], u64)> = sums
            .drops
            .iter()
            .map(|((reason, direction, namespace), packets)| {
                let labels = [("reason", reason.name()), ("direction", direction.name()), ("namespace", &**namespace)];
                (labels, *packets)
            })
            .collect();
        let series: Vec<(&[(&str, &str)], u64)> = drops.iter().map(|(labels, it)| (labels.as_slice(), *it)).collect();
        counter(&mut to, "netpol_drops", "Packets dropped, each counted once", &series)?;
        let passed: Vec<([(&str, &str); 2], u64)> = sums
            .passed
            .iter()
            .map(|((reason, direction), packets)| {
                ([("reason", reason.name()), ("direction", direction.name())], *packets)
            })
            .collect();
        let series: Vec<(&[(&str, &str)], u64)> = passed.iter().map(|(labels, it)| (labels.as_slice(), *it)).collect();
        counter(&mut to, "netpol_passed", "Packets that passed, each counted once at each pod", &series)?;
        let lost = reader.and_then(Reader::events_lost).unwrap_or(0);
        let lost: [(&[(&str, &str)], u64); 3] = [
            (&[("source", "perf_event_ring_buffer")], lost),
            (&[("source", "observer_events_queue")], untold),
            (&[("source", "hubble_ring_buffer")], missed),
        ];
        counter(&mut to, "hubble_lost_events", "Events that were lost, by where", &lost)?;
        let backstop = reader.and_then(Reader::backstop);
        counter(
            &mut to,
            "netpol_backstop_drops",
            "Packets that left unjudged and were dropped",
            &[(&[], backstop.unwrap_or(0))],
        )?;
        counter_gauge(&mut to, backstop.is_some())
    }
}

fn counter_gauge(to: &mut DescriptorEncoder<'_>, in_force: bool) -> fmt::Result {
    super::snapshot::gauge(
        to,
        "netpol_backstop_in_force",
        "1 if the backstop's table is in place",
        &[(&[], f64::from(u8::from(in_force)))],
    )
}

impl fmt::Debug for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Totals").field("sums", &self.sums).finish_non_exhaustive()
    }
}
