//! A [`Question`] -> the flows that it means: each backend of a service, each address family, each port.

use std::net::IpAddr;
use std::sync::Arc;

use super::question::{Ports, Question, Target};
use super::{End, Facts, Flow, Traffic};
use crate::cluster::model::{ObjectKey, Pod, Protocol, Service, ServicePort, TargetPort};
use crate::cluster::state::is_live;

/// Flows that are explained at most.
const MOST: usize = 64;
/// Names that are offered.
const SIMILAR: usize = 5;

/// Why a question has no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unanswerable {
    /// What is wrong with it, and what to do.
    pub message: String,
    /// What may have been meant.
    pub similar: Vec<String>,
}

/// The flows, and what is to be said about them as a whole.
type Resolved = (Vec<Flow>, Vec<String>);

fn unanswerable(message: String) -> Unanswerable {
    Unanswerable { message, similar: Vec::new() }
}

/// Finds what is meant.
///
/// # Errors
/// Somebody is not known, has no address, or no port is named and none declared.
pub fn resolve(question: &Question, facts: &Facts<'_>) -> Result<Resolved, Unanswerable> {
    let mut notes = Vec::new();
    let sources = ends(&question.source, facts, &mut notes)?;
    let mut flows = Vec::new();
    for (destination, traffic) in destinations(question, facts, &mut notes)? {
        let same_family = |source: &&End| source.address.is_ipv4() == destination.address.is_ipv4();
        flows.extend(sources.iter().filter(same_family).map(|source| Flow {
            source: source.clone(),
            destination: destination.clone(),
            traffic,
        }));
    }
    if flows.is_empty() {
        let message = format!("{} and {} have no address family in common", question.source, question.destination);
        return Err(unanswerable(message));
    }
    if flows.len() > MOST {
        notes.push(format!("{} flows are meant; the first {MOST} are shown: ask about one pod", flows.len()));
        flows.truncate(MOST);
    }
    Ok((flows, notes))
}

/// The ends that a target stands for, ports aside.
fn ends(target: &Target, facts: &Facts<'_>, notes: &mut Vec<String>) -> Result<Vec<End>, Unanswerable> {
    match target {
        Target::Pod(key) => pod_ends(pod(key, facts)?, notes),
        Target::Node(name) => node_ends(name, facts),
        Target::Service(key) => {
            let service = service(key, facts)?;
            let backends = backends(service, facts, notes);
            Ok(backends.iter().flat_map(|pod| pod.addresses.iter().map(|address| end_of(pod, *address))).collect())
        }
        Target::Address(address) => Ok(at(*address, facts, notes)),
    }
}

fn pod<'a>(key: &ObjectKey, facts: &Facts<'a>) -> Result<&'a Arc<Pod>, Unanswerable> {
    facts.cluster.pod(key).ok_or_else(|| {
        let all = facts.cluster.pods().map(|pod| pod.key.to_string());
        let similar = similar(&key.to_string(), &key.name, all);
        Unanswerable { message: format!("there is no pod {key}"), similar }
    })
}

fn service<'a>(key: &ObjectKey, facts: &Facts<'a>) -> Result<&'a Arc<Service>, Unanswerable> {
    facts.cluster.services().find(|service| service.key == *key).ok_or_else(|| {
        let all = facts.cluster.services().map(|service| service.key.to_string());
        let similar = similar(&key.to_string(), &key.name, all).into_iter().map(|name| format!("svc/{name}")).collect();
        Unanswerable { message: format!("there is no service {key}"), similar }
    })
}

/// Names that share much with what was typed: the same name elsewhere, or one that begins alike.
fn similar(full: &str, name: &str, all: impl Iterator<Item = String>) -> Vec<String> {
    let begin: String = name.chars().take(4).collect();
    let namespace = full.split_once('/').map_or("", |(namespace, _)| namespace);
    let mut ranked: Vec<(usize, String)> = all
        .filter_map(|candidate| {
            let (its_namespace, its_name) = candidate.split_once('/')?;
            let rank = match (its_name == name, its_name.starts_with(&begin), its_namespace == namespace) {
                (true, ..) => 0,
                (_, true, true) => 1,
                (_, true, false) => 2,
                (_, false, true) => 3,
                _ => return None,
            };
            Some((rank, candidate))
        })
        .collect();
    ranked.sort();
    ranked.into_iter().take(SIMILAR).map(|(_, candidate)| candidate).collect()
}

