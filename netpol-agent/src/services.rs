//! Which destinations are services': what `from_pod` leaves to be judged behind the translation. Pure.
//!
//! In: the cluster and the node's own addresses. Out: the roles of addresses, and the ports of the node that lead to
//! pods. Whatever is listed here too many costs a look-up where packets leave; what is missing is judged by the
//! address that the pod asked for.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::abi::{AddressRole, PORT_SET_BYTES};

use crate::cluster::ClusterState;
use crate::cluster::model::Protocol;

/// Bits of the node's ports that services translate, for TCP, UDP and SCTP.
pub type NodePorts = [[u8; PORT_SET_BYTES]; 3];

/// What addresses are to this node: its own, services', other nodes'.
#[must_use]
pub fn address_roles(cluster: &ClusterState, own: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, u32> {
    let mut roles = BTreeMap::new();
    let mut add = |address: IpAddr, role: u32| *roles.entry(address).or_default() |= role;
    own.iter().for_each(|&address| add(address, AddressRole::OWN));
    for service in cluster.services() {
        service.addresses.iter().for_each(|&address| add(address, AddressRole::SERVICE));
    }
    // A pod in its node's network has the node's address.
    for pod in cluster.pods().filter(|pod| pod.host_network && !pod.terminal) {
        pod.addresses.iter().for_each(|&address| add(address, AddressRole::NODE));
    }
    roles
}

/// The ports of this node that lead to pods: NodePorts of services, and hostPorts of pods, those of other nodes' pods among
/// them.
#[must_use]
pub fn node_ports(cluster: &ClusterState) -> Box<NodePorts> {
    let mut sets = Box::new([[0; PORT_SET_BYTES]; 3]);
    let services = cluster.services().flat_map(|service| &service.ports);
    let of_services = services.filter_map(|port| Some((port.protocol, port.node_port?)));
    let of_pods =
        cluster.pods().filter(|pod| !pod.terminal && !pod.host_network).flat_map(|pod| pod.host_ports.iter().copied());
    for (protocol, port) in of_services.chain(of_pods) {
        let set = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        };
        if let Some(byte) =
            sets.get_mut(set).and_then(|bits: &mut [u8; PORT_SET_BYTES]| bits.get_mut(usize::from(port / 8)))
        {
            *byte |= 1 << (port % 8);
        }
    }
    sets
}
