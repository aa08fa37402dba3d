//! Local pods and their slots: joins what the node looks like with the pods that the cluster knows. Pure.
//!
//! In: a [`NodeView`] and the pods by address. Out: which slots belong to which pods, and the [`Endpoint`] that each
//! interface should have. A slot stays with its interface; a freed one comes again only after all others had their turn,
//! so that flows of a pod that is gone are not found by the next one.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::{Endpoint, EndpointFlags, Mac, SLOT_NONE, V4, V6};

use crate::cluster::model::{Pod, PodKey};
use crate::node::view::{NodeView, PodInterface};
use crate::problem::{Problem, Severity};

/// One pod interface of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Interface index.
    pub ifindex: u32,
    /// Interface name.
    pub interface: String,
    /// Slot; `SLOT_NONE` if there was none left: everything is denied then.
    pub slot: u16,
    /// The pod, once it is known whose interface this is.
    pub pod: Option<PodKey>,
    /// What the interface's entry in the datapath should say.
    pub endpoint: Endpoint,
}

/// The local pods.
#[derive(Clone, Debug)]
pub struct Endpoints {
    locals: BTreeMap<u32, Local>,
    slots: u16,
    next: u16,
    /// What interfaces without a known pod get: `PENDING`, or nothing to let them pass.
    pending_flag: u16,
    problems: Vec<Problem>,
}

/// An endpoint as an earlier agent left it in the maps.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Interface index.
    pub ifindex: u32,
    /// Its entry.
    pub endpoint: Endpoint,
}

impl Endpoints {
    /// No endpoints, of at most `slots` slots (slot 0 is nobody's). `hold_pending`: deny a pod's traffic until it is known.
    #[must_use]
    pub fn new(slots: u16, hold_pending: bool) -> Self {
        let pending_flag = if hold_pending { EndpointFlags::PENDING } else { EndpointFlags::PASS_THROUGH };
        Self { locals: BTreeMap::new(), slots, next: 1, pending_flag, problems: Vec::new() }
    }

    /// Takes over what an earlier agent left of interfaces that are still there: the slot stays with the interface. `used`
    /// are slots that flows may name: they come again last.
    pub fn adopt(&mut self, left: impl IntoIterator<Item = Left>, used: impl IntoIterator<Item = u16>) {
        let mut last = used.into_iter().max().unwrap_or(0);
        for Left { ifindex, endpoint } in left {
            let local = Local { ifindex, interface: String::new(), slot: endpoint.slot, pod: None, endpoint };
            last = last.max(endpoint.slot);
            self.locals.insert(ifindex, local);
        }
        self.next = if last < self.slots.saturating_sub(1) { last + 1 } else { 1 };
    }

    /// All of them, by interface.
    pub fn iter(&self) -> impl Iterator<Item = &Local> {
        self.locals.values()
    }

    /// Which pod has which slot.
    #[must_use]
    pub fn slots(&self) -> BTreeMap<u16, PodKey> {
        self.locals.values().filter_map(|local| Some((local.slot, local.pod.clone()?))).collect()
    }

    /// The flag of an endpoint whose pod is not known.
    #[must_use]
    pub const fn pending_flag(&self) -> u16 {
        self.pending_flag
    }

    /// Interfaces and pods that could not be joined as the manifests want it.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Follows the node and the cluster. `pod_at` names the live pod with its own address (no hostNetwork) of an address;
    /// none where two claim it. Returns the interfaces that are gone.
    pub fn follow(&mut self, view: &NodeView, pod_at: impl Fn(IpAddr) -> Option<Arc<Pod>>) -> Vec<Local> {
        self.problems.clear();
        let gone: Vec<u32> = self.locals.keys().filter(|it| !view.interfaces.contains_key(it)).copied().collect();
        let gone = gone.iter().filter_map(|ifindex| self.locals.remove(ifindex)).collect();
        let mut bound = BTreeSet::new();
        // What was found goes before what is remembered.
        let mut interfaces: Vec<&PodInterface> = view.interfaces.values().collect();
        interfaces.sort_by_key(|interface| (interface.addresses.is_empty(), interface.ifindex));
        for interface in interfaces {
            let interface = &self.with_what_was_left(interface);
            let pods = pods_behind(interface, &pod_at);
            let pod = match pods.as_slice() {
                [pod] if bound.insert(pod.key.clone()) => Some(pod.clone()),
                [] => None,
                _ => {
                    self.problems.push(ambiguous(interface, &pods));
                    None
                }
            };
            self.place(interface, pod);
        }
        gone
    }

