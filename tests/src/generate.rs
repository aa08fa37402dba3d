//! Random clusters, policies and histories, legal ones only: raw objects as a user or API server would give them.
//!
//! Alphabets are tiny on purpose (two label keys, three values, a handful of ports and addresses), so that selectors
//! collide, blocks overlap pods and each other, and names mean different numbers on different pods. Every form that
//! JSON allows for "nothing" (missing, null, empty) occurs. No policy meaning here: [`crate::judge`] says what comes of it.
//!
//! Start at [`scene`] (a cluster) and [`history::history`] (how one came to be). (`gen` is a keyword, hence the name.)

pub mod history;
mod pods;
mod policies;

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::option;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::sample::select;
use serde_json::{Map, Value, json};

pub use self::pods::Sharing;
use crate::frame::SOURCE_PORT;
use crate::judge::{Objects, Probe, Protocol, Side};

/// Namespaces of every scene.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// The same, each as often as a pod or policy should be in it: most meet in one.
const CROWDED: [&str; 6] = ["x", "x", "x", "y", "y", "z"];
/// Label keys of pods and of namespaces; one is common, so that a selector that looks at the wrong object is noticed.
const POD_KEYS: [&str; 2] = ["pod", "tier"];
const NAMESPACE_KEYS: [&str; 2] = ["ns", "tier"];
const VALUES: [&str; 3] = ["", "a", "b"];
/// Port numbers that pods give names to; a name should often mean two numbers, and a probe often hit one.
const NAMED_PORTS: [u16; 4] = [53, 80, 81, 8080];
/// Port numbers that policies use; ranges fill the gaps between them.
const PORTS: [u16; 8] = [1, 53, 80, 81, 82, 443, 8080, 65535];
/// Addresses that no pod has: outside, and between the pods'.
const OUTSIDE: [&str; 6] =
    ["203.0.113.10", "10.244.1.200", "10.245.0.1", "2001:db8::10", "fd00:10:244:1::200", "fd00:10:245::1"];

/// A cluster, and what to probe it with.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Nodes, namespaces, pods and policies.
    pub objects: Objects,
    /// Protocols and ports to probe.
    pub ports: Vec<(Protocol, u16)>,
}

impl Scene {
    /// Every pair of endpoints, in both families, on each of the ports.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        probes(&self.objects, &self.ports)
    }
}

/// Clusters of a few pods and policies.
pub fn scene(sharing: Sharing) -> impl Strategy<Value = Scene> {
    (namespaces(), pods::pods(sharing), policies::policies(), ports()).prop_map(
        |(namespaces, pods, policies, ports)| {
            let mut objects = nodes();
            for object in namespaces.iter().chain(&policies) {
                objects.change(&crate::judge::Change::Apply(object.clone()));
            }
            for pod in pods.iter().enumerate().map(|(number, pod)| (format!("p{number}"), pod)) {
                let placed = pod.1.place(&pod.0, &objects);
                objects.change(&crate::judge::Change::Apply(placed));
            }
            Scene { objects, ports }
        },
    )
}

/// A few protocols and ports to probe.
pub fn ports() -> impl Strategy<Value = Vec<(Protocol, u16)>> {
    let port = prop_oneof![6 => select(&NAMED_PORTS[..]), 3 => select(&PORTS[..]), 1 => other_port()];
    let protocol = prop_oneof![
        4 => Just(Protocol::Tcp),
        2 => Just(Protocol::Udp),
        2 => Just(Protocol::Sctp),
        1 => Just(Protocol::Icmp)
    ];
    proptest::collection::vec((protocol, port), 4..=8)
}

/// Any port but those of tunnels, which no pod may send to a node, and the one that every probe comes from.
fn other_port() -> impl Strategy<Value = u16> {
    (1..=65535_u16).prop_filter("a tunnel's or our own", |port| ![4789, 8285, 8472, SOURCE_PORT].contains(port))
}

/// Every pair of different endpoints of one family, if policy acts on at least one of them, on each of the ports.
#[must_use]
pub fn probes(objects: &Objects, ports: &[(Protocol, u16)]) -> Vec<Probe> {
    let sides = sides(objects);
    let mut probes = Vec::new();
    for source in &sides {
        for destination in &sides {
            let one_family = source.address.is_ipv4() == destination.address.is_ipv4();
            let has_pod = source.pod.is_some() || destination.pod.is_some();
            if !one_family || !has_pod || source.address == destination.address {
                continue;
            }
            probes.extend(ports.iter().map(|&(protocol, port)| Probe {
                source: source.clone(),
                destination: destination.clone(),
                protocol,
                port,
            }));
        }
    }
    probes
}

/// Live pods with each of their addresses, nodes, outside addresses, and addresses whose last owner has completed.
fn sides(objects: &Objects) -> Vec<Side> {
    let mut sides: Vec<Side> = Vec::new();
    let mut bare: Vec<IpAddr> = OUTSIDE.iter().filter_map(|address| address.parse().ok()).collect();
    for (_, node) in objects.of("Node") {
        bare.extend(pods::listed_addresses(node, "addresses", "address"));
    }
    for (name, pod) in objects.of("Pod") {
        for address in pods::listed_addresses(pod, "podIPs", "ip") {
            match pods::is_completed(pod) {
                true => bare.push(address),
                false => sides.push(Side { address, pod: Some(name.clone()) }),
            }
        }
    }
    bare.sort();
    bare.dedup();
    bare.retain(|address| sides.iter().all(|side| side.address != *address || is_node(objects, *address)));
    sides.extend(bare.into_iter().map(|address| Side { address, pod: None }));
    sides
}

fn is_node(objects: &Objects, address: IpAddr) -> bool {
    objects.of("Node").any(|(_, node)| pods::listed_addresses(node, "addresses", "address").contains(&address))
}

/// Two nodes.
fn nodes() -> Objects {
    let mut objects = Objects::default();
    for number in 1..=2 {
        let addresses = pods::node_addresses(number).map(|address| json!({ "type": "InternalIP", "address": address }));
        objects.change(&crate::judge::Change::Apply(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("n{number}") }, "status": { "addresses": addresses },
        })));
    }
    objects
}

fn namespaces() -> impl Strategy<Value = Vec<Value>> {
    NAMESPACES.map(namespace).prop_map(Vec::from)
}

/// A namespace, whose `kubernetes.io/metadata.name` may be left to whoever reads it.
fn namespace(name: &'static str) -> impl Strategy<Value = Value> {
    (labels(NAMESPACE_KEYS), proptest::bool::ANY).prop_map(move |(mut labels, lists_name)| {
        if let Some(labels) = labels.as_object_mut().filter(|_| lists_name) {
            labels.insert("kubernetes.io/metadata.name".to_owned(), Value::from(name));
        }
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
    })
}

fn labels(keys: [&'static str; 2]) -> impl Strategy<Value = Value> {
    keys.map(|_| option::weighted(0.7, select(&VALUES[..]))).prop_map(move |values| {
        object(keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, Value::from(value?)))))
    })
}

/// An object of the fields that are there.
fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// An object of fields of which some are missing.
fn object_of<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    object(fields.into_iter().filter_map(|(name, value)| Some((name, value?))))
}

/// The block of this length around an address.
fn around(address: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(address, length).ok().map(|block| block.trunc())
}
