//! `--summary`: flows in, a table of who is dropped by what, how often, out. Pure; the most frequent come first.

use std::collections::HashMap;

use prost_types::Struct;
use prost_types::value::Kind;

use super::columns::Columns;
use super::describe::{flow_type, policies, ports};
use super::when::Layout;
use super::words;
use crate::observe::hubble::proto::flow::layer4::Protocol;
use crate::observe::hubble::proto::flow::{Endpoint, Flow, Policy, Service, TrafficDirection, Verdict};
use crate::observe::hubble::proto::observer::GetFlowsResponse;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;

/// Rows that are told apart; packets beyond are counted together.
const MOST: usize = 10_000;

/// Who is dropped by what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    source: String,
    destination: String,
    port: String,
    direction: &'static str,
    reason: String,
    by: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    packets: u64,
    last: Option<prost_types::Timestamp>,
}

/// The counts so far.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    counts: HashMap<Key, Count>,
    others: u64,
    lost: u64,
}

impl Summary {
    /// Takes a response in.
    pub fn add(&mut self, response: &GetFlowsResponse) {
        match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => self.add_flow(flow),
            Some(ResponseTypes::LostEvents(lost)) => self.lost += lost.num_events_lost,
            Some(ResponseTypes::NodeStatus(_)) | None => {}
        }
    }

    /// Verdicts are left out: the same packet's drop is counted.
    fn add_flow(&mut self, flow: &Flow) {
        let is_drop = flow.event_type.is_some_and(|event| event.r#type == words::DROP);
        if !is_drop || flow.verdict() != Verdict::Dropped {
            return;
        }
        let key = key(flow);
        if self.counts.len() >= MOST && !self.counts.contains_key(&key) {
            self.others += 1;
            return;
        }
        let count = self.counts.entry(key).or_default();
        count.packets += 1 + suppressed(flow);
        count.last = flow.time;
    }

    /// The table; at most so many rows.
    #[must_use]
    pub fn table(&self, rows: usize) -> String {
        let mut sorted: Vec<(&Key, &Count)> = self.counts.iter().collect();
        sorted.sort_by(|(one, ones), (other, others)| others.packets.cmp(&ones.packets).then_with(|| one.cmp(other)));
        let mut columns = Columns::default();
        let head = ["PACKETS", "SOURCE", "DESTINATION", "PORT", "DIRECTION", "REASON", "POLICIES", "LAST"];
        columns.add(head.map(ToOwned::to_owned).to_vec());
        for (key, count) in sorted.iter().take(rows) {
            let Key { source, destination, port, direction, reason, by } = key;
            columns.add(vec![
                count.packets.to_string(),
                source.clone(),
                destination.clone(),
                port.clone(),
                (*direction).to_owned(),
                reason.clone(),
                by.clone(),
                Layout::StampMilli.format(count.last.as_ref()),
            ]);
        }
        let mut text = columns.take();
        let hidden = sorted.len().saturating_sub(rows);
        for (count, what) in [
            (u64::try_from(hidden).unwrap_or(0), "more rows"),
            (self.others, "packets more"),
            (self.lost, "events lost"),
        ] {
            if count > 0 {
                text.push_str(&format!("({count} {what})\n"));
            }
        }
        text
    }
}

fn key(flow: &Flow) -> Key {
    let ip = flow.ip.clone().unwrap_or_default();
    let (_, destination_port) = ports(flow);
    let protocol = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(_)) => "TCP",
        Some(Protocol::Udp(_)) => "UDP",
        Some(Protocol::Sctp(_)) => "SCTP",
        Some(Protocol::IcmPv4(_)) => "ICMPv4",
        Some(Protocol::IcmPv6(_)) => "ICMPv6",
        Some(Protocol::Vrrp(_)) => "VRRP",
        Some(Protocol::Igmp(_)) => "IGMP",
        None => "-",
    };
    let port = if destination_port == 0 { protocol.to_owned() } else { format!("{destination_port}/{protocol}") };
    let names =
        |policies: &[Policy]| policies.iter().map(|it| format!("{}/{}", it.namespace, it.name)).collect::<Vec<_>>();
    let mut by = names(&flow.egress_denied_by);
    by.extend(names(&flow.ingress_denied_by));
    Key {
        source: end(flow.source.as_ref(), flow.source_service.as_ref(), &ip.source),
        destination: end(flow.destination.as_ref(), flow.destination_service.as_ref(), &ip.destination),
        port,
        direction: match flow.traffic_direction() {
            TrafficDirection::Ingress => "ingress",
            TrafficDirection::Egress => "egress",
            TrafficDirection::Unknown => "-",
        },
        reason: flow_type(flow) + &policies(flow),
        by: if by.is_empty() { "-".to_owned() } else { by.join(", ") },
    }
}

fn end(end: Option<&Endpoint>, service: Option<&Service>, address: &str) -> String {
    match (end.filter(|end| !end.pod_name.is_empty()), service) {
        (Some(pod), _) => format!("{}/{}", pod.namespace, pod.pod_name),
        (None, Some(service)) => format!("{}/{}", service.namespace, service.name),
        (None, None) => address.to_owned(),
    }
}

/// Packets like it that had no event of their own.
fn suppressed(flow: &Flow) -> u64 {
    use prost::Message as _;
    let value = flow.extensions.as_ref().and_then(|any| Struct::decode(any.value.as_slice()).ok());
    let number = value.and_then(|mut it| it.fields.remove("suppressed")).and_then(|value| value.kind);
    match number {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a 32-bit count on the wire; the cast saturates"
        )]
        Some(Kind::NumberValue(number)) => number as u64,
        _ => 0,
    }
}
