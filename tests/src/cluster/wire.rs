//! The wires of a cluster: uplinks on one segment, bridges, pods behind veth pairs, and Flannel's VXLAN.
//!
//! As Flannel does it, nothing is learned: for every other node each VXLAN device has a static neighbour, a static
//! forwarding entry and a route.

use std::net::IpAddr;

use anyhow::Result;
use tokio::runtime;

use super::plan::{POD_PREFIX, Plan, prefix};
use super::{BRIDGE, POD_LINK, UPLINK};
use crate::netns::Namespace;
use crate::netns::links::{Links, VethEnd};
use crate::netns::overlay::{Remote, Vxlan};

/// Flannel's VXLAN takes 50 bytes of the uplink's 1500.
const POD_MTU: u32 = 1450;
const UPLINK_MTU: u32 = 1500;
const UPLINK_PREFIX: [u8; 2] = [24, 64];
const HOST_PREFIX: [u8; 2] = [32, 128];
/// The outside host's port for its own addresses is the bridge that joins the uplinks.
const SEGMENT_MAC: [u8; 6] = [0x0a, 0x58, 192, 0, 2, 100];

/// Names and MTUs of Flannel's devices; outer IPv6 headers are 20 bytes longer.
const OVERLAYS: [(&str, u32); 2] = [("flannel.1", 1450), ("flannel-v6.1", 1430)];

/// The outside host: a bridge on which every node's uplink ends, and more addresses. What is not its own goes to the first node.
pub(super) async fn outside(
    host: &Namespace,
    first: Plan,
    addresses: &[IpAddr],
    runtime: &runtime::Handle,
) -> Result<()> {
    let links = Links::open(host, runtime)?;
    links.up("lo").await?;
    links.add_bridge(UPLINK, SEGMENT_MAC, UPLINK_MTU).await?;
    for address in first.outside() {
        links.add_address(UPLINK, address, prefix(address, UPLINK_PREFIX)).await?;
    }
    for address in first.uplink() {
        links.add_default_route(address).await?;
    }
    for &address in addresses {
        links.add_address("lo", address, prefix(address, HOST_PREFIX)).await?;
    }
    Ok(())
}

/// A node with its bridge and its uplink.
pub(super) async fn node(node: &Namespace, plan: Plan, host: &Namespace, runtime: &runtime::Handle) -> Result<()> {
    let inner = Links::open(node, runtime)?;
    let outer = Links::open(host, runtime)?;
    let [_, _, _, _, number, _] = plan.bridge_mac();
    let port = format!("port{number}");
    inner.up("lo").await?;
    inner.add_bridge(BRIDGE, plan.bridge_mac(), POD_MTU).await?;
    inner.add_veth(UPLINK, VethEnd { namespace: host, name: &port }, UPLINK_MTU).await?;
    inner.up(UPLINK).await?;
    outer.join(UPLINK, &port).await?;
    for gateway in plan.gateways() {
        inner.add_address(BRIDGE, gateway, prefix(gateway, POD_PREFIX)).await?;
    }
    for address in plan.uplink() {
        inner.add_address(UPLINK, address, prefix(address, UPLINK_PREFIX)).await?;
    }
    for address in plan.outside() {
        inner.add_default_route(address).await?;
    }
    for (subnet, address) in plan.overlay().into_iter().zip(plan.uplink()) {
        outer.add_route(subnet, prefix(subnet, POD_PREFIX), address).await?;
    }
    inner.wait_until_up(&[UPLINK]).await?;
    outer.wait_until_up(&[&port, UPLINK]).await
}

/// A node's VXLAN devices, and its way to every other node.
pub(super) async fn overlay(node: &Namespace, plan: Plan, others: &[Plan], runtime: &runtime::Handle) -> Result<()> {
    let links = Links::open(node, runtime)?;
    let families = OVERLAYS.into_iter().zip(plan.uplink()).zip(plan.overlay());
    for (((name, mtu), local), own) in families {
        let ipv6 = own.is_ipv6();
        links.add_vxlan(Vxlan { name, mtu, mac: plan.overlay_mac(ipv6), uplink: UPLINK, local }).await?;
        links.add_address(name, own, prefix(own, HOST_PREFIX)).await?;
        for other in others {
            let of_family = |[v4, v6]: [IpAddr; 2]| if ipv6 { v6 } else { v4 };
            let subnet = of_family(other.overlay());
            let remote = Remote {
                node: of_family(other.uplink()),
                mac: other.overlay_mac(ipv6),
                gateway: subnet,
                prefix: prefix(subnet, POD_PREFIX),
            };
            links.add_remote(name, remote).await?;
        }
    }
    links.wait_until_running(&OVERLAYS.map(|(name, _mtu)| name)).await
}

/// The name of Flannel's device of a family.
pub(super) const fn overlay_device(ipv6: bool) -> &'static str {
    let [(v4, _), (v6, _)] = OVERLAYS;
    if ipv6 { v6 } else { v4 }
}

/// A pod in the making.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    /// The node's end of its veth pair.
    pub(super) interface: &'a str,
    /// That end's interface index, 0 for any.
    pub(super) index: u32,
    /// Its namespace.
    pub(super) namespace: &'a Namespace,
    /// Its addresses.
    pub(super) addresses: &'a [IpAddr],
    /// Its MAC address, if it is to have a certain one.
    pub(super) mac: Option<[u8; 6]>,
    /// Alone in its network: no port of the bridge, as the CNI ptp plugin leaves a pod.
    pub(super) alone: bool,
}

/// A pod: the ends of its veth pair, addresses, default routes through the node's bridge.
pub(super) async fn pod((node, plan): (&Namespace, Plan), pod: Pod<'_>, runtime: &runtime::Handle) -> Result<()> {
    let outer = Links::open(node, runtime)?;
    let inner = Links::open(pod.namespace, runtime)?;
    outer.add_veth_at(pod.index, pod.interface, VethEnd { namespace: pod.namespace, name: POD_LINK }, POD_MTU).await?;
    if let Some(mac) = pod.mac {
        inner.set_mac(POD_LINK, mac).await?;
    }
    if pod.alone {
        outer.up(pod.interface).await?;
    } else {
        outer.add_port(BRIDGE, pod.interface).await?;
    }
    inner.up("lo").await?;
    inner.up(POD_LINK).await?;
    let lengths = if pod.alone { HOST_PREFIX } else { POD_PREFIX };
    for &address in pod.addresses {
        inner.add_address(POD_LINK, address, prefix(address, lengths)).await?;
    }
    for gateway in plan.gateways() {
        if pod.addresses.iter().any(|address| address.is_ipv4() == gateway.is_ipv4()) {
            if pod.alone {
                // As the CNI ptp plugin does: IPv6 has a gateway answer only where its address is.
                outer.add_address(pod.interface, gateway, prefix(gateway, HOST_PREFIX)).await?;
                inner.add_device_route(gateway, prefix(gateway, HOST_PREFIX), POD_LINK).await?;
            }
            inner.add_default_route(gateway).await?;
        }
    }
    let carriers = [pod.interface, BRIDGE];
    outer.wait_until_up(if pod.alone { &carriers[..1] } else { &carriers }).await?;
    inner.wait_until_up(&[POD_LINK]).await
}
