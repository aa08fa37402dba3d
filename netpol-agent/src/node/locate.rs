//! Which pod interface a wanted address is behind, without entering the pod's namespace.
//!
//! In: what netlink said, the addresses wanted, what was found before. Out: the [`NodeView`], and whom the kernel is to
//! be asked about. Pure: no I/O; time comes as an argument. Two shapes of network are understood: a route straight to
//! the veth, and a bridge, where a neighbour entry gives the MAC address and the forwarding table its port.
//!
//! Once found, an address stays with its interface until that is gone or nobody wants the address: later claims from
//! elsewhere are refused, so that a pod cannot take another's identity by answering for it. Before it is found, a veth
//! that nobody claims yet can answer for an address that is not its own; only the CNI plugin can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::state::{Link, LinkKind, Mac, Neighbour, State};
use super::view::{NodeView, PodInterface, Uplink};
use crate::problem::{Problem, Severity};

/// The kernel asks three times, a second apart.
const GIVE_UP_AFTER: Duration = Duration::from_secs(4);
/// First and longest pause between two questions about an address.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// A question to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Probe {
    /// Interface on which to ask: a bridge or a veth.
    pub(super) ifindex: u32,
    /// The address asked for.
    pub(super) address: IpAddr,
    /// Forget first what is known: its MAC address leads nowhere.
    pub(super) forget: bool,
}

/// Where an address is, by what netlink said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Behind this interface, with this MAC address.
    Behind(u32, Mac),
    /// Asking may tell.
    Ask(Vec<Probe>),
    /// No bridge or veth of this node leads to it.
    NotHere,
}

/// A search for one address.
#[derive(Clone, Copy, Debug)]
struct Search {
    since: Instant,
    next: Instant,
    pause: Duration,
    given_up: bool,
}

/// Where each wanted address is, and what is still looked for.
#[derive(Debug, Default)]
pub(super) struct Locator {
    wanted: BTreeSet<IpAddr>,
    found: BTreeMap<IpAddr, (u32, Mac)>,
    searches: BTreeMap<IpAddr, Search>,
    /// Pod interfaces at the last look, and whether they had carrier.
    seen: BTreeMap<u32, bool>,
}

/// What one look yields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) view: NodeView,
    pub(super) probes: Vec<Probe>,
    /// When to look again though nothing changed.
    pub(super) again: Option<Instant>,
}

impl Locator {
    /// Sets the addresses to look for.
    pub(super) fn want(&mut self, wanted: BTreeSet<IpAddr>) {
        self.found.retain(|address, _| wanted.contains(address));
        self.searches.retain(|address, _| wanted.contains(address));
        self.wanted = wanted;
    }

    /// Joins what netlink said with what is wanted. `is_pod_name` tells pod interfaces by name.
    pub(super) fn look(&mut self, state: &State, is_pod_name: impl Fn(&str) -> bool, now: Instant) -> Look {
        let mut view = NodeView { own_addresses: state.own_addresses(), ..NodeView::default() };
        let mut carriers = BTreeMap::new();
        for (&ifindex, link) in &state.links {
            if link.kind == LinkKind::VethToElsewhere && is_pod_name(&link.name) {
                carriers.insert(ifindex, link.carrier);
                let interface = PodInterface { ifindex, name: link.name.clone(), ..PodInterface::default() };
                view.interfaces.insert(ifindex, interface);
            } else {
                register(&mut view, ifindex, link);
            }
        }
        if carriers != self.seen {
            // Whoever did not answer before may be behind the interface that changed.
            self.searches.clear();
            self.seen = carriers;
        }
        self.found.retain(|_, (ifindex, _)| view.interfaces.contains_key(ifindex));
        let mut look = Look { view, ..Look::default() };
        for address in self.wanted.clone() {
            if !self.found.contains_key(&address) {
                self.search(state, address, now, &mut look);
            }
        }
        for (address, (ifindex, mac)) in &self.found {
            if let Some(interface) = look.view.interfaces.get_mut(ifindex) {
                interface.mac = Some(*mac);
                interface.addresses.insert(*address);
            }
        }
        look.again = self.searches.values().map(|search| search.next).min();
        look
    }

