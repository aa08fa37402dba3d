//! Joins compiler, maps and hooks: takes cluster events and views of the node, and makes the datapath follow.
//!
//! Order, as nothing may open in between (design §3.8): a slot's policy word before its endpoint, the endpoint before the
//! hooks; hooks off before the endpoint goes. And the hooks of uplinks before those of pods, which may send what only
//! they judge. A hook where an earlier agent's program runs is taken over last, when all that our program will look up is
//! written: it may be in maps that the other does not know.

mod exits;
mod first;
mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use netpol_common::abi::Endpoint;

use crate::cluster::ClusterState;
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod, PodKey};
use crate::cluster::state::is_live;
use crate::datapath::apply::Applier;
use crate::datapath::attach::{AttachError, Hooks, Role};
use crate::datapath::backstop::Backstop;
use crate::datapath::desired::{DesiredDatapath, Touched};
use crate::datapath::flows::FlowTables;
use crate::datapath::store::KernelStore;
use crate::datapath::takeover::Others;
use crate::endpoints::{Endpoints, Local};
use crate::flow::timestamp;
use crate::node::view::NodeView;
use crate::observe::answer::{EndpointReport, UplinkReport};
use crate::observe::report;
use crate::policy::{Compiler, Provenance};
use crate::problem::{Problem, Severity};
use crate::services;
use first::FirstInstall;
use uplinks::Uplinks;

/// The datapath of this node and what it follows.
pub struct Enforcer {
    compiler: Compiler,
    applier: Applier,
    store: KernelStore,
    hooks: Hooks,
    endpoints: Endpoints,
    uplinks: Uplinks,
    first: FirstInstall,
    backstop: Backstop,
    backstop_problem: Option<Problem>,
    /// Endpoints as they are in the maps, with hooks attached.
    attached: BTreeMap<u32, Endpoint>,
    /// When those were last changed.
    since: BTreeMap<u32, SystemTime>,
    /// Interfaces where an earlier agent's programs run.
    live: BTreeSet<u32>,
    /// What those may need, until they are replaced.
    others: Others,
    /// What could not be attached or written, by interface.
    failed: BTreeMap<u32, Problem>,
    /// Where other programs run before ours, by interface.
    overtaken: BTreeMap<u32, Problem>,
    apply_problems: Vec<Problem>,
    /// Roles of addresses and node ports are to be written, as services or pods changed.
    roles_due: bool,
    /// The node's own addresses and the node's ports that services translate, as they are in the maps.
    own_addresses: BTreeSet<IpAddr>,
    node_ports: Option<Box<services::NodePorts>>,
    role_problem: Option<Problem>,
    /// Compiled, not applied yet.
    compiled: Touched,
    /// Something has been applied since the start.
    started: bool,
    generation: u64,
    /// The generation that the datapath was last brought to.
    enforced: u64,
}

/// Parts that an [`Enforcer`] is made of.
pub struct Parts {
    /// Compiles policies; knows the numbers in use.
    pub compiler: Compiler,
    /// Knows what is in the maps.
    pub applier: Applier,
    /// The maps.
    pub store: KernelStore,
    /// The programs.
    pub hooks: Hooks,
    /// Slots, with those that an earlier agent left.
    pub endpoints: Endpoints,
    /// The flow tables, to be told of connections from before the first agent.
    pub flows: FlowTables,
    /// Stops what would leave unjudged.
    pub backstop: Backstop,
    /// Interfaces where an earlier agent's programs run.
    pub live: BTreeSet<u32>,
    /// Maps that an agent of another version left.
    pub others: Others,
}

