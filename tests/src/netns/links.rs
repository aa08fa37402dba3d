//! Links, addresses and routes of one namespace, over rtnetlink.
//!
//! Only what a Flannel node has: a bridge, veth pairs across namespaces, addresses without duplicate detection (it would
//! delay every IPv6 test by a second), routes.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoPortData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime;
use tokio::time::{Instant, sleep};

use super::Namespace;

/// How long an interface may take to carry packets.
const UP_LIMIT: Duration = Duration::from_secs(10);

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Where this end lives.
    pub namespace: &'a Namespace,
    /// Interface name there.
    pub name: &'a str,
}

/// A netlink socket in a namespace.
#[derive(Debug)]
pub struct Links<'a> {
    namespace: &'a Namespace,
    handle: Handle,
}

impl<'a> Links<'a> {
    /// Opens a netlink socket in the namespace, served by `runtime`.
    ///
    /// # Errors
    /// If the namespace cannot be entered or the socket not be made.
    pub fn open(namespace: &'a Namespace, runtime: &runtime::Handle) -> Result<Self> {
        let handle = namespace.enter(|| {
            let _context = runtime.enter();
            let (connection, handle, _messages) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            anyhow::Ok(handle)
        })??;
        Ok(Self { namespace, handle })
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn index(&self, name: &str) -> Result<u32> {
        self.namespace
            .enter(|| if_nametoindex(name))?
            .with_context(|| format!("no interface {name} in {}", self.namespace.name()))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn up(&self, name: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_index(self.index(name)?).up().build())
            .await
            .with_context(|| format!("cannot bring {name} up"))
    }

    /// Gives an interface that is down another MAC address.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_mac(&self, name: &str, mac: [u8; 6]) -> Result<()> {
        self.set(LinkUnspec::new_with_index(self.index(name)?).address(mac.to_vec()).build())
            .await
            .with_context(|| format!("cannot change the MAC address of {name}"))
    }

