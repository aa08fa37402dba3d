//! Small random clusters: few names, labels, addresses and ports, so that everything meets everything.

use std::collections::BTreeMap;

use netpol_common::abi::Direction;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::judge::Question;
use super::node::{block, key, labels, named};
use crate::cluster::ClusterState;
use crate::cluster::model::{
    ClusterEvent, NamedPort, Namespace, NetworkPolicy, Object, ObjectRef, Peer, Peers, Pod, PodKey, PortMatch,
    PortRange, Ports, Protocol, Requirement, Rule, Selector,
};
use crate::policy::{Compiler, Provenance};

const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.9", "10.0.1.1", "10.0.1.2", "fd00::1", "fd00::2", "fd00::100"];
/// Addresses that no pod ever has.
const OUTSIDE: [&str; 5] = ["10.0.0.3", "10.0.1.200", "192.0.2.1", "fd00::3", "2001:db8::1"];
const PODS: [&str; 6] = ["x/a", "x/b", "x/c", "y/a", "y/b", "z/a"];
const POLICIES: [&str; 5] = ["x/p", "x/q", "x/r", "y/p", "y/q"];

/// So many cases, times `PROPTEST_MULTIPLIER` for a longer search.
pub(super) fn config(cases: u32) -> ProptestConfig {
    let multiplier = std::env::var("PROPTEST_MULTIPLIER").map_or(1, |value| value.parse().unwrap());
    ProptestConfig { cases: cases * multiplier, failure_persistence: None, ..ProptestConfig::default() }
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Event(ClusterEvent),
    Local(BTreeMap<u16, PodKey>),
    /// Everything so far is carried out.
    Settle,
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = || subsequence(vec!["", "1", "2"], 1..=2).prop_map(|v| v.into_iter().map(Into::into).collect());
    let name = || select(vec!["a", "b"]).prop_map(Into::into);
    prop_oneof![
        6 => (name(), values()).prop_map(|(k, v)| Requirement::In(k, v)),
        2 => (name(), values()).prop_map(|(k, v)| Requirement::NotIn(k, v)),
        1 => name().prop_map(Requirement::Exists),
        1 => name().prop_map(Requirement::DoesNotExist),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    let requirements = prop_oneof![2 => Just(Vec::new()), 4 => vec(requirement(), 1), 1 => vec(requirement(), 2)];
    requirements.prop_map(|mut requirements| {
        requirements.sort();
        requirements.dedup();
        Selector { requirements }
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let blocks = vec![
        block("10.0.0.0/16", &[]),
        block("10.0.0.0/16", &["10.0.1.0/24"]),
        block("10.0.0.0/24", &["10.0.0.2/32", "10.0.0.8/29"]),
        block("10.0.1.0/24", &["10.0.1.128/25"]),
        block("10.0.0.1/32", &[]),
        block("0.0.0.0/0", &["10.0.0.0/24"]),
        block("::/0", &["fd00::/120"]),
        block("fd00::/64", &["fd00::2/128"]),
    ];
    prop_oneof![
        3 => (of(selector()), selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        2 => select(blocks),
    ]
}

fn peers() -> impl Strategy<Value = Peers> {
    prop_oneof![1 => Just(Peers::Everyone), 1 => Just(Peers::AnyOf(Vec::new())), 8 => vec(peer(), 1..=2).prop_map(Peers::AnyOf)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn ports() -> impl Strategy<Value = Ports> {
    let ranges = prop_oneof![
        1 => Just(PortRange::All),
        3 => select(vec![(80, 80), (81, 81), (80, 81), (81, 443), (1, 65_535)])
            .prop_map(|(first, last)| PortRange::Numbers(first, last)),
        3 => select(vec!["http", "web"]).prop_map(|name| PortRange::Named(name.into())),
    ];
    let one = (protocol(), ranges).prop_map(|(protocol, ports)| PortMatch { protocol, ports });
    prop_oneof![1 => Just(Ports::Everything), 4 => vec(one, 1..=2).prop_map(Ports::AnyOf)]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let rule = || (peers(), ports()).prop_map(|(peers, ports)| Rule { peers, ports });
    prop_oneof![2 => Just(None), 1 => Just(Some(Vec::new())), 5 => vec(rule(), 1..=2).prop_map(Some)]
}

fn some_labels() -> impl Strategy<Value = crate::cluster::model::Labels> {
    select(vec!["", "a=", "a=1", "a=2", "b=1", "a=1 b=1", "a=2 b=2"]).prop_map(labels)
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let udp = NamedPort { protocol: Protocol::Udp, ..named("http", 81) };
    subsequence(vec![named("http", 80), named("http", 443), named("web", 81), udp], 0..=3)
}

/// Mostly the address that the pod always has, in one or both families; now and then someone else's, or none.
fn addresses(pod: usize) -> impl Strategy<Value = Vec<&'static str>> {
    let own = [ADDRESSES[pod % 5], ADDRESSES[5 + pod % 3]];
    prop_oneof![
        5 => Just(vec![own[0]]),
        3 => Just(own.to_vec()),
        1 => subsequence(ADDRESSES.to_vec(), 0..=2),
    ]
}

fn pod() -> impl Strategy<Value = Pod> {
    (0..PODS.len()).prop_flat_map(pod_number)
}

fn pod_number(pod: usize) -> impl Strategy<Value = Pod> {
    let weighted = |weight| prop::bool::weighted(weight);
    (addresses(pod), some_labels(), named_ports(), weighted(0.05), weighted(0.1)).prop_map(
        move |(addresses, labels, named_ports, host_network, terminal)| Pod {
            key: key(PODS[pod]),
            uid: "".into(),
            static_uid: "".into(),
            labels: labels.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            named_ports,
            host_ports: Vec::new(),
            node: "".into(),
            host_network,
            terminal,
            workload: None,
        },
    )
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    (select(POLICIES.to_vec()), selector(), rules(), rules()).prop_map(|(name, subjects, ingress, egress)| {
        NetworkPolicy { key: key(name), version: None, subjects, ingress, egress }
    })
}

fn event() -> impl Strategy<Value = ClusterEvent> {
    let name = || select(vec!["x", "y", "z"]);
    prop_oneof![
        8 => pod().prop_map(|pod| ClusterEvent::Apply(Object::Pod(pod))),
        2 => select(PODS.to_vec()).prop_map(|pod| ClusterEvent::Delete(ObjectRef::Pod(key(pod)))),
        5 => policy().prop_map(|policy| ClusterEvent::Apply(Object::NetworkPolicy(policy))),
        2 => select(POLICIES.to_vec()).prop_map(|name| ClusterEvent::Delete(ObjectRef::NetworkPolicy(key(name)))),
        2 => (name(), some_labels()).prop_map(|(name, labels)| {
            ClusterEvent::Apply(Object::Namespace(Namespace { name: name.into(), labels }))
        }),
        1 => name().prop_map(|name| ClusterEvent::Delete(ObjectRef::Namespace(name.into()))),
    ]
}

pub(super) fn local() -> impl Strategy<Value = BTreeMap<u16, PodKey>> {
    let one = (1_u16..=3, select(vec!["x/a", "x/b", "y/a", "z/a"]).prop_map(key));
    prop_oneof![
        1 => vec(one, 1..=3).prop_map(|pairs| pairs.into_iter().collect()),
        2 => Just(super::node::slots(&["x/a", "x/b", "y/a"])),
    ]
}

/// Histories that begin with a cluster of some size.
pub(super) fn history(length: usize) -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        8 => event().prop_map(Action::Event),
        1 => local().prop_map(Action::Local),
        4 => Just(Action::Settle),
    ];
    let pods: Vec<_> = (0..PODS.len()).map(pod_number).collect();
    let policies = vec(policy().prop_map(Object::NetworkPolicy), 1..=5);
    let beginning = (pods, policies).prop_map(|(pods, policies)| {
        let objects = pods.into_iter().map(Object::Pod).chain(policies);
        objects.map(|object| Action::Event(ClusterEvent::Apply(object))).collect::<Vec<Action>>()
    });
    (beginning, local(), vec(action, 0..length)).prop_map(|(mut actions, slots, rest)| {
        actions.push(Action::Local(slots));
        actions.push(Action::Settle);
        actions.extend(rest);
        actions.push(Action::Settle);
        actions
    })
}

/// Every question that these clusters can tell apart.
pub(super) fn questions() -> Vec<Question> {
    let ports = [80, 81, 82, 443, 9000].map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]);
    let ports: Vec<Option<(Protocol, u16)>> =
        ports.into_iter().flatten().chain([(Protocol::Sctp, 80)]).map(Some).chain([None]).collect();
    let mut questions = Vec::new();
    for slot in 1..=3 {
        for direction in Direction::ALL {
            for peer in ADDRESSES.iter().chain(&OUTSIDE) {
                let of = |port| Question { slot, direction, peer: peer.parse().unwrap(), port };
                questions.extend(ports.iter().copied().map(of));
            }
        }
    }
    questions
}

/// The questions that policy decides: not those of a pod about its own address, in the state before a step (slots as
/// in `provenance`) or after it.
pub(super) fn judged_questions(before: (&ClusterState, &Provenance), compiler: &Compiler) -> Vec<Question> {
    let is_own = |state: &ClusterState, provenance: &Provenance, question: &Question| {
        let subject = provenance.pod(question.slot).and_then(|key| state.pod(key));
        subject.is_some_and(|pod| pod.addresses.contains(&question.peer))
    };
    let after = compiler.provenance();
    questions()
        .into_iter()
        .filter(|question| !is_own(before.0, before.1, question) && !is_own(compiler.state(), &after, question))
        .collect()
}