impl Enforcer {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { compiler, applier, store, hooks, endpoints, flows, backstop, live, others } = parts;
        let first = FirstInstall::new(flows, &hooks);
        Self {
            compiler,
            applier,
            store,
            hooks,
            endpoints,
            uplinks: Uplinks::default(),
            first,
            backstop,
            backstop_problem: None,
            attached: BTreeMap::new(),
            since: BTreeMap::new(),
            live,
            others,
            failed: BTreeMap::new(),
            overtaken: BTreeMap::new(),
            apply_problems: Vec::new(),
            roles_due: true,
            own_addresses: BTreeSet::new(),
            node_ports: None,
            role_problem: None,
            compiled: Touched::default(),
            started: false,
            generation: 0,
            enforced: 0,
        }
    }

    /// Takes events in; [`Self::enforce`] carries them out.
    pub fn take(&mut self, events: impl IntoIterator<Item = ClusterEvent>) {
        for event in events {
            self.roles_due |= self.concerns_roles(&event);
            self.compiler.apply(event);
            self.generation += 1;
        }
    }

    /// True if what addresses are to this node may change: by services, by pods in nodes' networks and those that nodes' ports
    /// lead to. Most pods are neither, and looking through all pods for each that changes would not scale.
    fn concerns_roles(&self, event: &ClusterEvent) -> bool {
        let concerns = |pod: &Pod| pod.host_network || !pod.host_ports.is_empty();
        let known = |key: &PodKey| self.compiler.state().pod(key).is_some_and(|pod| concerns(pod));
        match event {
            ClusterEvent::Apply(Object::Pod(pod)) => concerns(pod) || known(&pod.key),
            ClusterEvent::Delete(ObjectRef::Pod(key)) => known(key),
            ClusterEvent::Apply(Object::Service(_)) | ClusterEvent::Delete(ObjectRef::Service(_)) => true,
            ClusterEvent::Apply(_) | ClusterEvent::Delete(_) => false,
        }
    }

    /// Makes the datapath follow the cluster and the node.
    pub fn enforce(&mut self, view: &NodeView) {
        if self.backstop.is_made() {
            // Before hooks go.
            self.let_out(self.hooked(view));
        }
        // New interfaces are held before anything else is looked at.
        self.follow(view);
        if !self.started {
            // Again at the end: the steps may bring more.
            self.write_roles(view);
            self.roles_due = true;
        }
        // In maps that other programs do not know everything must be written before an uplink is judged by them.
        let is_takeover = !self.others.is_empty();
        if !is_takeover {
            self.uplinks.follow(view, &mut self.hooks, &mut self.store);
        }
        if !self.backstop.is_made() {
            self.begin_backstop(view);
        }
        self.observe(view);
        self.hold_new();
        if !is_takeover {
            // Else the others' hooks at uplinks, which are not told apart from none yet, still judge.
            self.let_out(self.hooked(view));
        }
        self.run_steps();
        // The steps may have brought pods to the cluster state that are behind interfaces seen before.
        self.follow(view);
        self.run_steps();
        if is_takeover {
            self.write_pods();
            self.uplinks.follow(view, &mut self.hooks, &mut self.store);
        }
        self.write_endpoints();
        // What could not be attached before may be now.
        self.let_out(self.hooked(view));
        self.write_roles(view);
        self.end_takeover();
        if !self.is_behind() {
            self.enforced = self.generation;
        }
    }

    /// Holds new interfaces while the cluster is not known yet; those that an earlier agent enforces go on as they are.
    pub fn hold(&mut self, view: &NodeView) {
        for local in self.endpoints.follow(view, |_| None) {
            self.detach(&local);
        }
        self.hold_new();
    }

    /// Joins the view with the pods, and takes down what is gone.
    fn follow(&mut self, view: &NodeView) {
        let state = self.compiler.state();
        let gone = self.endpoints.follow(view, |address| own_pod_at(state, address));
        for local in gone {
            self.detach(&local);
        }
        self.compiler.set_local(self.endpoints.slots());
    }

    /// Attaches interfaces that are not yet, with the endpoint that denies until the pod's policy is in the maps; where an
    /// earlier agent's programs run they go on.
    fn hold_new(&mut self) {
        let is_new =
            |local: &&Local| !self.attached.contains_key(&local.ifindex) && !self.live.contains(&local.ifindex);
        let new: Vec<Local> = self.endpoints.iter().filter(is_new).cloned().collect();
        for local in new {
            let endpoint = Endpoint { slot: local.slot, flags: self.endpoints.pending_flag(), ..Endpoint::default() };
            self.put(&local, endpoint);
        }
    }

    /// Forgets what another version left, once our programs run at every hook.
    fn end_takeover(&mut self) {
        let is_ours = |local: &Local| self.attached.contains_key(&local.ifindex);
        if self.others.is_empty() || !self.endpoints.iter().all(is_ours) || self.uplinks.problems().next().is_some() {
            return;
        }
        match self.others.remove() {
            Ok(()) => tracing::info!("took over from another version: its maps are removed"),
            Err(error) => tracing::warn!(%error, "cannot remove what another version left; tried again by and by"),
        }
    }

    /// Compiles what was taken in without touching the maps. For the start: what an earlier agent left must stay in force
    /// until all of it can be replaced at once, every pod's slot known.
    pub fn compile(&mut self) {
        while let Some(step) = self.compiler.next_step() {
            self.compiled.extend(&step.touched);
            self.compiler.applied(false);
        }
    }

    fn run_steps(&mut self) {
        if !self.started {
            self.compile();
        }
        let mut behind = !self.started || self.applier.is_behind();
        loop {
            let step = self.compiler.next_step();
            let mut touched = std::mem::take(&mut self.compiled);
            match step {
                Some(step) => touched.extend(&step.touched),
                None if behind || !touched.is_empty() => {}
                None => break,
            }
            behind = false;
            self.started = true;
            let outcome = self.applier.apply(self.compiler.desired(), &touched, &mut self.store);
            self.compiler.applied(outcome.complete);
            let complete = outcome.complete;
            let provenance = self.compiler.provenance();
            self.apply_problems = outcome.problems(|slot| pod_name(&provenance, slot));
            for problem in &self.apply_problems {
                tracing::error!("{problem}");
            }
            if !complete {
                // Tried again by and by: a kernel that refuses now will refuse at once again.
                break;
            }
        }
    }

    /// Writes whom marks speak of: pods whose hooks an earlier agent's programs still have may mark already.
    fn write_pods(&mut self) {
        let locals: Vec<Local> = self.endpoints.iter().cloned().collect();
        for local in locals {
            if let Err(error) = self.store.write_pod(&local.endpoint) {
                self.fail(&local, &error.to_string());
            }
        }
    }

    /// Writes endpoints that changed. A slot's policy is in the maps by now.
    fn write_endpoints(&mut self) {
        let changed: Vec<Local> =
            self.endpoints.iter().filter(|it| self.attached.get(&it.ifindex) != Some(&it.endpoint)).cloned().collect();
        for local in changed {
            self.put(&local, local.endpoint);
            if let Some(pod) = &local.pod {
                tracing::info!(%pod, interface = local.interface, slot = local.slot, "enforcing");
            }
        }
    }

    fn put(&mut self, local: &Local, endpoint: Endpoint) {
        // Before its hook: a mark must never speak of a pod that nobody knows.
        if let Err(error) = self.store.write_pod(&endpoint) {
            self.fail(local, &error.to_string());
            return;
        }
        if let Err(error) = self.store.write_endpoint(local.ifindex, &endpoint) {
            self.fail(local, &error.to_string());
            return;
        }
        if !self.attached.contains_key(&local.ifindex) {
            match self.hooks.attach(local.ifindex, Role::Pod) {
                Ok(attachment) if attachment.ahead.is_empty() => {}
                Ok(attachment) => {
                    let message = format!("other programs run before ours: {:?}", attachment.ahead);
                    self.overtaken.insert(local.ifindex, not_as_written(local, &message));
                }
                Err(AttachError::Gone { .. }) => return,
                Err(error) => {
                    self.fail(local, &error.to_string());
                    return;
                }
            }
        }
        if self.attached.insert(local.ifindex, endpoint) != Some(endpoint) {
            self.since.insert(local.ifindex, SystemTime::now());
        }
        self.failed.remove(&local.ifindex);
    }

    fn detach(&mut self, local: &Local) {
        self.attached.remove(&local.ifindex);
        self.since.remove(&local.ifindex);
        self.live.remove(&local.ifindex);
        self.failed.remove(&local.ifindex);
        self.overtaken.remove(&local.ifindex);
        if let Err(error) = self.hooks.detach(local.ifindex) {
            tracing::warn!(interface = local.interface, %error, "cannot clean up after an interface that is gone");
        }
        let removed = self.store.remove_endpoint(local.ifindex).and_then(|()| self.store.remove_pod(local.slot));
        if let Err(error) = removed {
            tracing::warn!(interface = local.interface, %error, "cannot clean up after an interface that is gone");
        }
    }

    fn fail(&mut self, local: &Local, message: &str) {
        self.failed.insert(local.ifindex, not_as_written(local, message));
    }

    fn write_roles(&mut self, view: &NodeView) {
        if !self.roles_due && self.own_addresses == view.own_addresses {
            return;
        }
        let roles = services::address_roles(self.compiler.state(), &view.own_addresses);
        let ports = services::node_ports(self.compiler.state());
        let mut written = self.store.sync_address_roles(&roles);
        if written.is_ok() && self.node_ports.as_ref() != Some(&ports) {
            written = self.store.write_node_ports(&ports);
            self.node_ports = written.is_ok().then_some(ports);
        }
        let problem = written.err().map(|error| Problem {
            severity: Severity::Refused,
            origin: "node".to_owned(),
            object: "services and own addresses".to_owned(),
            field: String::new(),
            message: error.to_string(),
            effect: "egress to those that are missing is judged by their own address, not by the backend".to_owned(),
        });
        if let Some(problem) = problem.as_ref().filter(|it| self.role_problem.as_ref() != Some(it)) {
            tracing::error!("{problem}");
        }
        self.roles_due = problem.is_some();
        self.own_addresses.clone_from(&view.own_addresses);
        self.role_problem = problem;
    }

    /// The cluster as enforced.
    #[must_use]
    pub fn cluster(&self) -> &ClusterState {
        self.compiler.state()
    }

    /// What the maps should hold.
    #[must_use]
    pub fn desired(&self) -> &DesiredDatapath {
        self.compiler.desired()
    }

    /// What allows and isolates whom.
    #[must_use]
    pub fn provenance(&self) -> Arc<Provenance> {
        self.compiler.provenance()
    }

    /// Everything that is not enforced as written, but for what the source knows.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.compiler.problems();
        problems.extend_from_slice(self.endpoints.problems());
        problems.extend(self.failed.values().chain(self.overtaken.values()).cloned());
        problems.extend(self.uplinks.problems().cloned());
        problems.extend(self.first.problem().cloned());
        problems.extend(self.backstop_problem.clone());
        problems.extend_from_slice(&self.apply_problems);
        problems.extend(self.role_problem.clone());
        problems
    }

    /// Grows with every change that was taken in.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The generation that the datapath was last brought to.
    #[must_use]
    pub const fn enforced_generation(&self) -> u64 {
        self.enforced
    }

    /// True if an earlier apply left something undone.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.applier.is_behind()
    }

    /// True if policy is in the maps; at the start, that of an earlier agent.
    #[must_use]
    pub fn has_policy_from_before(&self) -> bool {
        !self.applier.installed().words.is_empty()
    }

    /// True if something is not attached as it should be: worth another attempt.
    #[must_use]
    pub fn wants_another_attempt(&self) -> bool {
        let backstop = self.backstop_problem.as_ref().is_some_and(|it| it.severity == Severity::Refused);
        backstop || self.uplinks.problems().next().is_some() || !self.failed.is_empty()
    }

    /// How each device fares that packets leave the node through.
    #[must_use]
    pub fn uplinks(&self) -> Vec<UplinkReport> {
        self.uplinks.statuses()
    }

    /// How each local pod fares.
    #[must_use]
    pub fn statuses(&self) -> Vec<EndpointReport> {
        let provenance = self.compiler.provenance();
        let status = |local: &Local| {
            let state = match &local.pod {
                _ if self.failed.contains_key(&local.ifindex) => "failed",
                Some(_) if self.attached.get(&local.ifindex) == Some(&local.endpoint) => "enforced",
                _ => "pending",
            };
            let word = self.applier.installed().word(local.slot);
            let since = self.since.get(&local.ifindex).map(|since| timestamp(*since));
            EndpointReport { since, ..report::endpoint(local, state, word, &provenance) }
        };
        self.endpoints.iter().map(status).collect()
    }

    /// What is missing until the policy of `pod` is in force on the interface of this name; nothing if it is.
    #[must_use]
    pub fn why_not_enforced(&self, interface: &str, pod: &PodKey) -> Option<String> {
        let Some(local) = self.endpoints.iter().find(|local| local.interface == interface) else {
            return Some(format!("interface {interface} is not there, or its name is not that of a pod's interface"));
        };
        if let Some(problem) = self.failed.get(&local.ifindex) {
            return Some(problem.to_string());
        }
        if local.pod.as_ref() != Some(pod) {
            let other = local.pod.as_ref().map_or_else(|| "nobody's".to_owned(), ToString::to_string);
            return Some(format!("interface {interface} is {other}, not {pod}'s"));
        }
        if self.attached.get(&local.ifindex) != Some(&local.endpoint) {
            return Some(format!("programs are not on interface {interface} yet"));
        }
        self.is_behind().then(|| "the kernel did not take all of the policy; see `netpol status`".to_owned())
    }

    /// The maps, to read counters from.
    #[must_use]
    pub const fn store(&self) -> &KernelStore {
        &self.store
    }

    /// Local pods.
    #[must_use]
    pub const fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }
}

