//! What netlink has said so far: links, addresses, host routes, neighbours and the bridges' forwarding entries.
//!
//! In: [`Update`]s, from dumps and notifications alike. Out: the tables that `locate` reads. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// Interface on which kube-proxy in ipvs mode keeps every service address: those are services', not the node's.
const SERVICE_INTERFACE: &str = "kube-ipvs0";

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// A veth whose other end is in another network namespace.
    VethToElsewhere,
    /// A veth whose other end is in this namespace, with that end's index.
    VethToHere(u32),
    /// A bridge.
    Bridge,
    /// The loopback.
    Loopback,
    /// Anything else.
    Other,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) kind: LinkKind,
    /// Both ends are up: what is sent now arrives.
    pub(super) carrier: bool,
    /// Its frames begin with an Ethernet header.
    pub(super) has_link_header: bool,
}

/// How far the kernel is with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// It has the MAC address, fresh or not.
    Known(Mac),
    /// It is asking.
    Pending,
    /// Nobody answered.
    Failed,
}

/// One thing that netlink said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// A link is so.
    Link(u32, Link),
    /// A link is gone.
    LinkGone(u32),
    /// An address of this node, with its prefix, on a link.
    Address(u32, IpNet),
    /// An address is gone from a link.
    AddressGone(u32, IpNet),
    /// A route straight to one address through a link.
    HostRoute(u32, IpAddr),
    /// Such a route is gone.
    HostRouteGone(u32, IpAddr),
    /// A neighbour on a link.
    Neighbour(u32, IpAddr, Neighbour),
    /// A neighbour is forgotten.
    NeighbourGone(u32, IpAddr),
    /// A bridge forwards a MAC address to a port: (bridge, address, port).
    Forwarding(u32, Mac, u32),
    /// It no longer does: (bridge, address, port).
    ForwardingGone(u32, Mac, u32),
}

/// The tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpNet)>,
    routes: BTreeSet<(IpAddr, u32)>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    forwarding: BTreeMap<(u32, Mac), u32>,
}

impl State {
    /// Takes over one update: true if it changed anything.
    pub(super) fn apply(&mut self, update: Update) -> bool {
        match update {
            Update::Link(ifindex, link) => self.links.insert(ifindex, link.clone()) != Some(link),
            Update::LinkGone(ifindex) => self.forget_link(ifindex),
            Update::Address(ifindex, address) => self.addresses.insert((ifindex, address)),
            Update::AddressGone(ifindex, address) => self.addresses.remove(&(ifindex, address)),
            Update::HostRoute(ifindex, address) => self.routes.insert((address, ifindex)),
            Update::HostRouteGone(ifindex, address) => self.routes.remove(&(address, ifindex)),
            Update::Neighbour(ifindex, address, neighbour) => {
                self.neighbours.insert((ifindex, address), neighbour) != Some(neighbour)
            }
            Update::NeighbourGone(ifindex, address) => self.neighbours.remove(&(ifindex, address)).is_some(),
            Update::Forwarding(bridge, mac, port) => self.forwarding.insert((bridge, mac), port) != Some(port),
            Update::ForwardingGone(bridge, mac, port) => {
                // The entry may have moved to another port meanwhile.
                let held = self.forwarding.get(&(bridge, mac)) == Some(&port);
                held && self.forwarding.remove(&(bridge, mac)).is_some()
            }
        }
    }

    fn forget_link(&mut self, ifindex: u32) -> bool {
        let known = self.links.remove(&ifindex).is_some();
        self.addresses.retain(|(link, _)| *link != ifindex);
        self.routes.retain(|(_, link)| *link != ifindex);
        self.neighbours.retain(|(link, _), _| *link != ifindex);
        self.forwarding.retain(|(bridge, _), port| *bridge != ifindex && *port != ifindex);
        // The other end of a veth left this namespace, and the kernel tells of that end only.
        for link in self.links.values_mut().filter(|link| link.kind == LinkKind::VethToHere(ifindex)) {
            link.kind = LinkKind::VethToElsewhere;
        }
        known
    }

    /// The node's own addresses. Loopback ones are no addresses of packets.
    pub(super) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let own = self.addresses.iter().filter(|(ifindex, address)| {
            let services = self.links.get(ifindex).is_some_and(|link| link.name == SERVICE_INTERFACE);
            !services && !address.addr().is_loopback()
        });
        own.map(|(_, address)| address.addr()).collect()
    }

    /// Links with a route straight to `address`.
    pub(super) fn routes_to(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.routes.range((address, 0)..=(address, u32::MAX)).map(|(_, ifindex)| *ifindex)
    }

    /// Bridges on whose subnet `address` is.
    pub(super) fn bridges_for(&self, address: IpAddr) -> BTreeSet<u32> {
        let is_bridge = |ifindex: &u32| self.links.get(ifindex).is_some_and(|link| link.kind == LinkKind::Bridge);
        let on_link = self.addresses.iter().filter(|(_, own)| own.contains(&address) && own.addr() != address);
        on_link.map(|(ifindex, _)| *ifindex).filter(is_bridge).collect()
    }

    /// True if a bridge has an address of its own in this family (beside its link-local one): pods may be behind it.
    pub(super) fn has_bridge_with(&self, ipv6: bool) -> bool {
        let is_bridge = |ifindex: &u32| self.links.get(ifindex).is_some_and(|link| link.kind == LinkKind::Bridge);
        self.addresses.iter().any(|(ifindex, address)| match address {
            IpNet::V4(_) => !ipv6 && is_bridge(ifindex),
            IpNet::V6(own) => ipv6 && is_bridge(ifindex) && !own.addr().is_unicast_link_local(),
        })
    }

    /// What the kernel knows of `address` on a link.
    pub(super) fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&(ifindex, address)).copied()
    }

    /// The port to which a bridge forwards `mac`.
    pub(super) fn port_of(&self, bridge: u32, mac: Mac) -> Option<u32> {
        self.forwarding.get(&(bridge, mac)).copied()
    }
}
