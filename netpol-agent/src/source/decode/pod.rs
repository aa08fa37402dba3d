//! Pod -> [`Pod`], Namespace -> [`Namespace`].

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, PodSpec, PodStatus};
use serde_json::{Map, Value};

use super::Head;
use super::names::is_port_name;
use super::owner::workload;
use super::port::{PORT_NAME_SYNTAX, number, protocol_of};
use super::report::{Report, child, index, quote};
use super::section::{read_section, stray_fields};
use crate::cluster::model::{Labels, NamedPort, Namespace, Pod, Protocol};

/// Effect of refusing a pod.
pub(super) const NO_POD: &str = "the pod is not known: no selector matches it and no policy selects it";
/// Effect of refusing a namespace.
pub(super) const NO_NAMESPACE: &str = "the namespace is not known: no namespaceSelector matches it";
const NO_HOST_PORT: &str = "with --enforce-own-node, egress to this port of the node is judged by the node's address";
const NO_NAME: &str = "no rule finds this port by its name";
const NO_ADDRESS: &str = "the address is not the pod's: nothing that selects the pod applies to it";
/// The label every namespace has; nobody can change it.
const METADATA_NAME: &str = "kubernetes.io/metadata.name";

/// The fields below spec and status that are read; what looks like a slip of one refuses the pod.
const READ: [&str; 12] = [
    "spec",
    "status",
    "hostNetwork",
    "nodeName",
    "containers",
    "initContainers",
    "restartPolicy",
    "ports",
    "hostPort",
    "podIP",
    "podIPs",
    "phase",
];

/// Reads a pod; `None` if it cannot be taken at all.
pub(super) fn pod(report: &mut Report, head: Head, object: &Map<String, Value>) -> Option<Pod> {
    let sound = stray_fields(report, object, &READ, NO_POD);
    let spec = read_section::<PodSpec>(report, object, "spec", (&READ, NO_POD))?;
    let status = read_section::<PodStatus>(report, object, "status", (&READ, NO_POD))?;
    if !(sound && head.sound) {
        return None;
    }
    let terminal = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let addresses = addresses(report, &status);
    if addresses.is_empty() && !terminal && !report.refused() {
        report.note("status.podIPs", "the pod has no address", "no traffic of it can be judged until it has one");
    }
    Some(Pod {
        key: head.key,
        uid: head.uid.into(),
        static_uid: head.static_uid.into(),
        workload: head.owner.and_then(|owner| workload(&owner, &head.labels)),
        labels: Arc::new(head.labels),
        addresses,
        named_ports: named_ports(report, &spec),
        host_ports: host_ports(report, &spec),
        node: spec.node_name.unwrap_or_default().into(),
        host_network: spec.host_network.unwrap_or_default(),
        terminal,
    })
}

/// Every valid address, the first of each family.
fn addresses(report: &mut Report, status: &PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    let listed = listed.iter().enumerate().map(|(at, entry)| (index("status.podIPs", at), entry.ip.as_str()));
    let mut given: Vec<(String, &str)> = listed.collect();
    if given.is_empty() {
        given.extend(
            status.pod_ip.as_deref().map(|ip| ("status.podIP".to_owned(), ip)).filter(|(_, ip)| !ip.is_empty()),
        );
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (path, text) in given {
        let Some(address) = unicast(text) else {
            report.refuse(&path, format!("bad pod address {}; write one unicast IP address", quote(text)), NO_ADDRESS);
            continue;
        };
        match addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            None => addresses.push(address),
            Some(other) if *other == address => {}
            Some(other) => {
                let message = format!("second address {address} of a family, beside {other}; a pod has one of each");
                report.refuse(&path, message, NO_ADDRESS);
            }
        }
    }
    addresses
}

/// An address that a pod or a service can have.
pub(super) fn unicast(text: &str) -> Option<IpAddr> {
    let address = IpAddr::from_str(text).ok()?;
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let odd = address.is_unspecified() || address.is_multicast() || address.is_loopback() || mapped || broadcast;
    (!odd).then_some(address)
}

/// Ports of containers, and of init containers that stay (sidecars), each with its path.
fn ports(spec: &PodSpec) -> impl Iterator<Item = (String, &ContainerPort)> {
    let containers = spec.containers.iter().enumerate().map(|(at, c)| (index("spec.containers", at), &c.ports));
    let sidecars = spec.init_containers.as_deref().unwrap_or_default().iter().enumerate();
    let sidecars = sidecars
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(at, container)| (index("spec.initContainers", at), &container.ports));
    containers.chain(sidecars).flat_map(|(path, ports)| {
        let path = child(&path, "ports");
        let ports = ports.as_deref().unwrap_or_default().iter().enumerate();
        ports.map(move |(at, port)| (index(&path, at), port))
    })
}

/// Ports of the node that lead to the pod.
fn host_ports(report: &mut Report, spec: &PodSpec) -> Vec<(Protocol, u16)> {
    let mut found = Vec::new();
    for (path, port) in ports(spec) {
        let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
        let number = number(report, &child(&path, "hostPort"), host_port, NO_HOST_PORT);
        let protocol = protocol_of(report, &child(&path, "protocol"), port.protocol.as_deref(), NO_HOST_PORT);
        found.extend(protocol.zip(number));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Ports that have a name.
fn named_ports(report: &mut Report, spec: &PodSpec) -> Vec<NamedPort> {
    let mut named: Vec<NamedPort> = Vec::new();
    for (path, port) in ports(spec) {
        let Some(port) = named_port(report, &path, port) else { continue };
        match named.iter().find(|other| other.name == port.name && other.protocol == port.protocol) {
            None => named.push(port),
            Some(other) if other.port == port.port => {}
            Some(other) => {
                let message = format!("port name {:?} again, first used for {}; rename one", port.name, other.port);
                let effect = format!("the name means port {}", other.port);
                report.note(&child(&path, "name"), message, effect);
            }
        }
    }
    named.sort();
    named
}

/// The port if it has a name and all of it can be used.
fn named_port(report: &mut Report, path: &str, port: &ContainerPort) -> Option<NamedPort> {
    let name = port.name.as_deref().filter(|name| !name.is_empty())?;
    let number = number(report, &child(path, "containerPort"), port.container_port, NO_NAME);
    let protocol = protocol_of(report, &child(path, "protocol"), port.protocol.as_deref(), NO_NAME);
    if !is_port_name(name) {
        report.refuse(&child(path, "name"), format!("bad port name {}: {PORT_NAME_SYNTAX}", quote(name)), NO_NAME);
        return None;
    }
    Some(NamedPort { name: name.into(), protocol: protocol?, port: number? })
}

/// Reads a namespace; `None` if it cannot be taken at all.
pub(super) fn namespace(report: &mut Report, head: Head, object: &Map<String, Value>) -> Option<Namespace> {
    let sound = stray_fields(report, object, &["spec", "status"], NO_NAMESPACE);
    if !(sound && head.sound) {
        return None;
    }
    let Head { key, mut labels, .. } = head;
    own_label(report, &key.name, &mut labels);
    Some(Namespace { name: key.name, labels })
}

fn own_label(report: &mut Report, name: &str, labels: &mut Labels) {
    if let Some(other) = labels.insert(METADATA_NAME.into(), name.into())
        && *other != *name
    {
        let message = format!("label is {other:?} and always the namespace's name; remove it");
        report.note(&child("metadata.labels", METADATA_NAME), message, format!("the label is {name:?}"));
    }
}
