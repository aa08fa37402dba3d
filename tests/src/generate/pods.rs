//! Random pods: families, phases, host network, named ports, and addresses that live pods share only on request.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by a field that it lacks gives null")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde_json::{Value, json};

use super::{CROWDED, NAMED_PORTS, POD_KEYS, labels};
use crate::judge::Objects;

/// Whether two live pods may claim one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each live pod has addresses of its own; completed ones may still list somebody else's.
    Never,
    /// Live pods may list the same address.
    Sometimes,
}

/// What kind of pod it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Running,
    Terminating,
    HostNetwork,
    Succeeded,
    Failed,
    /// Not scheduled far enough to have an address.
    WithoutAddress,
}

/// A pod before it has a name and addresses.
#[derive(Clone, Debug)]
pub(super) struct PodDraft {
    pub(super) namespace: &'static str,
    pub(super) labels: Value,
    /// 1 or 2.
    node: u8,
    kind: Kind,
    ipv4: bool,
    ipv6: bool,
    /// Last part of the address that it would like.
    wanted: u8,
    sharing: Sharing,
    /// (name, protocol) to number; the last is declared by a sidecar.
    ports: Vec<((&'static str, &'static str), u16)>,
}

pub(super) fn pods(sharing: Sharing) -> impl Strategy<Value = Vec<PodDraft>> {
    proptest::collection::vec(pod(sharing), 1..=6)
}

pub(super) fn pod(sharing: Sharing) -> impl Strategy<Value = PodDraft> {
    let kind = prop_oneof![
        12 => Just(Kind::Running),
        1 => Just(Kind::Terminating),
        2 => Just(Kind::HostNetwork),
        1 => Just(Kind::Succeeded),
        1 => Just(Kind::Failed),
        1 => Just(Kind::WithoutAddress)
    ];
    let families = prop_oneof![3 => Just((true, true)), 1 => Just((true, false)), 1 => Just((false, true))];
    (select(&CROWDED[..]), labels(POD_KEYS), 1..=2_u8, kind, families, 1..=8_u8, ports()).prop_map(
        move |(namespace, labels, node, kind, (ipv4, ipv6), wanted, ports)| PodDraft {
            namespace,
            labels,
            node,
            kind,
            ipv4,
            ipv6,
            wanted,
            sharing,
            ports: ports.into_iter().collect(),
        },
    )
}

fn ports() -> impl Strategy<Value = BTreeMap<(&'static str, &'static str), u16>> {
    let name = (select(&["web", "dns"][..]), select(&["TCP", "TCP", "UDP", "SCTP"][..]));
    proptest::collection::btree_map(name, select(&NAMED_PORTS[..]), 0..=3)
}

impl PodDraft {
    /// The pod under this name, at the wanted address or the next one that no live pod has.
    pub(super) fn place(&self, name: &str, objects: &Objects) -> Value {
        let taken: Vec<IpAddr> = objects
            .of("Pod")
            .filter(|(_, pod)| !is_completed(pod))
            .flat_map(|(_, pod)| listed_addresses(pod, "podIPs", "ip"))
            .collect();
        let is_free = |number: &u8| addresses(self.node, *number).iter().all(|address| !taken.contains(address));
        let keeps = self.sharing == Sharing::Sometimes || matches!(self.kind, Kind::Succeeded | Kind::Failed);
        let number = (self.wanted..=100).find(|number| keeps || is_free(number)).unwrap_or(self.wanted);
        self.at(name, &addresses(self.node, number))
    }

    /// The pod under this name at these addresses, as far as it has these families.
    pub(super) fn at(&self, name: &str, addresses: &[IpAddr]) -> Value {
        let node_addresses = node_addresses(self.node);
        let addresses = if self.kind == Kind::HostNetwork { &node_addresses[..] } else { addresses };
        let addresses: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| if address.is_ipv4() { self.ipv4 } else { self.ipv6 }).collect();
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": self.namespace, "name": name, "labels": self.labels },
            "spec": { "nodeName": format!("n{}", self.node), "containers": [{ "name": "server", "image": "server" }] },
            "status": { "phase": "Running" },
        });
        self.declare_ports(&mut pod);
        if self.kind == Kind::HostNetwork {
            pod["spec"]["hostNetwork"] = json!(true);
        }
        if self.kind == Kind::Terminating {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        }
        match self.kind {
            Kind::Succeeded => pod["status"]["phase"] = json!("Succeeded"),
            Kind::Failed => pod["status"]["phase"] = json!("Failed"),
            Kind::WithoutAddress => pod["status"]["phase"] = json!("Pending"),
            Kind::Running | Kind::Terminating | Kind::HostNetwork => {}
        }
        if self.kind != Kind::WithoutAddress {
            pod["status"]["podIP"] = json!(addresses.first());
            pod["status"]["podIPs"] = addresses.iter().map(|address| json!({ "ip": address })).collect();
        }
        pod
    }

    /// Ports in the container, but for the last, which is a sidecar's; a port of TCP leaves its protocol away.
    fn declare_ports(&self, pod: &mut Value) {
        let mut declared: Vec<Value> = Vec::new();
        for ((name, protocol), number) in &self.ports {
            declared.push(match *protocol {
                "TCP" => json!({ "name": name, "containerPort": number }),
                protocol => json!({ "name": name, "containerPort": number, "protocol": protocol }),
            });
        }
        if let Some(last) = declared.pop() {
            pod["spec"]["initContainers"] = json!([
                { "name": "sidecar", "image": "sidecar", "restartPolicy": "Always", "ports": [last] },
                // An init container that ends serves nobody: its port is not the pod's.
                { "name": "migrate", "image": "migrate", "ports": [{ "name": "gone", "containerPort": 80 }] },
            ]);
        }
        pod["spec"]["containers"][0]["ports"] = Value::Array(declared);
    }
}

/// Random labels in place of a pod's.
pub(super) fn pod_labels() -> impl Strategy<Value = Value> {
    prop_oneof![9 => labels(POD_KEYS), 1 => any::<bool>().prop_map(|_| Value::Null)]
}

/// Addresses of the pod with this number on a node.
pub(super) fn addresses(node: u8, number: u8) -> [IpAddr; 2] {
    let (node, number) = (u16::from(node), u16::from(number));
    [
        IpAddr::from([10, 244, node.to_le_bytes()[0], number.to_le_bytes()[0]]),
        IpAddr::from([0xfd00, 0x10, 0x244, node, 0, 0, 0, number]),
    ]
}

/// Addresses of a node.
pub(super) fn node_addresses(node: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([192, 168, 50, 10 + node]),
        IpAddr::from([0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, 0x10 + u16::from(node)]),
    ]
}

/// Addresses in a list of an object's status.
pub(super) fn listed_addresses(object: &Value, list: &str, field: &str) -> Vec<IpAddr> {
    let entries = object["status"][list].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry[field].as_str()?.parse().ok()).collect()
}

/// Whether the pod has completed, and its address is no longer its own.
pub(super) fn is_completed(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}
