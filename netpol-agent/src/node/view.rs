//! What the node looks like, as a value: what `node` sees through netlink and the pipeline joins with the cluster's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::problem::Problem;

/// An interface that a pod is behind, or may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInterface {
    /// Interface index of the host's end.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// MAC address of the pod's end; none until it was heard of.
    pub mac: Option<[u8; 6]>,
    /// Wanted addresses that were found behind it.
    pub addresses: BTreeSet<IpAddr>,
}

/// A device through which packets leave this node, or the part of it that pods are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its frames begin with an Ethernet header; those of WireGuard, IP in IP and tun begin with the IP header.
    pub has_link_header: bool,
}

/// The node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// The node's own addresses, loopback ones left out.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Interfaces of pods by index.
    pub interfaces: BTreeMap<u32, PodInterface>,
    /// Every device that is neither a pod's interface nor among [`Self::passages`], by index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Bridges and the loopback: what goes through them leaves through another device, or stays.
    pub passages: BTreeSet<u32>,
    /// Wanted addresses that are still being looked for.
    pub unresolved: BTreeSet<IpAddr>,
    /// Wanted addresses that were found where they cannot be taken.
    pub problems: Vec<Problem>,
}
