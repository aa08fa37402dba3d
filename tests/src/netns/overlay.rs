//! Flannel's VXLAN, over rtnetlink: the device, and the static entries for every other node.

use std::net::IpAddr;

use anyhow::{Context, Result};
use rtnetlink::packet_route::link::InfoVxlan;
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::{LinkVxlan, RouteMessageBuilder};

use super::links::Links;

/// Flannel's network identifier and port, the defaults of its `net-conf.json` on Linux.
const IDENTIFIER: u32 = 1;
/// The UDP port of Flannel's VXLAN.
pub const PORT: u16 = 8472;

/// A VXLAN device that learns nothing.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MTU inside.
    pub mtu: u32,
    /// Its MAC address, that the other nodes have in their entries.
    pub mac: [u8; 6],
    /// The interface that carries it.
    pub uplink: &'a str,
    /// The outer source address.
    pub local: IpAddr,
}

/// Another node, as one with a VXLAN device must know it.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// The outer destination address.
    pub node: IpAddr,
    /// The other device's MAC address.
    pub mac: [u8; 6],
    /// The other device's own address, which begins the node's pods' network.
    pub gateway: IpAddr,
    /// Length of that network.
    pub prefix: u8,
}

impl Links<'_> {
    /// Makes a VXLAN device, and up.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_vxlan(&self, vxlan: Vxlan<'_>) -> Result<()> {
        let Vxlan { name, mtu, mac, uplink, local } = vxlan;
        let device = LinkVxlan::new(name, IDENTIFIER).dev(self.index(uplink)?).port(PORT).learning(false);
        let device = match local {
            IpAddr::V4(local) => device.append_info_data(InfoVxlan::Local(local)),
            IpAddr::V6(local) => device.append_info_data(InfoVxlan::Local6(local)),
        };
        let device = device.address(mac.to_vec()).mtu(mtu).up().build();
        self.handle().link().add(device).execute().await.with_context(|| format!("cannot make the VXLAN device {name}"))
    }

    /// Adds another node to a VXLAN device, as flanneld does: a neighbour, a forwarding entry, a route.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_remote(&self, name: &str, remote: Remote) -> Result<()> {
        let index = self.index(name)?;
        let Remote { node, mac, gateway, prefix } = remote;
        let neighbours = self.handle().neighbours();
        let what = |what: &str| format!("cannot add the {what} of {node} to {name}");
        neighbours.add(index, gateway).link_layer_address(&mac).execute().await.with_context(|| what("neighbour"))?;
        let forwarding = neighbours.add_bridge(index, &mac).destination(node).flags(NeighbourFlags::Own);
        forwarding.execute().await.with_context(|| what("forwarding entry"))?;
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(gateway, prefix)?.gateway(gateway)?;
        let route = route.output_interface(index).onlink().build();
        self.handle().route().add(route).execute().await.with_context(|| what("route"))
    }
}
