//! What an explanation goes by: the cluster, what is known of nodes, and flows as pairs of ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::ClusterState;
use crate::cluster::model::{ObjectKey, PodKey, Protocol};

/// What is known.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The cluster.
    pub cluster: &'a ClusterState,
    /// Addresses of nodes.
    pub nodes: &'a Nodes,
    /// Pods' traffic to their own node is judged like any other (`--enforce-own-node`).
    pub enforce_own_node: bool,
}

/// Addresses of nodes, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(BTreeMap<Arc<str>, BTreeSet<IpAddr>>);

impl Nodes {
    /// Those that pods in their node's network namespace have.
    #[must_use]
    pub fn of(cluster: &ClusterState) -> Self {
        let mut nodes = Self::default();
        for pod in cluster.pods().filter(|pod| pod.host_network && !pod.terminal && !pod.node.is_empty()) {
            nodes.add(&pod.node, pod.addresses.iter().copied());
        }
        nodes
    }

    /// Adds addresses of a node.
    pub fn add(&mut self, node: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.0.entry(node.into()).or_default().extend(addresses);
    }

    /// The addresses of a node; none for one that is not known.
    pub fn addresses(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        self.0.get(node).into_iter().flatten().copied()
    }

    /// Names of the nodes.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    /// The node that has an address.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.0.iter().find(|(_, addresses)| addresses.contains(&address)).map(|(name, _)| name)
    }

    /// Whether `node` has this address. The empty name is nobody's.
    #[must_use]
    pub fn has(&self, node: &str, address: IpAddr) -> bool {
        !node.is_empty() && self.0.get(node).is_some_and(|addresses| addresses.contains(&address))
    }
}

/// What is sent, as far as policy looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// To a port.
    Port(Protocol, u16),
    /// ICMP, or any other protocol that NetworkPolicy knows no ports for.
    Other,
}

impl Traffic {
    /// IANA number of the protocol and the port, as the maps are asked.
    #[must_use]
    pub const fn number(self) -> (u8, u16) {
        match self {
            Self::Port(Protocol::Tcp, port) => (6, port),
            Self::Port(Protocol::Udp, port) => (17, port),
            Self::Port(Protocol::Sctp, port) => (132, port),
            Self::Other => (1, 0),
        }
    }
}

impl fmt::Display for Traffic {
    /// `TCP 8080`, or `ICMP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{} {port}", protocol_name(*protocol)),
            Self::Other => f.write_str("ICMP"),
        }
    }
}

pub(super) const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// One end of a flow, as packets have it where they are judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Address in the packet.
    pub address: IpAddr,
    /// The pod that sits behind it.
    pub pod: Option<PodKey>,
    /// The service that leads there.
    pub service: Option<ObjectKey>,
    /// The node that has the address.
    pub node: Option<Arc<str>>,
}

impl End {
    /// A bare address.
    #[must_use]
    pub const fn outside(address: IpAddr) -> Self {
        Self { address, pod: None, service: None, node: None }
    }

    /// A pod under one of its addresses.
    #[must_use]
    pub const fn pod(key: PodKey, address: IpAddr) -> Self {
        Self { address, pod: Some(key), service: None, node: None }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pod, &self.node) {
            (Some(pod), _) => write!(f, "{pod} ({})", self.address),
            (None, Some(node)) => write!(f, "node {node} ({})", self.address),
            (None, None) => write!(f, "{}", self.address),
        }
    }
}

/// A new connection, or a first datagram.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who opens it.
    pub source: End,
    /// To whom, behind a service's translation.
    pub destination: End,
    /// What.
    pub traffic: Traffic,
}