fn pod_ends(pod: &Pod, notes: &mut Vec<String>) -> Result<Vec<End>, Unanswerable> {
    if pod.addresses.is_empty() {
        let message = format!("pod {} has no address (yet): nothing can reach it, and it reaches nothing", pod.key);
        return Err(unanswerable(message));
    }
    if pod.terminal {
        note(notes, format!("pod {} has completed: its address is no longer its own, no selector matches it", pod.key));
    }
    if pod.host_network {
        note(
            notes,
            format!("pod {} has its node's network: policies see the node's address, no selector matches", pod.key),
        );
    }
    Ok(pod.addresses.iter().map(|address| end_of(pod, *address)).collect())
}

fn end_of(pod: &Pod, address: IpAddr) -> End {
    let node = (!pod.node.is_empty()).then(|| pod.node.clone());
    End { address, pod: Some(pod.key.clone()), service: None, node }
}

fn node_ends(name: &str, facts: &Facts<'_>) -> Result<Vec<End>, Unanswerable> {
    let end = |address| End { node: Some(name.into()), ..End::outside(address) };
    let ends: Vec<End> = facts.nodes.addresses(name).map(end).collect();
    if ends.is_empty() {
        let similar = facts.nodes.names().take(SIMILAR).map(|name| format!("node/{name}")).collect();
        let message = format!("no address of node {name} is known; give the address itself");
        return Err(Unanswerable { message, similar });
    }
    Ok(ends)
}

/// Who sits at an address. Of several live pods each, as nobody can tell which one it is.
fn at(address: IpAddr, facts: &Facts<'_>, notes: &mut Vec<String>) -> Vec<End> {
    let owners: Vec<&Arc<Pod>> = facts.cluster.claimants(address).filter_map(|key| facts.cluster.pod(key)).collect();
    if owners.len() > 1 {
        let names: Vec<String> = owners.iter().map(|pod| pod.key.to_string()).collect();
        let message =
            format!("{address} is claimed by {}: as a peer it may do only what all of them may", names.join(", "));
        note(notes, message);
    }
    if owners.is_empty() {
        return vec![End { node: facts.nodes.at(address).cloned(), ..End::outside(address) }];
    }
    owners.into_iter().map(|pod| end_of(pod, address)).collect()
}

