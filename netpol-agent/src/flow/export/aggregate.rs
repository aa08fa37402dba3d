//! Flows summed up by who, to whom, on which port and why: one line for each in an interval, the first flow's with how many
//! there were.

use std::collections::BTreeMap;
use std::time::SystemTime;

use netpol_common::abi::{Direction, Reason};
use serde::Serialize;

use crate::flow::{End, Flow, timestamp};

/// Sums that are kept at a time; what is beyond is counted as lost.
const MOST: usize = 16_384;

/// What makes flows the same.
type Key = (String, String, Option<u16>, String, Direction, Reason);

/// Sums of an interval.
#[derive(Debug, Default)]
pub(super) struct Sums(BTreeMap<Key, Sum>);

#[derive(Debug)]
struct Sum {
    first: Flow,
    last: SystemTime,
    flows: u64,
    packets: u64,
}

/// A line: the first flow, and what it stands for.
#[derive(Serialize)]
struct Line<'f> {
    #[serde(flatten)]
    flow: &'f Flow,
    aggregate: Aggregate,
}

#[derive(Serialize)]
struct Aggregate {
    flows: u64,
    packets: u64,
    last: String,
}

impl Sums {
    /// Adds a flow; returns how many found no room.
    pub(super) fn add(&mut self, flow: Flow) -> u64 {
        let packets = 1 + u64::from(flow.suppressed);
        let key = key(&flow);
        if let Some(sum) = self.0.get_mut(&key) {
            sum.last = sum.last.max(flow.time);
            sum.flows += 1;
            sum.packets += packets;
            return 0;
        }
        if self.0.len() >= MOST {
            return 1;
        }
        self.0.insert(key, Sum { last: flow.time, first: flow, flows: 1, packets });
        0
    }

    /// The lines of the interval that is over.
    pub(super) fn take(&mut self) -> Vec<serde_json::Result<String>> {
        let line = |sum: &Sum| {
            let aggregate = Aggregate { flows: sum.flows, packets: sum.packets, last: timestamp(sum.last) };
            serde_json::to_string(&Line { flow: &sum.first, aggregate })
        };
        std::mem::take(&mut self.0).values().map(line).collect()
    }
}

fn key(flow: &Flow) -> Key {
    // The client's port is another one each time.
    let (source, destination) = (name(&flow.source), name(&flow.destination));
    (source, destination, flow.destination.port, flow.protocol.clone(), flow.direction, flow.reason)
}

fn name(end: &End) -> String {
    match (&end.pod, end.ip) {
        (Some(pod), _) => pod.to_string(),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => String::new(),
    }
}
