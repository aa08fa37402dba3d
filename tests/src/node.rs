//! A cluster of one node, named `node`: what most tests need.
//!
//! [`Node`] is a [`Cluster`] in which nobody has to say on which node. Start at [`Node::start`].

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};

use anyhow::Result;

use crate::cluster::{Cluster, Plan, PodPlace};
pub use crate::cluster::{OUTSIDE, OUTSIDE_ADDRESSES};
use crate::manifests::PodAddresses;

/// The name of the node itself among the places.
pub const NODE: &str = "node";
/// The node's addresses on `cni0`, where its own probes of pods come from.
pub const GATEWAYS: [IpAddr; 2] = Plan::FIRST.gateways();
/// The node's addresses on its uplink.
pub const NODE_ADDRESSES: [IpAddr; 2] = Plan::FIRST.uplink();

/// A running node; dropping it removes everything.
#[derive(Debug)]
pub struct Node {
    cluster: Cluster,
}

impl Node {
    /// Makes the node and the outside host, with `outside` as more addresses of the latter.
    ///
    /// # Errors
    /// Without root, or if the kernel lacks what a node needs (bridges, veth pairs, a BPF file system).
    pub fn start(outside: &[IpAddr]) -> Result<Self> {
        Ok(Self { cluster: Cluster::start(&[NODE], outside)? })
    }

    /// Adds a pod, as [`Cluster::add_pod`] does.
    ///
    /// # Errors
    /// If the pod is there already, or the kernel refuses.
    pub fn add_pod(&mut self, pod: &PodAddresses) -> Result<&PodPlace> {
        self.cluster.add_pod(NODE, pod)
    }
}

impl Deref for Node {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}