    /// After a restart an earlier agent's word stands for what was not found again yet: it is about this very interface, or
    /// `datapath::takeover` would not have believed it.
    fn with_what_was_left(&self, interface: &PodInterface) -> PodInterface {
        let mut known = interface.clone();
        let Some(left) = self.locals.get(&interface.ifindex).map(|local| local.endpoint) else {
            return known;
        };
        if known.mac.is_none() && left.mac != Mac::default() {
            known.mac = Some(left.mac.octets());
        }
        if known.addresses.is_empty() {
            if left.has(EndpointFlags::HAS_V4) {
                known.addresses.insert(IpAddr::V4(left.ipv4.into()));
            }
            if left.has(EndpointFlags::HAS_V6) {
                known.addresses.insert(IpAddr::V6(left.ipv6.into()));
            }
        }
        known
    }

    fn place(&mut self, interface: &PodInterface, pod: Option<Arc<Pod>>) {
        let slot = match self.locals.get(&interface.ifindex) {
            Some(local) if local.slot != SLOT_NONE => Some(local.slot),
            _ => self.free_slot(),
        };
        let Some(slot) = slot else {
            self.problems.push(no_slot(interface, self.slots));
            // Its hooks must be there all the same: without an endpoint they deny, without hooks nothing would.
            let (name, endpoint) = (interface.name.clone(), Endpoint::default());
            let local = Local { ifindex: interface.ifindex, interface: name, slot: SLOT_NONE, pod: None, endpoint };
            self.locals.insert(interface.ifindex, local);
            return;
        };
        let before = self.locals.get(&interface.ifindex).filter(|local| local.slot == slot);
        let endpoint = match (&pod, interface.mac, before) {
            (Some(pod), Some(mac), _) => endpoint_of(pod, slot, mac),
            // Nobody says whose it is any more, or not yet again after a restart: what is enforced stays so. Policy denies
            // a slot whose pod the cluster does not know.
            (_, _, Some(local)) => local.endpoint,
            _ => Endpoint { slot, flags: self.pending_flag, ..Endpoint::default() },
        };
        let known = pod.filter(|_| interface.mac.is_some()).map(|pod| pod.key.clone());
        let local = Local { ifindex: interface.ifindex, interface: interface.name.clone(), slot, pod: known, endpoint };
        self.locals.insert(interface.ifindex, local);
    }

    fn free_slot(&mut self) -> Option<u16> {
        let taken: BTreeSet<u16> = self.locals.values().map(|local| local.slot).collect();
        let slot = (self.next..self.slots).chain(1..self.next).find(|slot| !taken.contains(slot))?;
        self.next = if slot + 1 < self.slots { slot + 1 } else { 1 };
        Some(slot)
    }
}

fn pods_behind(interface: &PodInterface, pod_at: &impl Fn(IpAddr) -> Option<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut pods: Vec<Arc<Pod>> = Vec::new();
    for pod in interface.addresses.iter().filter_map(|&address| pod_at(address)) {
        if !pods.iter().any(|known| known.key == pod.key) {
            pods.push(pod);
        }
    }
    pods
}

/// The endpoint has all addresses that the pod declares: they are what the cluster knows it by.
fn endpoint_of(pod: &Pod, slot: u16, mac: [u8; 6]) -> Endpoint {
    let mut endpoint = Endpoint { slot, mac: Mac::from_octets(mac), ..Endpoint::default() };
    for address in &pod.addresses {
        match *address {
            IpAddr::V4(v4) => {
                endpoint.flags |= EndpointFlags::HAS_V4;
                endpoint.ipv4 = V4::from(v4);
            }
            IpAddr::V6(v6) => {
                endpoint.flags |= EndpointFlags::HAS_V6;
                endpoint.ipv6 = V6::from(v6);
            }
        }
    }
    endpoint
}

fn ambiguous(interface: &PodInterface, pods: &[Arc<Pod>]) -> Problem {
    let names: Vec<String> = pods.iter().map(|pod| pod.key.to_string()).collect();
    Problem {
        severity: Severity::Refused,
        origin: "node".to_owned(),
        object: format!("interface {}", interface.name),
        field: String::new(),
        message: format!(
            "addresses of {} are found behind it, or the pod is behind another interface already; give each pod its own \
             interface and correct the status.podIPs",
            names.join(" and ")
        ),
        effect: "its traffic is denied until one pod is left".to_owned(),
    }
}

fn no_slot(interface: &PodInterface, slots: u16) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: "node".to_owned(),
        object: format!("interface {}", interface.name),
        field: String::new(),
        message: format!("all {} slots are taken; start the agent with a larger --max-pods", slots.saturating_sub(1)),
        effect: "its traffic is denied".to_owned(),
    }
}
