//! A node without a kernel: compiler, applier, and maps that can be told to fail.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::{AllowValue, Direction, PortRule};

use super::judge::{Question, allows};
use crate::cluster::ClusterState;
use crate::cluster::model::{
    ClusterEvent, IpBlock, Labels, NamedPort, Namespace, NetworkPolicy, Object, ObjectKey, ObjectRef, Peer, Peers, Pod,
    PodKey, PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector,
};
use crate::datapath::apply::{Applier, OnFailure, Outcome};
use crate::datapath::desired::{Answer, Tables, Touched};
use crate::datapath::ids::NumbersInUse;
use crate::datapath::installed::Installed;
use crate::datapath::plan::{MapStore, Op, StoreError};
use crate::policy::{Compiler, Limits};

/// Maps in memory. Keeps what they held after every operation, if asked to.
#[derive(Clone, Debug, Default)]
pub(super) struct Maps {
    pub(super) now: Installed,
    pub(super) done: usize,
    pub(super) history: Option<Vec<Installed>>,
    /// Operations that fail: from one number, counted from the start, up to another.
    pub(super) fail: Vec<(usize, usize)>,
    /// Operations that always fail.
    pub(super) broken: Option<fn(&Op) -> bool>,
}

impl MapStore for Maps {
    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, StoreError)> {
        for (index, op) in ops.iter().enumerate() {
            let number = self.done;
            self.done += 1;
            if self.fail.iter().any(|(from, to)| (*from..*to).contains(&number))
                || self.broken.is_some_and(|broken| broken(op))
            {
                let source = ErrorKind::OutOfMemory.into();
                return Err((index, StoreError { operation: format!("write {op:.20?}"), map: "TEST", source }));
            }
            self.now.record(op);
            if let Some(history) = &mut self.history {
                history.push(self.now.clone());
            }
        }
        Ok(())
    }
}

/// What the datapath would say, from the maps alone.
pub(super) fn passes(maps: &Installed, question: &Question) -> bool {
    let id = maps.word(question.slot).policy(question.direction);
    let identity = maps.tables.identity_of(question.peer);
    match maps.tables.answer(id, identity) {
        Answer::Everything => true,
        Answer::Entry(value, tables) => entry_passes(value, tables, question),
    }
}

fn entry_passes(value: AllowValue, tables: &Tables, question: &Question) -> bool {
    let Some((protocol, port)) = question.port else { return value.other == 1 };
    let field = match protocol {
        Protocol::Tcp => value.tcp,
        Protocol::Udp => value.udp,
        Protocol::Sctp => value.sctp,
    };
    match PortRule::decode(field) {
        PortRule::None => false,
        PortRule::All => true,
        PortRule::Set(number) => {
            let bits = tables.port_sets.get(&number).expect("an entry names a port set that was never written");
            bits[usize::from(port / 8)] & 1 << (port % 8) != 0
        }
    }
}

/// Compiler, applier and maps of a node.
pub(super) struct Node {
    pub(super) compiler: Compiler,
    pub(super) applier: Applier,
    pub(super) maps: Maps,
}

