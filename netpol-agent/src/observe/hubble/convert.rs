//! A [`Flow`] as Hubble's messages: a policy verdict and a drop for a packet that policy denied, one of them else. Pure but
//! for the numbers of label sets.

use std::net::IpAddr;

use netpol_common::abi::{Direction, Reason};
use netpol_common::packet::{ether_type, protocol, tcp_flag};

use super::identity::{Identities, labels_of};
use super::proto::flow as hubble;
use super::proto::flow::layer4::Protocol;
use super::words;
use crate::cluster::model::{ObjectKey, Pod, PolicyKey};
use crate::flow::{End, Flow, Headers, Match, Who};

/// Types of events, by Cilium's numbers.
pub const EVENT_DROP: i32 = 1;
/// A policy's verdict on a new connection.
pub const EVENT_POLICY_VERDICT: i32 = 5;

/// The cluster's name where nobody gave it one.
pub const CLUSTER: &str = "default";

/// What is the same in every message of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The node.
    pub node: String,
    /// Our version.
    pub version: String,
}

/// The messages of a flow, in the order in which Cilium would send them; without `uuid`.
pub fn messages(flow: &Flow, stamp: &Stamp, identities: &mut Identities) -> Vec<hubble::Flow> {
    let mut message = common(flow, stamp, identities);
    if !flow.reason.is_drop() {
        message.verdict = hubble::Verdict::Forwarded.into();
        message.event_type = Some(hubble::CiliumEventType { r#type: EVENT_POLICY_VERDICT, sub_type: 0 });
        return vec![message];
    }
    let reason = i32::try_from(flow.drop_reason).unwrap_or_default();
    message.verdict = hubble::Verdict::Dropped.into();
    message.drop_reason_desc = reason;
    set_old_drop_reason(&mut message, flow.drop_reason);
    let drop = hubble::CiliumEventType { r#type: EVENT_DROP, sub_type: reason };
    if !is_verdict(flow.reason) {
        message.event_type = Some(drop);
        return vec![message];
    }
    let verdict = hubble::CiliumEventType { r#type: EVENT_POLICY_VERDICT, sub_type: 0 };
    let mut also = message.clone();
    also.event_type = Some(drop);
    message.event_type = Some(verdict);
    vec![message, also]
}

#[expect(deprecated, reason = "clients of old read nothing else")]
fn set_old_drop_reason(message: &mut hubble::Flow, reason: u32) {
    message.drop_reason = reason;
}

#[expect(deprecated, reason = "the last column of every client's lines")]
fn set_summary(message: &mut hubble::Flow, summary: String) {
    message.summary = summary;
}

/// Drops that policy decided on, with the policies at hand.
const fn is_verdict(reason: Reason) -> bool {
    matches!(reason, Reason::PolicyDenied | Reason::FlowRevoked | Reason::DeniedAfterTranslation)
}

fn common(flow: &Flow, stamp: &Stamp, identities: &mut Identities) -> hubble::Flow {
    let is_egress = flow.direction == Direction::Egress;
    let slot = u32::from(flow.slot);
    let mut message = hubble::Flow {
        time: Some(flow.time.into()),
        emitter: Some(hubble::Emitter { name: "netpol".to_owned(), version: stamp.version.clone() }),
        ethernet: ethernet(&flow.headers),
        ip: ip(flow),
        l4: layer4(flow),
        source: Some(endpoint(&flow.source, if is_egress { slot } else { 0 }, identities)),
        destination: Some(endpoint(&flow.destination, if is_egress { 0 } else { slot }, identities)),
        r#type: hubble::FlowType::L3L4.into(),
        node_name: stamp.node.clone(),
        source_service: flow.source.service.as_ref().map(service),
        destination_service: flow.destination.service.as_ref().map(service),
        traffic_direction: direction(flow.direction).into(),
        policy_match_type: match_type(flow.matched),
        is_reply: is_reply(flow),
        interface: (flow.ifindex != 0).then(|| hubble::NetworkInterface { index: flow.ifindex, name: String::new() }),
        extensions: words::extension(flow),
        ..hubble::Flow::default()
    };
    let denied = if is_verdict(flow.reason) { policies(&flow.policies) } else { Vec::new() };
    match flow.isolated_for.unwrap_or(flow.direction) {
        Direction::Ingress => message.ingress_denied_by = denied,
        Direction::Egress => message.egress_denied_by = denied,
    }
    match flow.direction {
        Direction::Ingress => message.ingress_allowed_by = policies(&flow.allowed_by),
        Direction::Egress => message.egress_allowed_by = policies(&flow.allowed_by),
    }
    set_summary(&mut message, words::summary(&flow.headers));
    message
}

/// Known where policy decided: a packet that opens a flow is no reply, one of a flow that the other side opened is.
fn is_reply(flow: &Flow) -> Option<bool> {
    let reason = flow.reason;
    if reason == Reason::FlowRevoked {
        return flow.isolated_for.map(|opened| opened != flow.direction);
    }
    if reason == Reason::UnconfirmedReply {
        return Some(true);
    }
    let opens = matches!(reason, Reason::PolicyDenied | Reason::DeniedAfterTranslation) || !reason.is_drop();
    opens.then_some(false)
}

const fn direction(direction: Direction) -> hubble::TrafficDirection {
    match direction {
        Direction::Ingress => hubble::TrafficDirection::Ingress,
        Direction::Egress => hubble::TrafficDirection::Egress,
    }
}

const fn match_type(matched: Match) -> u32 {
    match matched {
        Match::None => 0,
        Match::Peer => 1,
        Match::PeerAndPort => 2,
        Match::Port => 3,
        Match::All => 4,
    }
}

fn ethernet(headers: &Headers) -> Option<hubble::Ethernet> {
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    (headers.source_mac != [0; 6] || headers.destination_mac != [0; 6])
        .then(|| hubble::Ethernet { source: text(headers.source_mac), destination: text(headers.destination_mac) })
}

fn ip(flow: &Flow) -> Option<hubble::Ip> {
    let (source, destination) = (flow.source.ip?, flow.destination.ip?);
    let version = if source.is_ipv4() { hubble::IpVersion::IPv4 } else { hubble::IpVersion::IPv6 };
    Some(hubble::Ip {
        source: source.to_string(),
        destination: destination.to_string(),
        ip_version: version.into(),
        ..hubble::Ip::default()
    })
}

fn layer4(flow: &Flow) -> Option<hubble::Layer4> {
    let headers = &flow.headers;
    if !matches!(headers.ether_type, ether_type::IPV4 | ether_type::IPV6) {
        return None;
    }
    let source_port = u32::from(flow.source.port.unwrap_or_default());
    let destination_port = u32::from(flow.destination.port.unwrap_or_default());
    let (r#type, code) = (u32::from(headers.icmp_type), u32::from(headers.icmp_code));
    let protocol = match headers.protocol {
        protocol::TCP => Protocol::Tcp(hubble::Tcp { source_port, destination_port, flags: flags(headers.tcp_flags) }),
        protocol::UDP => Protocol::Udp(hubble::Udp { source_port, destination_port }),
        protocol::SCTP => Protocol::Sctp(hubble::Sctp { source_port, destination_port }),
        protocol::ICMP => Protocol::IcmPv4(hubble::IcmPv4 { r#type, code }),
        protocol::ICMPV6 => Protocol::IcmPv6(hubble::IcmPv6 { r#type, code }),
        words::VRRP => Protocol::Vrrp(hubble::Vrrp::default()),
        words::IGMP => Protocol::Igmp(hubble::Igmp::default()),
        _ => return None,
    };
    Some(hubble::Layer4 { protocol: Some(protocol) })
}

fn flags(bits: u8) -> Option<hubble::TcpFlags> {
    let has = |bit: u8| bits & bit != 0;
    (bits != 0).then(|| hubble::TcpFlags {
        fin: has(tcp_flag::FIN),
        syn: has(tcp_flag::SYN),
        rst: has(tcp_flag::RST),
        psh: has(words::PSH),
        ack: has(tcp_flag::ACK),
        urg: has(words::URG),
        ece: has(words::ECE),
        cwr: has(words::CWR),
        ns: false,
    })
}

fn endpoint(end: &End, slot: u32, identities: &mut Identities) -> hubble::Endpoint {
    let reserved = |identity: u32, names: &[&str]| hubble::Endpoint {
        identity,
        labels: names.iter().map(|name| format!("reserved:{name}")).collect(),
        ..hubble::Endpoint::default()
    };
    match &end.who {
        Who::Pod(pod) => of_pod(pod, slot, identities),
        Who::Host => reserved(1, &["host"]),
        Who::World => world(end.ip),
        Who::RemoteNode(_) => reserved(6, &["remote-node"]),
        Who::KubeApiServer => reserved(7, &["kube-apiserver", "remote-node"]),
        Who::Unknown | Who::Service => match &end.pod {
            Some(key) => hubble::Endpoint {
                id: slot,
                cluster_name: CLUSTER.to_owned(),
                namespace: key.namespace.to_string(),
                pod_name: key.name.to_string(),
                ..hubble::Endpoint::default()
            },
            None => hubble::Endpoint::default(),
        },
    }
}

/// What no node, pod or service has; groups that hosts of a link listen to among it.
fn world(_address: Option<IpAddr>) -> hubble::Endpoint {
    hubble::Endpoint { identity: 2, labels: vec!["reserved:world".to_owned()], ..hubble::Endpoint::default() }
}

fn of_pod(pod: &Pod, slot: u32, identities: &mut Identities) -> hubble::Endpoint {
    if pod.host_network {
        return hubble::Endpoint {
            identity: 1,
            labels: vec!["reserved:host".to_owned()],
            ..hubble::Endpoint::default()
        };
    }
    let labels = labels_of(pod);
    hubble::Endpoint {
        id: slot,
        identity: identities.number(&labels),
        cluster_name: CLUSTER.to_owned(),
        namespace: pod.key.namespace.to_string(),
        labels,
        pod_name: pod.key.name.to_string(),
        workloads: pod
            .workload
            .iter()
            .map(|it| hubble::Workload { name: it.name.to_string(), kind: it.kind.to_string() })
            .collect(),
    }
}

fn service(key: &ObjectKey) -> hubble::Service {
    hubble::Service { name: key.name.to_string(), namespace: key.namespace.to_string() }
}

fn policies(keys: &[PolicyKey]) -> Vec<hubble::Policy> {
    let policy = |key: &PolicyKey| hubble::Policy {
        name: key.name.to_string(),
        namespace: key.namespace.to_string(),
        kind: "NetworkPolicy".to_owned(),
        ..hubble::Policy::default()
    };
    keys.iter().map(policy).collect()
}