    /// Makes a bridge with a fixed MAC address: one that followed its ports would change under the pods' ARP caches.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_bridge(&self, name: &str, mac: [u8; 6], mtu: u32) -> Result<()> {
        let bridge = LinkBridge::new(name).address(mac.to_vec()).mtu(mtu).up().build();
        self.handle.link().add(bridge).execute().await.with_context(|| format!("cannot make the bridge {name}"))
    }

    /// Makes a veth pair, `name` here and `peer` in its namespace; both ends stay down.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_veth(&self, name: &str, peer: VethEnd<'_>, mtu: u32) -> Result<()> {
        // kernel: index 0 is one of its choice.
        self.add_veth_at(0, name, peer, mtu).await
    }

    /// As [`Self::add_veth`], with a choice of index for the end here.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_veth_at(&self, index: u32, name: &str, peer: VethEnd<'_>, mtu: u32) -> Result<()> {
        let far = LinkMessageBuilder::<LinkUnspec>::default()
            .name(peer.name)
            .mtu(mtu)
            .setns_by_fd(peer.namespace.fd().as_raw_fd())
            .build();
        let near = LinkVeth::new(name, peer.name)
            .index(index)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        self.handle.link().add(near).execute().await.with_context(|| format!("cannot make the veth pair {name}"))
    }

    /// Makes `name` a port of the bridge as Flannel's plugins do (hairpin: a pod may come back to itself), and up.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_port(&self, bridge: &str, name: &str) -> Result<()> {
        self.join(bridge, name).await?;
        let port = LinkBridgePort::new(self.index(name)?).hairpin(true).build();
        // Not `set`: the kernel takes no settings of ports in a request of that kind, and says nothing.
        self.handle.link().set_port(port).execute().await.context("cannot set hairpin mode")
    }

    /// Makes `name` an ordinary port of the bridge, and up.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn join(&self, bridge: &str, name: &str) -> Result<()> {
        let (bridge, port) = (self.index(bridge)?, self.index(name)?);
        self.set(LinkUnspec::new_with_index(port).controller(bridge).up().build())
            .await
            .with_context(|| format!("cannot make {name} a port"))
    }

    /// Removes an interface (for a veth, both ends).
    ///
    /// # Errors
    /// If there is none of this name.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.handle.link().del(self.index(name)?).execute().await.with_context(|| format!("cannot remove {name}"))
    }

    /// Gives an interface an address that can be used at once.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(self.index(name)?, address, prefix);
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.with_context(|| format!("cannot give {name} the address {address}/{prefix}"))
    }

    /// Routes everything of the gateway's family through it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_default_route(&self, gateway: IpAddr) -> Result<()> {
        let unspecified = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(unspecified, 0)?.gateway(gateway)?.build();
        self.handle.route().add(route).execute().await.with_context(|| format!("cannot route through {gateway}"))
    }

    /// Routes a network through a gateway.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_route(&self, network: IpAddr, prefix: u8, gateway: IpAddr) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, prefix)?.gateway(gateway)?.build();
        let added = self.handle.route().add(route).execute().await;
        added.with_context(|| format!("cannot route {network}/{prefix} through {gateway}"))
    }

    /// Routes a network through a gateway that need not be on the device's own network.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_onlink_route(&self, network: IpAddr, prefix: u8, gateway: IpAddr, device: &str) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, prefix)?.gateway(gateway)?;
        let route = route.output_interface(self.index(device)?).onlink().build();
        let added = self.handle.route().add(route).execute().await;
        added.with_context(|| format!("cannot route {network}/{prefix} through {gateway} of {device}"))
    }

    /// Routes a network to a device, on which each address answers for itself.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_device_route(&self, network: IpAddr, prefix: u8, device: &str) -> Result<()> {
        let mut route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, prefix)?;
        route = route.output_interface(self.index(device)?);
        if network.is_ipv4() {
            // Else no gateway can lie behind it.
            route = route.scope(RouteScope::Link);
        }
        let route = route.build();
        let added = self.handle.route().add(route).execute().await;
        added.with_context(|| format!("cannot route {network}/{prefix} to {device}"))
    }

    /// Removes the route to exactly one address.
    ///
    /// # Errors
    /// If there is none.
    pub async fn delete_route(&self, address: IpAddr) -> Result<()> {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, whole)?.build();
        let removed = self.handle.route().del(route).execute().await;
        removed.with_context(|| format!("cannot remove the route to {address}"))
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// If it has none of that length.
    pub async fn delete_address(&self, name: &str, address: IpAddr) -> Result<()> {
        let index = self.index(name)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let found = self.handle.address().get().set_link_index_filter(index).set_address_filter(address);
        let found = found.set_prefix_length_filter(whole).execute().try_next().await?;
        let message = found.with_context(|| format!("{name} does not have {address}"))?;
        self.handle.address().del(message).execute().await.with_context(|| format!("cannot take {address} from {name}"))
    }

    /// Forgets all neighbours that were learnt.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn forget_neighbours(&self) -> Result<()> {
        let known: Vec<_> = self.handle.neighbours().get().execute().try_collect().await?;
        // Those of the overlay were set, and nobody would learn them.
        let is_learnt = |state| ![NeighbourState::Noarp, NeighbourState::Permanent].contains(&state);
        for neighbour in known.into_iter().filter(|it| is_learnt(it.header.state)) {
            // One that is gone already is as good.
            let _gone = self.handle.neighbours().del(neighbour).execute().await;
        }
        Ok(())
    }

    /// Waits until the interfaces carry packets. An interface that was just brought up does not before a work queue of the
    /// kernel has seen it, which takes long on a busy machine; until then it drops in silence.
    ///
    /// # Errors
    /// If one is not up in [`UP_LIMIT`].
    pub async fn wait_until_up(&self, names: &[&str]) -> Result<()> {
        let deadline = Instant::now() + UP_LIMIT;
        for name in names {
            let index = self.index(name)?;
            while !self.is_up(index).await? {
                ensure!(Instant::now() < deadline, "{name} is not up after {UP_LIMIT:?}");
                sleep(Duration::from_millis(2)).await;
            }
        }
        Ok(())
    }

    /// As [`Links::wait_until_up`], of tunnels: they have no carrier to tell and stay in an unknown state.
    ///
    /// # Errors
    /// If one is not running in [`UP_LIMIT`].
    pub async fn wait_until_running(&self, names: &[&str]) -> Result<()> {
        let deadline = Instant::now() + UP_LIMIT;
        for name in names {
            let index = self.index(name)?;
            while self.state(index).await?.0 == Some(State::Down) {
                ensure!(Instant::now() < deadline, "{name} is not running after {UP_LIMIT:?}");
                sleep(Duration::from_millis(2)).await;
            }
        }
        Ok(())
    }

    /// The netlink socket.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    async fn is_up(&self, index: u32) -> Result<bool> {
        let (state, idle_port) = self.state(index).await?;
        Ok(state == Some(State::Up) && !idle_port)
    }

    /// The operational state, and whether it is a bridge port that does not forward yet.
    async fn state(&self, index: u32) -> Result<(Option<State>, bool)> {
        let message = self.handle.link().get().match_index(index).execute().try_next().await?;
        let attributes = message.context("a link vanished")?.attributes;
        let state =
            attributes.iter().find_map(|it| if let LinkAttribute::OperState(state) = it { Some(*state) } else { None });
        Ok((state, attributes.iter().any(is_idle_port)))
    }

    async fn set(&self, message: LinkMessage) -> Result<()> {
        Ok(self.handle.link().set(message).execute().await?)
    }
}

/// True for the state of a bridge port that does not forward yet.
fn is_idle_port(attribute: &LinkAttribute) -> bool {
    let LinkAttribute::LinkInfo(infos) = attribute else { return false };
    infos.iter().any(|info| {
        let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info else { return false };
        port.iter().any(|it| matches!(it, InfoBridgePort::State(state) if *state != BridgePortState::Forwarding))
    })
}