impl Node {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            compiler: Compiler::new(limits, NumbersInUse::default()),
            applier: Applier::new(Installed::default(), OnFailure::Deny),
            maps: Maps::default(),
        }
    }

    /// A node that has taken in these objects and gave slots 1.. to these pods.
    pub(super) fn with(objects: Vec<Object>, local: &[&str]) -> Self {
        let mut node = Self::new(Limits::default());
        for object in objects {
            node.compiler.apply(ClusterEvent::Apply(object));
        }
        node.compiler.set_local(slots(local));
        node.settle();
        node
    }

    /// Takes all steps; each must succeed.
    pub(super) fn settle(&mut self) {
        while let Some(step) = self.compiler.next_step() {
            let outcome = self.carry_out(&step.touched);
            assert!(outcome.complete, "{outcome:?}");
        }
    }

    pub(super) fn carry_out(&mut self, touched: &Touched) -> Outcome {
        let outcome = self.applier.apply(self.compiler.desired(), touched, &mut self.maps);
        assert_eq!(*self.applier.installed(), self.maps.now, "the applier lost track of the maps");
        self.compiler.applied(outcome.complete);
        outcome
    }

    /// The agent again, after a restart: it knows only the maps, and is told the same objects.
    pub(super) fn restarted(&self, local: &BTreeMap<u16, PodKey>) -> Self {
        let installed = self.maps.now.clone();
        let mut compiler = Compiler::new(Limits::default(), installed.numbers());
        for object in objects(self.compiler.state()) {
            compiler.apply(ClusterEvent::Apply(object));
        }
        compiler.set_local(local.clone());
        let applier = Applier::new(installed, OnFailure::Deny);
        Self { compiler, applier, maps: self.maps.clone() }
    }

    pub(super) fn put(&mut self, object: Object) {
        self.compiler.apply(ClusterEvent::Apply(object));
        self.settle();
    }

    pub(super) fn delete(&mut self, reference: ObjectRef) {
        self.compiler.apply(ClusterEvent::Delete(reference));
        self.settle();
    }

    pub(super) fn passes(&self, slot: u16, direction: Direction, peer: &str, port: Option<(Protocol, u16)>) -> bool {
        passes(&self.maps.now, &Question { slot, direction, peer: peer.parse().unwrap(), port })
    }

    /// Whether a TCP packet from `peer` to the pod in `slot` passes there.
    pub(super) fn ingress(&self, slot: u16, peer: &str, port: u16) -> bool {
        self.passes(slot, Direction::Ingress, peer, Some((Protocol::Tcp, port)))
    }

    /// Whether a TCP packet from the pod in `slot` to `peer` passes there.
    pub(super) fn egress(&self, slot: u16, peer: &str, port: u16) -> bool {
        self.passes(slot, Direction::Egress, peer, Some((Protocol::Tcp, port)))
    }

    /// What the judge says of the compiler's cluster.
    pub(super) fn judged(&self, local: &BTreeMap<u16, PodKey>, question: &Question) -> bool {
        allows(self.compiler.state(), local.get(&question.slot), question)
    }

    pub(super) fn revision(&self, slot: u16) -> u32 {
        self.maps.now.word(slot).revision()
    }
}

/// Every object of a cluster.
pub(super) fn objects(state: &ClusterState) -> Vec<Object> {
    let namespaces = state
        .namespaces()
        .map(|(name, labels)| Object::Namespace(Namespace { name: name.clone(), labels: labels.clone() }));
    let pods = state.pods().map(|pod| Object::Pod((**pod).clone()));
    let policies = state.policies().map(|policy| Object::NetworkPolicy((**policy).clone()));
    namespaces.chain(pods).chain(policies).collect()
}

pub(super) fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

pub(super) fn slots(pods: &[&str]) -> BTreeMap<u16, PodKey> {
    pods.iter().zip(1..).map(|(pod, slot)| (slot, key(pod))).collect()
}

pub(super) fn labels(words: &str) -> Labels {
    let pairs = words.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(key, value)| (Arc::from(key), Arc::from(value))).collect()
}

/// A selector from `key=value` words.
pub(super) fn selector(words: &str) -> Selector {
    let requirement = |(key, value): (&Arc<str>, &Arc<str>)| Requirement::In(key.clone(), vec![value.clone()]);
    Selector { requirements: labels(words).iter().map(requirement).collect() }
}

pub(super) fn pod(name: &str, addresses: &str, words: &str) -> Pod {
    Pod {
        key: key(name),
        uid: "".into(),
        static_uid: "".into(),
        labels: Arc::new(labels(words)),
        addresses: addresses.split_whitespace().map(|address| address.parse::<IpAddr>().unwrap()).collect(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "".into(),
        host_network: false,
        terminal: false,
        workload: None,
    }
}

pub(super) fn named(name: &str, port: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol: Protocol::Tcp, port }
}

pub(super) fn namespace(name: &str, words: &str) -> Object {
    Object::Namespace(Namespace { name: name.into(), labels: labels(words) })
}

pub(super) fn policy(name: &str, subjects: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Object {
    Object::NetworkPolicy(NetworkPolicy {
        key: key(name),
        version: None,
        subjects: selector(subjects),
        ingress,
        egress,
    })
}

pub(super) fn rule(peers: Peers, ports: Ports) -> Rule {
    Rule { peers, ports }
}

/// Peers in the policy's own namespace.
pub(super) fn pods(words: &str) -> Peers {
    Peers::AnyOf(vec![Peer::Pods { namespaces: None, pods: selector(words) }])
}

pub(super) fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|one| one.parse().unwrap()).collect();
    Peer::IpBlock(IpBlock { cidr: cidr.parse().unwrap(), except })
}

pub(super) fn tcp(first: u16, last: u16) -> Ports {
    Ports::AnyOf(vec![PortMatch { protocol: Protocol::Tcp, ports: PortRange::Numbers(first, last) }])
}

pub(super) fn tcp_named(name: &str) -> Ports {
    Ports::AnyOf(vec![PortMatch { protocol: Protocol::Tcp, ports: PortRange::Named(name.into()) }])
}
