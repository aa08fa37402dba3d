//! What the compiler made of the objects, asked like the datapath asks it: [`Opinion`]s on sides of flows.
//!
//! A [`View`] is the agent's own compilation, for pods of this node: what is in the maps. For pods of other nodes, and from
//! manifests, a [`FreshCompile`] compiles the cluster as the agent over there does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::{AllowValue, Direction, POLICY_DENY, POLICY_NOT_ISOLATED, PortRule};

use super::{Flow, Side, Traffic};
use crate::cluster::ClusterState;
use crate::cluster::model::{ClusterEvent, Namespace, NetworkPolicy, Object, Pod, PodKey, PolicyKey, Protocol};
use crate::cluster::state::is_live;
use crate::datapath::desired::{DesiredDatapath, Tables};
use crate::datapath::ids::NumbersInUse;
use crate::policy::{Compiler, Limits, Provenance, RuleReference};

/// What the compiler says to one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// The policies that isolate the subject; none: it is not isolated.
    pub isolated_by: Option<Vec<PolicyKey>>,
    /// The rules that let the flow through.
    pub allowed_by: Vec<RuleReference>,
    /// What the tables answer: narrower than the rules if something did not fit.
    pub passes: bool,
    /// Of the agent that enforces it, rather than of a compilation made to ask.
    pub enforced: bool,
}

/// Something that has the compiler's results.
pub trait Compiled {
    /// What it says to a side; none if it does not know the subject.
    fn opinion(&self, side: Side<'_>) -> Option<Opinion>;
}

/// The results of a compiler that runs.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// What the maps should hold.
    pub desired: &'a DesiredDatapath,
    /// What the numbers mean.
    pub provenance: Arc<Provenance>,
    /// Slots of the pods of this node.
    pub slots: BTreeMap<PodKey, u16>,
    /// See [`Opinion::enforced`].
    pub enforced: bool,
}

/// A compilation for some pods, wherever they run.
pub struct FreshCompile {
    compiler: Compiler,
    slots: BTreeMap<PodKey, u16>,
}

/// Opinions collected before the question is answered, so that whoever compiles need not wait for the answer.
#[derive(Clone, Debug, Default)]
pub struct Opinions(BTreeMap<(PodKey, Direction, IpAddr, Traffic), Opinion>);

impl Compiled for View<'_> {
    fn opinion(&self, side: Side<'_>) -> Option<Opinion> {
        let slot = self.slots.get(side.subject.pod.as_ref()?)?;
        let policy = self.desired.words.get(slot)?.get(side.direction);
        if policy == POLICY_NOT_ISOLATED {
            let passes = true;
            return Some(Opinion { isolated_by: None, allowed_by: Vec::new(), passes, enforced: self.enforced });
        }
        if policy == POLICY_DENY {
            let isolated_by = Some(Vec::new());
            return Some(Opinion { isolated_by, allowed_by: Vec::new(), passes: false, enforced: self.enforced });
        }
        let tables = &self.desired.tables;
        let identity = tables.identity_of(side.peer.address);
        let (protocol, port) = side.traffic.number();
        let explanation = self.provenance.explain(policy, identity, protocol, port)?;
        let value = tables.allow.get(&policy).and_then(|row| row.get(&identity)).copied().unwrap_or_default();
        Some(Opinion {
            isolated_by: Some(explanation.isolated_by),
            allowed_by: explanation.allowed_by,
            passes: lets_through(value, side.traffic, tables),
            enforced: self.enforced,
        })
    }
}

/// What an entry of the allow table says to a first packet.
fn lets_through(value: AllowValue, traffic: Traffic, tables: &Tables) -> bool {
    let (field, port) = match traffic {
        Traffic::Port(Protocol::Tcp, port) => (value.tcp, port),
        Traffic::Port(Protocol::Udp, port) => (value.udp, port),
        Traffic::Port(Protocol::Sctp, port) => (value.sctp, port),
        Traffic::Other => return value.other != 0,
    };
    match PortRule::decode(field) {
        PortRule::None => false,
        PortRule::All => true,
        PortRule::Set(number) => {
            let byte = tables.port_sets.get(&number).and_then(|bits| bits.get(usize::from(port / 8)));
            byte.is_some_and(|byte| byte >> (port % 8) & 1 == 1)
        }
    }
}

impl FreshCompile {
    /// Compiles `cluster` as agents do that have `pods`.
    #[must_use]
    pub fn new(cluster: &ClusterState, pods: impl IntoIterator<Item = PodKey>) -> Self {
        let limits = Limits { slots: u32::from(u16::MAX), ..Limits::default() };
        let mut compiler = Compiler::new(limits, NumbersInUse::default());
        let namespaces = cluster
            .namespaces()
            .map(|(name, labels)| Object::Namespace(Namespace { name: name.clone(), labels: labels.clone() }));
        let pods_there = cluster.pods().map(|pod| Object::Pod(Pod::clone(pod)));
        let policies = cluster.policies().map(|policy| Object::NetworkPolicy(NetworkPolicy::clone(policy)));
        for object in namespaces.chain(pods_there).chain(policies) {
            compiler.apply(ClusterEvent::Apply(object));
        }
        let live = pods.into_iter().filter(|key| cluster.pod(key).is_some_and(|pod| is_live(pod)));
        let slots: BTreeMap<u16, PodKey> = (1..u16::MAX).zip(live).collect();
        compiler.set_local(slots.clone());
        compiler.settle();
        Self { compiler, slots: slots.into_iter().map(|(slot, pod)| (pod, slot)).collect() }
    }

    /// Its results.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            desired: self.compiler.desired(),
            provenance: self.compiler.provenance(),
            slots: self.slots.clone(),
            enforced: false,
        }
    }
}

impl Opinions {
    /// Asks about both sides of each flow. What is known already stays.
    pub fn collect(&mut self, compiled: &impl Compiled, flows: &[Flow]) {
        for side in flows.iter().flat_map(|flow| Direction::ALL.map(|direction| flow.side(direction))) {
            let Some(key) = key(side) else { continue };
            if !self.0.contains_key(&key)
                && let Some(opinion) = compiled.opinion(side)
            {
                self.0.insert(key, opinion);
            }
        }
    }

    /// The live pods at the ends of `flows` that nobody has said anything about.
    #[must_use]
    pub fn missing(&self, flows: &[Flow], cluster: &ClusterState) -> Vec<PodKey> {
        let sides = flows.iter().flat_map(|flow| Direction::ALL.map(|direction| flow.side(direction)));
        let unknown = sides.filter(|side| self.opinion(*side).is_none()).filter_map(|side| side.subject.pod.clone());
        let mut missing: Vec<PodKey> = unknown.filter(|key| cluster.pod(key).is_some_and(|pod| is_live(pod))).collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

impl Compiled for Opinions {
    fn opinion(&self, side: Side<'_>) -> Option<Opinion> {
        self.0.get(&key(side)?).cloned()
    }
}

fn key(side: Side<'_>) -> Option<(PodKey, Direction, IpAddr, Traffic)> {
    Some((side.subject.pod.clone()?, side.direction, side.peer.address, side.traffic))
}
