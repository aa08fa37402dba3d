//! The other nodes' agents, for hubble-relay: the cluster's pods in, `peer.Peer` messages out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::convert::CLUSTER;
use super::proto::peer::{ChangeNotification, ChangeNotificationType, Tls};
use crate::cluster::ClusterState;
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod};

/// The label of the agents' pods.
const NAME_LABEL: &str = "app.kubernetes.io/name";
const AGENT: &str = "netpol";

/// One agent that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerNode {
    /// Name of the node.
    pub name: Arc<str>,
    /// Its address.
    pub address: IpAddr,
}

/// The nodes that an agent runs on: by its pods, which have their node's address.
#[must_use]
pub fn of_cluster(cluster: &ClusterState, namespace: &str) -> Vec<PeerNode> {
    let is_agent = |pod: &&Arc<Pod>| {
        pod.host_network
            && !pod.terminal
            && !pod.node.is_empty()
            && pod.labels.get(NAME_LABEL).is_some_and(|name| **name == *AGENT)
    };
    let peer = |pod: &Arc<Pod>| Some(PeerNode { name: pod.node.clone(), address: *pod.addresses.first()? });
    let mut peers: Vec<PeerNode> = cluster.pods_in(namespace).filter(is_agent).filter_map(peer).collect();
    peers.sort_unstable();
    peers.dedup_by(|one, other| one.name == other.name);
    peers
}

/// True if this may change what [`of_cluster`] finds: most pods are in other namespaces.
#[must_use]
pub fn concerns(event: &ClusterEvent, namespace: &str) -> bool {
    match event {
        ClusterEvent::Apply(Object::Pod(Pod { key, .. })) | ClusterEvent::Delete(ObjectRef::Pod(key)) => {
            *key.namespace == *namespace
        }
        ClusterEvent::Apply(_) | ClusterEvent::Delete(_) => false,
    }
}

/// What one relay was told.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<Arc<str>, IpAddr>);

impl Told {
    /// What must be told so that these are the peers.
    pub(super) fn changes(&mut self, peers: &[PeerNode], address: Address) -> Vec<ChangeNotification> {
        let mut changes = Vec::new();
        let gone = |name: &Arc<str>| !peers.iter().any(|peer| peer.name == *name);
        let removed: Vec<Arc<str>> = self.0.keys().filter(|name| gone(name)).cloned().collect();
        for name in removed {
            self.0.remove(&name);
            changes.push(ChangeNotification {
                name: name.to_string(),
                r#type: ChangeNotificationType::PeerDeleted.into(),
                ..ChangeNotification::default()
            });
        }
        for peer in peers {
            let kind = match self.0.insert(peer.name.clone(), peer.address) {
                Some(known) if known == peer.address => continue,
                Some(_) => ChangeNotificationType::PeerUpdated,
                None => ChangeNotificationType::PeerAdded,
            };
            changes.push(ChangeNotification {
                name: peer.name.to_string(),
                address: std::net::SocketAddr::new(peer.address, address.port).to_string(),
                r#type: kind.into(),
                tls: address.tls.then(|| Tls { server_name: server_name(&peer.name) }),
            });
        }
        changes
    }
}

/// How the agents of all nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Port.
    pub port: u16,
    /// TLS.
    pub tls: bool,
}

impl Default for Address {
    fn default() -> Self {
        Self { port: 4244, tls: false }
    }
}

/// The name that a node's certificate is checked against, as Cilium has it.
#[must_use]
pub fn server_name(node: &str) -> String {
    format!("{}.{CLUSTER}.hubble-grpc.cilium.io", node.replace('.', "-"))
}
