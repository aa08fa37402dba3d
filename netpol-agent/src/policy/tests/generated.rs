//! Small random clusters: few names, labels, addresses and ports, so that everything meets everything.

use std::collections::BTreeMap;

use netpol_common::abi::Direction;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::judge::Question;
use super::node::{block, key, labels, named};
use crate::cluster::model::{
    ClusterEvent, NamedPort, Namespace, NetworkPolicy, Object, ObjectRef, Peer, Peers, Pod, PodKey, PortMatch,
    PortRange, Ports, Protocol, Requirement, Rule, Selector,
};

const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.9", "10.0.1.1", "10.0.1.2", "fd00::1", "fd00::2", "fd00::100"];
/// Addresses that no pod ever has.
const OUTSIDE: [&str; 5] = ["10.0.0.3", "10.0.1.200", "192.0.2.1", "fd00::3", "2001:db8::1"];
const PODS: [&str; 6] = ["x/a", "x/b", "x/c", "y/a", "y/b", "z/a"];
const POLICIES: [&str; 5] = ["x/p", "x/q", "x/r", "y/p", "y/q"];

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
    vec(requirement(), 0..=2).prop_map(|mut requirements| {
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
    prop_oneof![1 => Just(Peers::Everyone), 6 => vec(peer(), 0..=2).prop_map(Peers::AnyOf)]
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
    prop_oneof![1 => Just(Ports::Everything), 4 => vec(one, 0..=2).prop_map(Ports::AnyOf)]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    of(vec((peers(), ports()).prop_map(|(peers, ports)| Rule { peers, ports }), 0..=2))
}

fn some_labels() -> impl Strategy<Value = crate::cluster::model::Labels> {
    select(vec!["", "a=", "a=1", "a=2", "b=1", "a=1 b=1", "a=2 b=2"]).prop_map(labels)
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let udp = NamedPort { protocol: Protocol::Udp, ..named("http", 81) };
    subsequence(vec![named("http", 80), named("http", 443), named("web", 81), udp], 0..=3)
}

fn pod() -> impl Strategy<Value = Pod> {
    let weighted = |weight| prop::bool::weighted(weight);
    (
        select(PODS.to_vec()),
        subsequence(ADDRESSES.to_vec(), 0..=2),
        some_labels(),
        named_ports(),
        weighted(0.1),
        weighted(0.1),
    )
        .prop_map(|(name, addresses, labels, named_ports, host_network, terminal)| Pod {
            key: key(name),
            uid: "".into(),
            labels,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            named_ports,
            node: "".into(),
            host_network,
            terminal,
        })
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    (select(POLICIES.to_vec()), selector(), rules(), rules())
        .prop_map(|(name, subjects, ingress, egress)| NetworkPolicy { key: key(name), subjects, ingress, egress })
}

fn event() -> impl Strategy<Value = ClusterEvent> {
    let name = || select(vec!["x", "y", "z"]);
    prop_oneof![
        6 => pod().prop_map(|pod| ClusterEvent::Apply(Object::Pod(pod))),
        1 => select(PODS.to_vec()).prop_map(|pod| ClusterEvent::Delete(ObjectRef::Pod(key(pod)))),
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
    vec(one, 0..=3).prop_map(|pairs| pairs.into_iter().collect())
}

/// Histories that begin with a cluster of some size.
pub(super) fn history(length: usize) -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        8 => event().prop_map(Action::Event),
        1 => local().prop_map(Action::Local),
        4 => Just(Action::Settle),
    ];
    let beginning = vec(event().prop_map(Action::Event), 8);
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

/// Whether the question is one that a pod asks of its own address, which no policy decides.
pub(super) fn is_own(state: &crate::cluster::ClusterState, local: &BTreeMap<u16, PodKey>, question: &Question) -> bool {
    let subject = local.get(&question.slot).and_then(|key| state.pod(key));
    subject.is_some_and(|pod| pod.addresses.contains(&question.peer))
}