/// Where packets are led to, and on which port they arrive.
fn destinations(
    question: &Question,
    facts: &Facts<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<(End, Traffic)>, Unanswerable> {
    let asked = &question.ports;
    match &question.destination {
        Target::Service(key) => through_service(service(key, facts)?, (asked, false), facts, notes),
        Target::Address(address) => {
            match facts.cluster.services().find(|service| service.addresses.contains(address)) {
                Some(service) => {
                    let family = address.is_ipv4();
                    let mut behind = through_service(service, (asked, false), facts, notes)?;
                    behind.retain(|(end, _)| end.address.is_ipv4() == family);
                    Ok(behind)
                }
                None if facts.nodes.at(*address).is_some() => of_node(question, facts, notes),
                None => direct(at(*address, facts, notes), question, facts),
            }
        }
        Target::Node(_) => of_node(question, facts, notes),
        Target::Pod(key) => direct(pod_ends(pod(key, facts)?, notes)?, question, facts),
    }
}

/// A node's address: its NodePorts lead to backends.
fn of_node(
    question: &Question,
    facts: &Facts<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<(End, Traffic)>, Unanswerable> {
    if let Ports::Number(protocol, number) = question.ports {
        let leads = |port: &ServicePort| port.protocol == protocol && port.node_port == Some(number);
        let found = facts.cluster.services().find(|service| service.ports.iter().any(leads));
        if let Some(service) = found {
            note(
                notes,
                "a NodePort of another node may masquerade the client: then its pods see that node's address"
                    .to_owned(),
            );
            return through_service(service, (&question.ports, true), facts, notes);
        }
    }
    direct(ends(&question.destination, facts, notes)?, question, facts)
}

/// The address itself, on the ports that were asked about or that the pod declares.
fn direct(ends: Vec<End>, question: &Question, facts: &Facts<'_>) -> Result<Vec<(End, Traffic)>, Unanswerable> {
    let mut found = Vec::new();
    for end in ends {
        let pod = end.pod.as_ref().and_then(|key| facts.cluster.pod(key));
        match &question.ports {
            Ports::Number(protocol, port) => found.push((end, Traffic::Port(*protocol, *port))),
            Ports::Icmp => found.push((end, Traffic::Other)),
            Ports::Named(protocol, name) => {
                let number = pod.and_then(|pod| declared(pod, name, *protocol));
                let number = number.ok_or_else(|| no_such_name(&end, name, pod.map(|pod| &**pod)))?;
                found.push((end, Traffic::Port(*protocol, number)));
            }
            Ports::Declared => {
                let ports = pod.map(|pod| pod.named_ports.as_slice()).unwrap_or_default();
                let traffic = ports.iter().map(|port| Traffic::Port(port.protocol, port.port));
                found.extend(traffic.map(|traffic| (end.clone(), traffic)));
            }
        }
    }
    if found.is_empty() {
        let of = &question.destination;
        return Err(unanswerable(format!("{of} declares no named port: say which port, as {of}:8080, or {of}:icmp")));
    }
    found.dedup();
    Ok(found)
}

fn declared(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    let wanted = pod.named_ports.iter().find(|port| *port.name == *name && port.protocol == protocol);
    wanted.map(|port| port.port)
}

fn no_such_name(end: &End, name: &str, pod: Option<&Pod>) -> Unanswerable {
    let declared = pod.map(|pod| pod.named_ports.as_slice()).unwrap_or_default();
    let similar = declared.iter().map(|port| format!("{} ({}/{:?})", port.name, port.port, port.protocol)).collect();
    Unanswerable { message: format!("{end} declares no port named {name:?} for that protocol"), similar }
}

/// The pods behind a service, each with the port where packets arrive; egress to a service is judged there.
fn through_service(
    service: &Service,
    (asked, by_node_port): (&Ports, bool),
    facts: &Facts<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<(End, Traffic)>, Unanswerable> {
    let key = &service.key;
    let is_asked = |port: &&ServicePort| match asked {
        Ports::Declared => true,
        Ports::Number(protocol, number) if by_node_port => {
            port.protocol == *protocol && port.node_port == Some(*number)
        }
        Ports::Number(protocol, number) => port.protocol == *protocol && port.port == *number,
        Ports::Named(protocol, name) => {
            port.protocol == *protocol && matches!(&port.target, TargetPort::Named(target) if **target == **name)
        }
        Ports::Icmp => false,
    };
    let ports: Vec<&ServicePort> = service.ports.iter().filter(is_asked).collect();
    if ports.is_empty() {
        let similar = service.ports.iter().map(|port| format!("svc/{key}:{}/{:?}", port.port, port.protocol)).collect();
        let message = format!("service {key} has no such port (and nothing answers ICMP at its address)");
        return Err(Unanswerable { message, similar });
    }
    note(notes, format!("service {key}: policy is judged on the pods behind it, with their addresses and ports"));
    let mut found = Vec::new();
    for pod in backends(service, facts, notes) {
        for port in &ports {
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Named(name) => declared(pod, name, port.protocol),
            };
            let Some(number) = number else {
                note(
                    notes,
                    format!("pod {} declares no port {:?}: it is no backend of that port", pod.key, port.target),
                );
                continue;
            };
            let ends = pod.addresses.iter().map(|address| End { service: Some(key.clone()), ..end_of(pod, *address) });
            found.extend(ends.map(|end| (end, Traffic::Port(port.protocol, number))));
        }
    }
    if found.is_empty() {
        let message = match service.selector {
            Some(_) => format!("service {key} has no backend: no running pod has the labels that it selects"),
            None => {
                format!("service {key} selects nothing; its endpoints are set by somebody else: ask about one of them")
            }
        };
        return Err(unanswerable(message));
    }
    Ok(found)
}

/// The pods that a service selects, ready or not.
fn backends<'a>(service: &Service, facts: &Facts<'a>, notes: &mut Vec<String>) -> Vec<&'a Arc<Pod>> {
    let Some(selector) = &service.selector else { return Vec::new() };
    let has = |pod: &&Arc<Pod>| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    let pods = facts.cluster.pods_in(&service.key.namespace).filter(|pod| !pod.terminal).filter(has);
    let pods: Vec<&Arc<Pod>> = pods.filter(|pod| !pod.addresses.is_empty()).collect();
    if pods.iter().any(|pod| !is_live(pod)) {
        note(
            notes,
            format!("service {} has backends in their node's network: they are nodes to policies", service.key),
        );
    }
    pods
}

fn note(notes: &mut Vec<String>, text: String) {
    if !notes.contains(&text) {
        notes.push(text);
    }
}
