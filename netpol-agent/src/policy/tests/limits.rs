//! What does not fit is said, and is only ever narrower than written.

use std::collections::BTreeMap;

use netpol_common::abi::{Direction, PortRule};
use proptest::prelude::*;

use super::generated::{Action, config, history, questions};
use super::node::{Node, block, key, passes, pod, pods, policy, rule, slots, tcp};
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Peers, Ports};
use crate::datapath::desired::Touched;
use crate::datapath::installed::Installed;
use crate::datapath::plan::Op;
use crate::policy::Limits;

fn limits() -> impl Strategy<Value = Limits> {
    (1..6_usize, 1..6_usize, 1..30_usize, 1..3_usize, 3..6_u16, 0..4_u16).prop_map(
        |(addresses, cidrs, allow, port_sets, last_port_set, more)| Limits {
            slots: 4,
            addresses,
            cidrs,
            allow,
            port_sets,
            last_port_set,
            last_policy: 2 + more,
        },
    )
}

fn keeps_to(limits: &Limits, maps: &Installed) -> bool {
    let tables = &maps.tables;
    let addresses = tables.addresses.keys().filter(|address| address.is_ipv4()).count();
    let regions = tables.cidrs.keys().filter(|region| region.addr().is_ipv4()).count();
    addresses <= limits.addresses
        && tables.addresses.len() - addresses <= limits.addresses
        && regions <= limits.cidrs
        && tables.cidrs.len() - regions <= limits.cidrs
        && tables.allow_entries().count() <= limits.allow
        && tables.port_sets.keys().all(|number| (PortRule::FIRST_SET..=limits.last_port_set).contains(number))
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn maps_that_are_too_small_narrow_access_and_say_so(
        limits in limits(),
        history in history(20),
        failing in proptest::collection::vec((0_usize..300, 1_usize..4), 0..4),
    ) {
        let (mut node, mut local) = (Node::new(limits), BTreeMap::new());
        let failing_runs = !failing.is_empty();
        node.maps.fail = failing.into_iter().map(|(first, length)| (first, first + length)).collect();
        for action in history {
            match action {
                Action::Event(event) => node.compiler.apply(event),
                Action::Local(slots) => {
                    local = slots.clone();
                    node.compiler.set_local(slots);
                }
                Action::Settle => {
                    while let Some(step) = node.compiler.next_step() {
                        node.maps.history = Some(Vec::new());
                        node.carry_out(&step.touched);
                        let history = node.maps.history.take().unwrap();
                        // What a failure left behind takes room too; the kernel refuses then, and that heals.
                        let fits = failing_runs || history.iter().all(|maps| keeps_to(&limits, maps));
                        prop_assert!(fits, "more than fits: {limits:?}");
                    }
                    while node.applier.is_behind() {
                        node.carry_out(&Touched::default());
                        // Later operations may fail as well.
                        while let Some(step) = node.compiler.next_step() {
                            node.carry_out(&step.touched);
                        }
                    }
                    let problems = node.compiler.problems();
                    for question in questions().iter().filter(|question| local.contains_key(&question.slot)) {
                        let (now, written) = (passes(&node.maps.now, question), node.judged(&local, question));
                        prop_assert!(!now || written, "{question:?} passes: {problems:?}");
                        prop_assert!(now == written || !problems.is_empty(), "{question:?} is denied silently");
                    }
                }
            }
        }
    }
}

fn one_pod(limits: Limits, policies: Vec<Object>) -> Node {
    let mut node = Node::new(limits);
    node.compiler.apply(ClusterEvent::Apply(Object::Pod(pod("x/web", "10.0.0.1", "app=web"))));
    node.compiler.apply(ClusterEvent::Apply(Object::Pod(pod("x/peer", "10.0.0.2", "role=peer"))));
    for policy in policies {
        node.compiler.apply(ClusterEvent::Apply(policy));
    }
    node.compiler.set_local(slots(&["x/web"]));
    node.settle();
    node
}

fn from_block(name: &str, cidr: &str, except: &[&str]) -> Object {
    let peers = Peers::AnyOf(vec![block(cidr, except)]);
    policy(name, "app=web", Some(vec![rule(peers, tcp(80, 80))]), None)
}

