//! A raw event named: whose packet, from whom to whom, which policies isolate the pod, and what nearly let it through.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use netpol_common::abi::{Direction, Reason};
use netpol_common::packet::{ether_type, protocol, tcp_flag};

use super::decode::RawEvent;
use super::{End, Flow};
use crate::cluster::ClusterState;
use crate::cluster::model::PodKey;
use crate::policy::{Explanation, Provenance, RuleReference};

/// Turns CLOCK_MONOTONIC stamps into wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall-clock time when the monotonic clock was 0.
    pub zero: SystemTime,
}

/// Names an event.
#[must_use]
pub fn enrich(event: &RawEvent, clock: Clock, cluster: &ClusterState, provenance: &Provenance) -> Flow {
    let pod = provenance.pod(event.slot).cloned();
    let (source_ip, destination_ip) = addresses(event);
    let has_ports = matches!(event.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    let end = |ip: Option<IpAddr>, port: u16, is_subject: bool| End {
        ip,
        port: has_ports.then_some(port),
        pod: if is_subject { pod.clone() } else { ip.and_then(|ip| pod_at(cluster, ip)) },
    };
    let from_subject = event.direction == Direction::Egress && event.reason != Reason::SpoofedAddress;
    let is_by_policy = matches!(event.reason, Reason::PolicyDenied | Reason::DeniedAfterTranslation);
    let explanation = provenance.explain(event.policy, event.identity, event.protocol, event.destination_port);
    Flow {
        time: clock.zero + Duration::from_nanos(event.time),
        direction: event.direction,
        reason: event.reason,
        drop_reason: event.reason.hubble(),
        source: end(source_ip, event.source_port, from_subject),
        destination: end(destination_ip, event.destination_port, event.direction == Direction::Ingress),
        protocol: protocol_name(event),
        summary: summary(event),
        policies: explanation.as_ref().map(|it| it.isolated_by.clone()).unwrap_or_default(),
        isolated_for: provenance.direction(event.policy),
        hint: explanation.filter(|_| is_by_policy).map(|it| hint(&it)).unwrap_or_default(),
        length: event.length,
        suppressed: event.suppressed,
        ifindex: event.ifindex,
        pod,
    }
}

fn addresses(event: &RawEvent) -> (Option<IpAddr>, Option<IpAddr>) {
    match event.ether_type {
        ether_type::IPV4 => (Some(v4(&event.source)), Some(v4(&event.destination))),
        ether_type::IPV6 => (Some(Ipv6Addr::from(event.source).into()), Some(Ipv6Addr::from(event.destination).into())),
        _ => (None, None),
    }
}

fn v4(bytes: &[u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = *bytes;
    Ipv4Addr::new(a, b, c, d).into()
}

/// The one live pod that has an address; of several claimants none is named.
fn pod_at(cluster: &ClusterState, address: IpAddr) -> Option<PodKey> {
    let mut claimants = cluster.claimants(address);
    let first = claimants.next()?;
    claimants.next().is_none().then(|| first.clone())
}

fn protocol_name(event: &RawEvent) -> String {
    match (event.ether_type, event.protocol) {
        (ether_type::IPV4 | ether_type::IPV6, number) => match number {
            protocol::TCP => "TCP".to_owned(),
            protocol::UDP => "UDP".to_owned(),
            protocol::SCTP => "SCTP".to_owned(),
            protocol::ICMP => "ICMPv4".to_owned(),
            protocol::ICMPV6 => "ICMPv6".to_owned(),
            other => format!("protocol {other}"),
        },
        (ether_type::ARP, _) => "ARP".to_owned(),
        (other, _) => format!("ethertype {other:#06x}"),
    }
}

fn summary(event: &RawEvent) -> String {
    match event.protocol {
        protocol::TCP if event.tcp_flags != 0 => {
            let names = [
                (tcp_flag::SYN, "SYN"),
                (tcp_flag::ACK, "ACK"),
                (tcp_flag::RST, "RST"),
                (tcp_flag::FIN, "FIN"),
                (0x08, "PSH"),
                (0x20, "URG"),
            ];
            let set: Vec<&str> =
                names.iter().filter(|(bit, _)| event.tcp_flags & bit != 0).map(|&(_, name)| name).collect();
            set.join(", ")
        }
        protocol::ICMP | protocol::ICMPV6 => format!("type {} code {}", event.icmp_type, event.icmp_code),
        _ => String::new(),
    }
}

/// One clause on what nearly let the packet through.
fn hint(explanation: &Explanation) -> String {
    let named = |rules: &[RuleReference]| {
        let names: Vec<String> =
            rules.iter().take(3).map(|it| format!("{} {}[{}]", it.policy, it.direction.name(), it.index)).collect();
        names.join(", ")
    };
    if !explanation.other_port.is_empty() {
        format!("peer matches {} but not on this port", named(&explanation.other_port))
    } else if !explanation.other_peer.is_empty() {
        format!("port is open in {} but not to this peer", named(&explanation.other_peer))
    } else {
        "no rule names this peer or this port".to_owned()
    }
}
