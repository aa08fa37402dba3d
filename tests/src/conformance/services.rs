//! Each pod behind a ClusterIP of its own, with every port that is asked for: the second way to the same verdicts.
//!
//! In: addresses of pods and the ports that cases ask for. Out: Service objects for the agents, kube-proxy's table for the
//! nodes, and where a pod is asked then. Nodes and hosts outside go by the pod's own address: ClusterIPs are not theirs to
//! use, and a masquerade would make another question of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use crate::judge::Protocol;
use crate::kube_proxy::{ServicePort, Table};

/// The services of one cluster under one plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Services {
    addresses: BTreeMap<IpAddr, IpAddr>,
    ports: BTreeSet<(Protocol, u16)>,
}

impl Services {
    /// A service for each pod.
    pub(super) fn new(pods: &BTreeSet<IpAddr>, ports: BTreeSet<(Protocol, u16)>) -> Self {
        let addresses = (1..).zip(pods).map(|(number, &pod)| (pod, cluster_address(pod, number))).collect();
        Self { addresses, ports }
    }

    /// Where a pod is asked by its service; none if it has no service.
    pub(super) fn at(&self, pod: IpAddr, protocol: Protocol, port: u16) -> Option<SocketAddr> {
        let address = self.addresses.get(&pod)?;
        self.ports.contains(&(protocol, port)).then(|| SocketAddr::new(*address, port))
    }

    /// What agents read.
    pub(super) fn objects(&self) -> impl Iterator<Item = (String, Value)> {
        self.addresses.values().enumerate().map(|(number, address)| {
            let port = |&(protocol, port): &(Protocol, u16)| {
                let name = format!("{}-{port}", protocol.name().to_lowercase());
                json!({ "name": name, "protocol": protocol.name(), "port": port })
            };
            let ports: Vec<Value> = self.ports.iter().map(port).collect();
            let name = format!("service-{number}");
            let object = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "default", "name": name },
                "spec": { "clusterIP": address, "clusterIPs": [address], "ports": ports },
            });
            (name, object)
        })
    }

    /// What kube-proxy translates.
    pub(super) fn table(&self) -> Table {
        let every = self.addresses.iter().flat_map(|(pod, address)| {
            self.ports.iter().map(move |&(protocol, port)| ServicePort {
                name: format!("default/{pod}:{}-{port}", protocol.name()),
                transport: protocol,
                port,
                cluster_addresses: vec![*address],
                external_addresses: Vec::new(),
                node_port: None,
                endpoints: vec![SocketAddr::new(*pod, port)],
            })
        });
        Table { services: every.collect(), host_ports: Vec::new() }
    }
}

/// In ranges that descriptions of clusters hardly ever use.
fn cluster_address(pod: IpAddr, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match pod {
        IpAddr::V4(_) => Ipv4Addr::new(100, 126, high, low).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd7b, 0x3c51, 0x9a2f, 0, 0, 0, 0, number).into(),
    }
}