#[test]
fn a_block_is_refused_as_a_whole_and_comes_back_when_there_is_room() {
    let limits = Limits { cidrs: 2, ..Limits::default() };
    let mut node = one_pod(
        limits,
        vec![from_block("x/first", "192.0.2.0/24", &[]), from_block("x/second", "172.16.0.0/12", &["172.16.1.0/24"])],
    );
    assert!(node.ingress(1, "192.0.2.1", 80) && !node.ingress(1, "172.17.0.1", 80));
    let problems = node.compiler.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "compiler: NetworkPolicy x/second: ipBlock 172.16.0.0/12 does not fit into the 2 regions of a family; effect: \
         this ipBlock matches no address"
    );
    node.delete(ObjectRef::NetworkPolicy(key("x/first")));
    assert!(node.ingress(1, "172.17.0.1", 80) && !node.ingress(1, "172.16.1.1", 80));
    assert!(node.compiler.problems().is_empty());
}

#[test]
fn an_exception_that_cannot_be_written_holds_back_the_block_around_it() {
    let limits = Limits { cidrs: 2, ..Limits::default() };
    let mut node = one_pod(
        limits,
        vec![from_block("x/first", "192.0.2.0/24", &[]), from_block("x/second", "172.16.0.0/12", &["172.16.1.0/24"])],
    );
    node.maps.broken = Some(|op| matches!(op, Op::WriteCidr(region, _) if region.to_string() == "172.16.1.0/24"));
    node.compiler.apply(ClusterEvent::Delete(ObjectRef::NetworkPolicy(key("x/first"))));
    while let Some(step) = node.compiler.next_step() {
        node.carry_out(&step.touched);
        assert!(!node.ingress(1, "172.16.1.1", 80), "the exception shows the block around it");
    }
    assert!(node.applier.is_behind() && !node.ingress(1, "172.17.0.1", 80));
    node.maps.broken = None;
    assert!(node.carry_out(&Touched::default()).complete);
    assert!(node.ingress(1, "172.17.0.1", 80) && !node.ingress(1, "172.16.1.1", 80));
}

#[test]
fn a_policy_without_a_port_set_allows_no_ports_there_and_is_named() {
    let limits = Limits { port_sets: 1, ..Limits::default() };
    let node = one_pod(
        limits,
        vec![policy(
            "x/web",
            "app=web",
            Some(vec![rule(pods("role=peer"), tcp(80, 80)), rule(Peers::Everyone, tcp(443, 443))]),
            None,
        )],
    );
    // Everyone's set came first; that of the peer is the union of both rules, and did not fit.
    assert!(node.ingress(1, "192.0.2.1", 443) && !node.ingress(1, "10.0.0.2", 443));
    let problem = node.compiler.problems().remove(0).to_string();
    assert!(problem.contains("NetworkPolicy x/web: the 1 distinct port sets are all in use"), "{problem}");
}

#[test]
fn a_pod_without_a_policy_id_is_denied_where_it_is_isolated() {
    let limits = Limits { last_policy: 1, ..Limits::default() };
    let everything = rule(Peers::Everyone, Ports::Everything);
    let node = one_pod(limits, vec![policy("x/web", "app=web", Some(vec![everything]), None)]);
    assert!(!node.ingress(1, "10.0.0.2", 80) && node.egress(1, "10.0.0.2", 80));
    assert!(node.compiler.problems()[0].to_string().contains("Pod x/web: all policy ids up to 1 are in use"));
}

#[test]
fn addresses_that_do_not_fit_are_no_peers_and_come_back_when_there_is_room() {
    let limits = Limits { addresses: 1, ..Limits::default() };
    let mut node = one_pod(limits, vec![policy("x/web", "", Some(vec![rule(pods(""), tcp(80, 80))]), None)]);
    assert!(node.ingress(1, "10.0.0.1", 80) && !node.ingress(1, "10.0.0.2", 80));
    assert!(node.compiler.problems()[0].to_string().contains("1 pod addresses (10.0.0.2 and others) do not fit"));
    node.put(Object::Pod(pod("x/web", "", "app=web")));
    assert!(node.ingress(1, "10.0.0.2", 80) && node.compiler.problems().is_empty());
}

#[test]
fn a_slot_that_the_maps_do_not_have_is_said() {
    let mut node = one_pod(Limits { slots: 2, ..Limits::default() }, Vec::new());
    node.compiler.set_local(slots(&["x/web", "x/peer"]));
    node.settle();
    assert!(node.compiler.problems()[0].to_string().contains("Pod x/peer: slot 2 is not one of 1..=1"));
    assert!(!node.maps.now.words.contains_key(&2));
    assert!(node.passes(1, Direction::Egress, "10.0.0.2", None));
}
