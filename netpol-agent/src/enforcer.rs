//! Joins compiler, maps and hooks: takes cluster events and views of the node, and makes the datapath follow.
//!
//! Order, as nothing may open in between (design §3.8): a slot's policy word before its endpoint, the endpoint before the
//! hooks; hooks off before the endpoint goes. And the hooks of uplinks before those of pods, which may send what only
//! they judge. A hook where an earlier agent's program runs is taken over last, when all that our program will look up is
//! written: it may be in maps that the other does not know.

mod exits;
mod first;
mod hook;
mod report;
mod roles;
mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use netpol_common::abi::Endpoint;

use crate::cluster::ClusterState;
use crate::cluster::model::{ClusterEvent, Pod};
use crate::cluster::state::is_live;
use crate::datapath::apply::Applier;
use crate::datapath::attach::Hooks;
use crate::datapath::backstop::Backstop;
use crate::datapath::desired::{DesiredDatapath, Touched};
use crate::datapath::flows::FlowTables;
use crate::datapath::store::KernelStore;
use crate::datapath::takeover::Others;
use crate::endpoints::{Endpoints, Local};
use crate::node::view::NodeView;
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