    fn search(&mut self, state: &State, address: IpAddr, now: Instant, look: &mut Look) {
        let probes = match place(state, &look.view.interfaces, address) {
            Place::Behind(ifindex, mac) => {
                self.searches.remove(&address);
                match self.holder(ifindex, mac) {
                    None => {
                        self.found.insert(address, (ifindex, mac));
                    }
                    Some(holder) => look.view.problems.push(claimed(&look.view, address, ifindex, holder)),
                }
                return;
            }
            Place::NotHere => {
                self.searches.remove(&address);
                return;
            }
            Place::Ask(probes) => probes,
        };
        let fresh = Search { since: now, next: now, pause: RETRY.0, given_up: false };
        let search = self.searches.entry(address).or_insert(fresh);
        let asked = search.next > search.since;
        let failed = |probe: &Probe| state.neighbour(probe.ifindex, address) == Some(Neighbour::Failed);
        if asked && (probes.iter().all(failed) || now.duration_since(search.since) >= GIVE_UP_AFTER) {
            search.given_up = true;
        }
        if search.next <= now {
            search.next = now + search.pause;
            search.pause = (search.pause * 2).min(RETRY.1);
            look.probes.extend(probes);
        }
        if !search.given_up {
            look.view.unresolved.insert(address);
        }
    }

    /// An address that is behind `ifindex` with another MAC address: one pod, one interface, one MAC address.
    fn holder(&self, ifindex: u32, mac: Mac) -> Option<IpAddr> {
        let other = |(_, (held, other)): &(&IpAddr, &(u32, Mac))| *held == ifindex && *other != mac;
        self.found.iter().find(other).map(|(address, _)| *address)
    }
}

/// A device that is no pod's. A bridge's port counts as any other, as frames leave through it.
fn register(view: &mut NodeView, ifindex: u32, link: &Link) {
    match link.kind {
        LinkKind::Bridge | LinkKind::Loopback => {
            view.passages.insert(ifindex);
        }
        LinkKind::VethToElsewhere | LinkKind::VethToHere(_) | LinkKind::Other => {
            let uplink = Uplink { ifindex, name: link.name.clone(), has_link_header: link.has_link_header };
            view.uplinks.insert(ifindex, uplink);
        }
    }
}

fn claimed(view: &NodeView, address: IpAddr, ifindex: u32, holder: IpAddr) -> Problem {
    let name = view.interfaces.get(&ifindex).map_or("", |interface| &interface.name);
    Problem {
        severity: Severity::Refused,
        origin: "netlink".to_owned(),
        object: format!("address {address}"),
        field: String::new(),
        message: format!("found behind interface {name}, which belongs to the pod with address {holder}"),
        effect: "the pod with this address is not attached to it; traffic with this address as source is dropped there"
            .to_owned(),
    }
}

fn place(state: &State, interfaces: &BTreeMap<u32, PodInterface>, address: IpAddr) -> Place {
    let ask = |ifindex, forget| Probe { ifindex, address, forget };
    let mut probes = Vec::new();
    for ifindex in state.routes_to(address).filter(|ifindex| interfaces.contains_key(ifindex)) {
        match state.neighbour(ifindex, address) {
            Some(Neighbour::Known(mac)) => return Place::Behind(ifindex, mac),
            _ => probes.push(ask(ifindex, false)),
        }
    }
    for bridge in state.bridges_for(address) {
        match state.neighbour(bridge, address) {
            Some(Neighbour::Known(mac)) => match state.port_of(bridge, mac) {
                Some(port) if interfaces.contains_key(&port) => return Place::Behind(port, mac),
                // Another kind of port: a VLAN, a tunnel, a veth that is no pod's.
                Some(_) => {}
                // The bridge has forgotten the MAC address, or it was that of a pod that is gone.
                None => probes.push(ask(bridge, true)),
            },
            _ => probes.push(ask(bridge, false)),
        }
    }
    if probes.is_empty() { Place::NotHere } else { Place::Ask(probes) }
}

#[cfg(test)]
mod tests;
