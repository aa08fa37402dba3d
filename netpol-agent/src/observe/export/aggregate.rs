//! Flows summed up by who, to whom, on which port and why: one line for each in an interval, the first flow's, with how many
//! there were in its field `aggregate`, as Hubble has it, and how many packets in its extension.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost_types::Timestamp;

use crate::observe::hubble::filter::ports_of;
use crate::observe::hubble::proto::flow::layer4::Protocol;
use crate::observe::hubble::proto::flow::{Aggregate, Endpoint, Flow, TrafficDirection};
use crate::observe::hubble::ring::{Content, Entry};
use crate::observe::hubble::words;

/// Sums that are kept at a time; what is beyond is counted as lost.
const MOST: usize = 16_384;

/// What makes flows the same. The client's port is another one each time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: String,
    destination: String,
    port: Option<u32>,
    protocol: u8,
    direction: i32,
    /// A drop and the verdict behind it are two.
    event: (i32, i32),
    verdict: i32,
    reason: i32,
}

/// Sums of an interval.
#[derive(Debug, Default)]
pub(super) struct Sums(BTreeMap<Key, Sum>);

#[derive(Debug)]
struct Sum {
    first: Arc<Entry>,
    last: Timestamp,
    flows: u32,
    packets: f64,
}

impl Sums {
    /// Adds a flow; returns how many found no room.
    pub(super) fn add(&mut self, entry: Arc<Entry>) -> u64 {
        let Some(flow) = entry.flow() else { return 0 };
        let packets = 1.0 + words::suppressed(flow);
        let key = key(flow);
        if let Some(sum) = self.0.get_mut(&key) {
            sum.last = entry.time;
            sum.flows = sum.flows.saturating_add(1);
            sum.packets += packets;
            return 0;
        }
        if self.0.len() >= MOST {
            return 1;
        }
        self.0.insert(key, Sum { last: entry.time, first: entry, flows: 1, packets });
        0
    }

    /// What the interval that is over comes to, the oldest first.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        let mut sums: Vec<Entry> = std::mem::take(&mut self.0).into_values().filter_map(summed).collect();
        sums.sort_by_key(|entry| (entry.time.seconds, entry.time.nanos));
        sums
    }
}

fn summed(sum: Sum) -> Option<Entry> {
    let mut flow = sum.first.flow()?.clone();
    let (mut ingress, mut egress, mut unknown) = (0, 0, 0);
    match flow.traffic_direction() {
        TrafficDirection::Ingress => ingress = sum.flows,
        TrafficDirection::Egress => egress = sum.flows,
        TrafficDirection::Unknown => unknown = sum.flows,
    }
    flow.aggregate = Some(Aggregate {
        ingress_flow_count: ingress,
        egress_flow_count: egress,
        unknown_direction_flow_count: unknown,
    });
    words::sum_up(&mut flow, sum.packets, sum.last);
    Some(Entry { time: sum.first.time, content: Content::Flow(Box::new(flow)) })
}

fn key(flow: &Flow) -> Key {
    let of_ip = |source: bool| flow.ip.as_ref().map(|ip| if source { &ip.source } else { &ip.destination });
    let event = flow.event_type.unwrap_or_default();
    Key {
        source: name(flow.source.as_ref(), of_ip(true)),
        destination: name(flow.destination.as_ref(), of_ip(false)),
        port: ports_of(flow).map(|(_, destination)| destination),
        protocol: protocol(flow),
        direction: flow.traffic_direction,
        event: (event.r#type, event.sub_type),
        verdict: flow.verdict,
        reason: flow.drop_reason_desc,
    }
}

fn name(end: Option<&Endpoint>, address: Option<&String>) -> String {
    match end.filter(|end| !end.pod_name.is_empty()) {
        Some(end) => format!("{}/{}", end.namespace, end.pod_name),
        None => address.cloned().unwrap_or_default(),
    }
}

fn protocol(flow: &Flow) -> u8 {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        None => 0,
        Some(Protocol::Tcp(_)) => 1,
        Some(Protocol::Udp(_)) => 2,
        Some(Protocol::IcmPv4(_)) => 3,
        Some(Protocol::IcmPv6(_)) => 4,
        Some(Protocol::Sctp(_)) => 5,
        Some(Protocol::Vrrp(_)) => 6,
        Some(Protocol::Igmp(_)) => 7,
    }
}
