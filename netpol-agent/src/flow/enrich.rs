//! A raw event named: whose packet, from whom to whom, which policies isolate the pod, what let it through or nearly did.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use netpol_common::abi::{Direction, Reason};
use netpol_common::packet::{ether_type, protocol, tcp_flag};

use super::decode::RawEvent;
use super::departed::Departed;
use super::{End, Flow, Headers, Match, Who};
use crate::cluster::ClusterState;
use crate::cluster::model::{Labels, Peers, Pod, PodKey, PolicyKey, Ports};
use crate::policy::{Explanation, Provenance, RuleReference};

/// Turns CLOCK_MONOTONIC stamps into wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall-clock time when the monotonic clock was 0.
    pub zero: SystemTime,
}

/// What an event's numbers and addresses are looked up in.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// What time it is.
    pub clock: Clock,
    /// The cluster now.
    pub cluster: &'a ClusterState,
    /// Pods that were in it a moment ago.
    pub departed: &'a Departed,
    /// What numbers stand for.
    pub provenance: &'a Provenance,
    /// This node's name.
    pub node: &'a str,
    /// This node's addresses.
    pub own_addresses: &'a BTreeSet<IpAddr>,
}

/// Names an event.
#[must_use]
pub fn enrich(event: &RawEvent, around: Surroundings<'_>) -> Flow {
    let Surroundings { clock, provenance, .. } = around;
    let pod = provenance.pod(event.slot).cloned();
    let (source_ip, destination_ip) = addresses(event);
    let has_ports = matches!(event.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    let end = |ip: Option<IpAddr>, port: u16, is_subject: bool| {
        let (key, who) = if is_subject { around.subject(pod.as_ref(), ip) } else { around.peer(ip) };
        let service = ip.and_then(|ip| around.cluster.service_at(ip)).filter(|_| !is_subject).cloned();
        End { ip, port: has_ports.then_some(port), pod: key, who, service }
    };
    let from_subject = event.direction == Direction::Egress && event.reason != Reason::SpoofedAddress;
    let is_by_policy = matches!(event.reason, Reason::PolicyDenied | Reason::DeniedAfterTranslation);
    let explanation = provenance.explain(event.policy, event.identity, event.protocol, event.destination_port);
    let rules = explanation.as_ref().filter(|_| !event.reason.is_drop()).map(|it| it.allowed_by.as_slice());
    let rules = rules.unwrap_or_default();
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
        allowed_by: policies_of(rules),
        matched: matched(rules, around.cluster),
        hint: explanation.as_ref().filter(|_| is_by_policy).map(hint).unwrap_or_default(),
        headers: headers(event),
        slot: event.slot,
        length: event.length,
        suppressed: event.suppressed,
        ifindex: event.ifindex,
        pod,
    }
}

impl Surroundings<'_> {
    /// The pod that was judged; where its object is not known, whoever has the address.
    fn subject(&self, pod: Option<&PodKey>, ip: Option<IpAddr>) -> (Option<PodKey>, Who) {
        let Some(key) = pod else { return self.peer(ip) };
        let known = self.cluster.pod(key).or_else(|| self.departed.named(key));
        (Some(key.clone()), known.map(|pod| Who::Pod(pod.clone())).unwrap_or_default())
    }

    fn peer(&self, ip: Option<IpAddr>) -> (Option<PodKey>, Who) {
        let who = ip.map(|ip| self.who(ip)).unwrap_or_default();
        let key = match &who {
            Who::Pod(pod) => Some(pod.key.clone()),
            Who::Unknown | Who::Host | Who::RemoteNode(_) | Who::KubeApiServer | Who::Service | Who::World => None,
        };
        (key, who)
    }

    /// Who has an address: the one live pod that claims it (of several none is named), the cluster's own, or the last pod.
    fn who(&self, ip: IpAddr) -> Who {
        let mut claimants = self.cluster.claimants(ip);
        if let Some(first) = claimants.next() {
            let pod = self.cluster.pod(first).filter(|_| claimants.next().is_none());
            return pod.map(|pod| Who::Pod(pod.clone())).unwrap_or_default();
        }
        if self.cluster.service_at(ip).is_some() {
            return Who::Service;
        }
        if ip.is_loopback() || self.own_addresses.contains(&ip) {
            return Who::Host;
        }
        let mut hosted = self.cluster.hosted_at(ip).peekable();
        if let Some(first) = hosted.peek().copied() {
            return if !self.node.is_empty() && *first.node == *self.node {
                Who::Host
            } else if hosted.any(is_api_server) {
                Who::KubeApiServer
            } else {
                Who::RemoteNode(first.node.clone())
            };
        }
        self.departed.at(ip).map_or(Who::World, |pod| Who::Pod(pod.clone()))
    }
}

/// The API server as kubeadm and the like run it.
fn is_api_server(pod: &Arc<Pod>) -> bool {
    let has = |labels: &Labels, key: &str, value: &str| labels.get(key).is_some_and(|it| **it == *value);
    *pod.key.namespace == *"kube-system" && has(&pod.labels, "component", "kube-apiserver")
}

fn policies_of(rules: &[RuleReference]) -> Vec<PolicyKey> {
    let mut policies: Vec<PolicyKey> = rules.iter().map(|rule| rule.policy.clone()).collect();
    policies.dedup();
    policies
}

/// What the narrowest of the rules asks about.
fn matched(rules: &[RuleReference], cluster: &ClusterState) -> Match {
    let of = |reference: &RuleReference| {
        let policy = cluster.policy(&reference.policy)?;
        let list = match reference.direction {
            Direction::Ingress => policy.ingress.as_ref(),
            Direction::Egress => policy.egress.as_ref(),
        };
        let rule = list?.get(reference.index)?;
        Some((!matches!(rule.peers, Peers::Everyone), !matches!(rule.ports, Ports::Everything)))
    };
    match rules.iter().filter_map(of).max() {
        None => Match::None,
        Some((true, true)) => Match::PeerAndPort,
        Some((true, false)) => Match::Peer,
        Some((false, true)) => Match::Port,
        Some((false, false)) => Match::All,
    }
}

const fn headers(event: &RawEvent) -> Headers {
    Headers {
        ether_type: event.ether_type,
        protocol: event.protocol,
        tcp_flags: event.tcp_flags,
        icmp_type: event.icmp_type,
        icmp_code: event.icmp_code,
        source_mac: event.source_mac,
        destination_mac: event.destination_mac,
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
