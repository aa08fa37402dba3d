//! Addresses that no [`Plan`](super::Plan) has: those of somebody else's description of a cluster.
//!
//! Nodes and the outside host get them beside their own, pods in place of a planned one. A pod that lies in its node's own
//! network is bridged there as any other; a pod anywhere else is alone behind its veth pair, and every node has a route to it.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{Cluster, OUTSIDE, PodPlace, UPLINK, wire};
use crate::manifests::PodAddresses;
use crate::netns::Namespace;
use crate::netns::links::Links;

/// All of an address.
const fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `0a:58` and the address, as the CNI bridge plugin forms it; for IPv6 a hash of the address (FNV-1a).
fn mac_of(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            address.octets().into_iter().fold(0x811c_9dc5, step).to_be_bytes()
        }
    };
    [0x0a, 0x58, a, b, c, d]
}

fn of_family(pair: [IpAddr; 2], like: IpAddr) -> IpAddr {
    let [v4, v6] = pair;
    if like.is_ipv4() { v4 } else { v6 }
}

impl Cluster {
    /// Gives a node, or the outside host, one more address that everybody can reach.
    ///
    /// # Errors
    /// If there is no such place, or the kernel refuses.
    pub fn add_address(&mut self, place: &str, address: IpAddr) -> Result<()> {
        let device = if place == OUTSIDE { "lo" } else { UPLINK };
        let plan = self.node(if place == OUTSIDE { &self.first } else { place })?.plan();
        let own = if place == OUTSIDE { plan.outside() } else { plan.uplink() };
        let gateway = of_family(own, address);
        for (namespace, name) in self.hosts() {
            let links = Links::open(namespace, self.runtime().handle())?;
            let change = async {
                if name == place {
                    links.add_address(device, address, whole(address)).await
                } else {
                    links.add_route(address, whole(address), gateway).await
                }
            };
            self.block_on(change).with_context(|| format!("cannot give {place} the address {address}"))?;
        }
        if place == OUTSIDE {
            self.outside_addresses.push(address);
        }
        Ok(())
    }

    /// Takes back what [`Cluster::add_address`] gave.
    ///
    /// # Errors
    /// If it gave none.
    pub fn remove_address(&mut self, place: &str, address: IpAddr) -> Result<()> {
        let device = if place == OUTSIDE { "lo" } else { UPLINK };
        for (namespace, name) in self.hosts() {
            let links = Links::open(namespace, self.runtime().handle())?;
            if name == place {
                self.block_on(links.delete_address(device, address))?;
            } else {
                self.block_on(links.delete_route(address))?;
            }
        }
        self.outside_addresses.retain(|it| place != OUTSIDE || *it != address);
        Ok(())
    }

    /// Adds a pod of any address to a node: bridged with the others of the node's own network, or alone behind its veth pair,
    /// with routes to it on every node. Its MAC address is that of its address, as of a CNI plugin that forms it so: who
    /// takes over an address is met at once by those who knew the one before.
    ///
    /// # Errors
    /// If the pod is there already, the node is not, or the kernel refuses.
    pub fn add_pod_anywhere(&mut self, node: &str, (key, address): (&str, IpAddr), alone: bool) -> Result<&PodPlace> {
        let pod = PodAddresses::new(key, &[address]);
        self.wire_pod(node, &pod, (Some(mac_of(address)), alone))?;
        if alone {
            let interface = self.pod(key)?.interface.clone();
            self.block_on(self.route_to_pod((node, &interface), address))?;
        }
        self.pod(key)
    }

    async fn route_to_pod(&self, (node, interface): (&str, &str), address: IpAddr) -> Result<()> {
        let plan = self.node(node)?.plan();
        for (namespace, name) in self.hosts() {
            let links = Links::open(namespace, self.runtime().handle())?;
            if name == node {
                links.add_device_route(address, whole(address), interface).await?;
            } else if name == OUTSIDE {
                links.add_route(address, whole(address), of_family(plan.uplink(), address)).await?;
            } else {
                let device = wire::overlay_device(address.is_ipv6());
                links.add_onlink_route(address, whole(address), of_family(plan.overlay(), address), device).await?;
            }
        }
        Ok(())
    }

    /// Removes the routes to a routed pod that do not go with its interface.
    pub(super) fn unroute(&self, node: &str, address: IpAddr) -> Result<()> {
        for (namespace, _name) in self.hosts().filter(|(_, name)| *name != node) {
            let links = Links::open(namespace, self.runtime().handle())?;
            self.block_on(links.delete_route(address))?;
        }
        Ok(())
    }

    /// Every namespace that forwards.
    fn hosts(&self) -> impl Iterator<Item = (&Namespace, &str)> {
        let nodes = self.nodes.iter().map(|(name, node)| (&node.namespace, name.as_str()));
        nodes.chain([(&self.outside, OUTSIDE)])
    }
}
