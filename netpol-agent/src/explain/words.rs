//! Why a rule missed, in words that name the field, what it asks and what was found.

use std::sync::Arc;

use super::facts::protocol_name;
use super::naive::{Exempt, PeerReason, PortMiss, RuleMiss};
use super::{End, Miss, Side, Traffic};
use crate::cluster::model::{IpBlock, PortMatch, PortRange, Requirement};
use netpol_common::abi::Direction;

/// Reasons that are shown of a rule.
const SHOWN: usize = 6;

pub(super) fn miss(miss: &RuleMiss, side: Side<'_>) -> Miss {
    let list = match side.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let mut because = Vec::new();
    for (index, peer) in miss.peers.iter().flatten().enumerate() {
        for reason in &peer.because {
            because.push(format!("{list}[{index}]: {}", peer_reason(reason, side.peer)));
        }
    }
    if miss.peers.as_ref().is_some_and(Vec::is_empty) {
        because.push(format!("{list}: no item of it could be used (see the policy's problems): it is about nobody"));
    }
    for (index, port) in miss.ports.iter().flatten().enumerate() {
        because.push(format!("ports[{index}]: {}", port_miss(port, side.traffic)));
    }
    if miss.ports.as_ref().is_some_and(Vec::is_empty) {
        because.push("ports: no item of it could be used (see the policy's problems): it takes nothing".to_owned());
    }
    if because.len() > SHOWN {
        let more = because.len() - SHOWN;
        because.truncate(SHOWN);
        because.push(format!("and {more} more"));
    }
    let (peer_matches, port_matches) = (miss.peers.is_none(), miss.ports.is_none());
    Miss { rule: miss.rule.to_string(), peer_matches, port_matches, because }
}

fn peer_reason(reason: &PeerReason, peer: &End) -> String {
    match reason {
        PeerReason::NotAPod if peer.pod.is_some() => {
            format!("selectors match pods with a network of their own only; {peer} has its node's")
        }
        PeerReason::NotAPod => format!("selectors match pods only, and {peer} is none"),
        PeerReason::OtherNamespace(pod) => {
            format!("a podSelector alone means the policy's own namespace; {pod} is in {}", pod.namespace)
        }
        PeerReason::PodLabel(pod, requirement, found) => {
            format!("podSelector wants {}; {pod} has {}", wanted(requirement), found_label(requirement, found.as_ref()))
        }
        PeerReason::NamespaceLabel(pod, requirement, found) => format!(
            "namespaceSelector wants {}; namespace {} has {}",
            wanted(requirement),
            pod.namespace,
            found_label(requirement, found.as_ref())
        ),
        PeerReason::OutsideBlock(block) if block.cidr.addr().is_ipv4() != peer.address.is_ipv4() => {
            format!("ipBlock {} is of the other address family than {}", block.cidr, peer.address)
        }
        PeerReason::OutsideBlock(block) => format!("{} is not in ipBlock {}", peer.address, shown(block)),
        PeerReason::Excepted(block, except) => {
            format!("{} is in ipBlock {}, and cut out of it by except {except}", peer.address, block.cidr)
        }
    }
}

fn shown(block: &IpBlock) -> String {
    block.cidr.to_string()
}

fn wanted(requirement: &Requirement) -> String {
    let list = |values: &[Arc<str>]| values.join(", ");
    match requirement {
        Requirement::In(key, values) => match values.as_slice() {
            [] => "something that could not be understood".to_owned(),
            [value] => format!("{key}={value}"),
            values => format!("{key} in ({})", list(values)),
        },
        Requirement::NotIn(key, values) => format!("{key} not in ({})", list(values)),
        Requirement::Exists(key) => format!("a label {key}"),
        Requirement::DoesNotExist(key) => format!("no label {key}"),
    }
}

fn found_label(requirement: &Requirement, found: Option<&Arc<str>>) -> String {
    let (Requirement::In(key, _)
    | Requirement::NotIn(key, _)
    | Requirement::Exists(key)
    | Requirement::DoesNotExist(key)) = requirement;
    match found {
        Some(value) => format!("{key}={value}"),
        None if key.is_empty() => "none such".to_owned(),
        None => format!("no label {key}"),
    }
}

fn port_miss(miss: &PortMiss, traffic: Traffic) -> String {
    match miss {
        PortMiss::NoPorts => "ICMP and other protocols without ports pass by rules without `ports` only".to_owned(),
        PortMiss::OtherProtocol(item) => format!("takes {}, not {traffic}", port(item)),
        PortMiss::OtherPort(item) => format!("takes {}, not {traffic}", port(item)),
        PortMiss::UnknownName(pod, name, protocol) => {
            format!(
                "named port {name:?} is unknown on {pod}: no container declares it for {}",
                protocol_name(*protocol)
            )
        }
        PortMiss::NameIsOther(pod, name, number) => {
            format!("named port {name:?} is {number} on {pod}, not {traffic}")
        }
        PortMiss::NobodyNames(name) => {
            format!("named port {name:?} is looked up on the pod that has the address, and none has it")
        }
    }
}

fn port(item: &PortMatch) -> String {
    let protocol = protocol_name(item.protocol);
    match &item.ports {
        PortRange::All => format!("{protocol} on every port"),
        PortRange::Numbers(first, last) if first == last => format!("{protocol} {first}"),
        PortRange::Numbers(first, last) => format!("{protocol} {first}-{last}"),
        PortRange::Named(name) => format!("{protocol} {name}"),
    }
}

pub(super) fn exempt(exempt: Exempt, side: Side<'_>) -> String {
    let end = side.subject;
    match exempt {
        Exempt::NoPod if end.node.is_some() => format!("{end} is no pod: policies do not act on nodes"),
        Exempt::NoPod => format!("{end} is no pod of the cluster: no policy acts on it"),
        Exempt::HostNetwork => format!("{end} is in its node's network (hostNetwork): no policy acts on it"),
        Exempt::Terminal => format!("{end} has completed: it no longer owns its address, and no policy acts on it"),
        Exempt::ToSelf => "a pod always reaches itself, through its service too".to_owned(),
        Exempt::OwnNode => match side.direction {
            Direction::Ingress => "a pod's own node always reaches it (kubelet probes)".to_owned(),
            Direction::Egress => "a pod always reaches its own node (--enforce-own-node changes that)".to_owned(),
        },
    }
}