fn not_as_written(local: &Local, message: &str) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: "node".to_owned(),
        object: format!("interface {}", local.interface),
        field: String::new(),
        message: message.to_owned(),
        effect: "policy is not enforced there as written until this is mended".to_owned(),
    }
}

fn pod_name(provenance: &Provenance, slot: u16) -> String {
    provenance.pod(slot).map_or_else(|| format!("the pod in slot {slot}"), ToString::to_string)
}

/// Addresses that pods of this node may have: those of live pods that are not known to be on another node.
pub(crate) fn candidate_addresses(state: &ClusterState, node: &str) -> BTreeSet<IpAddr> {
    let here = |pod: &&Arc<Pod>| node.is_empty() || pod.node.is_empty() || &*pod.node == node;
    let pods = state.pods().filter(|pod| is_live(pod) && !pod.host_network).filter(here);
    pods.flat_map(|pod| pod.addresses.iter().copied()).collect()
}

/// The one live pod with a network of its own that claims an address.
pub(crate) fn own_pod_at(state: &ClusterState, address: IpAddr) -> Option<Arc<Pod>> {
    let mut claimants = state.claimants(address).filter_map(|key| state.pod(key)).filter(|pod| !pod.host_network);
    let first = claimants.next()?;
    claimants.next().is_none().then(|| first.clone())
}
