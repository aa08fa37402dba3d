//! Rules that implementations get wrong, each by name; the random histories judge the rest.

use netpol_common::abi::{Direction, POLICY_DENY, POLICY_NOT_ISOLATED, PolicyWord};

use super::node::{Node, block, key, named, namespace, pod, pods, policy, rule, selector, slots, tcp, tcp_named};
use crate::cluster::model::{
    Object, ObjectRef, Peer, Peers, Pod, PortMatch, PortRange, Ports, Protocol, Rule, Selector,
};
use crate::datapath::desired::Tables;

const ICMP: Option<(Protocol, u16)> = None;

/// `x/web` and `x/other` in slots 1 and 2; peers in two namespaces; these rules for what reaches `x/web`.
fn ingress_of_web(rules: Vec<Rule>) -> Node {
    let mut objects = cluster();
    objects.push(policy("x/web", "app=web", Some(rules), None));
    Node::with(objects, &["x/web", "x/other"])
}

/// The same with rules for what leaves `x/web`.
fn egress_of_web(rules: Vec<Rule>) -> Node {
    let mut objects = cluster();
    objects.push(policy("x/web", "app=web", None, Some(rules)));
    Node::with(objects, &["x/web", "x/other"])
}

fn cluster() -> Vec<Object> {
    vec![
        namespace("x", "team=a"),
        namespace("y", "team=b"),
        Object::Pod(Pod { named_ports: vec![named("http", 80)], ..pod("x/web", "10.0.0.1 fd00::1", "app=web") }),
        Object::Pod(Pod { named_ports: vec![named("http", 8080)], ..pod("x/other", "10.0.0.2 fd00::2", "app=other") }),
        Object::Pod(pod("y/peer", "10.0.1.1 fd00:1::1", "app=other")),
    ]
}

fn anyone() -> Peers {
    Peers::Everyone
}

fn words(node: &Node, slot: u16) -> PolicyWord {
    node.maps.now.word(slot)
}

#[test]
fn a_pod_that_no_policy_selects_is_not_isolated_and_one_with_no_rules_is_denied() {
    let node = ingress_of_web(Vec::new());
    assert_eq!(words(&node, 2).policy(Direction::Ingress), POLICY_NOT_ISOLATED);
    assert_eq!(words(&node, 1).policy(Direction::Egress), POLICY_NOT_ISOLATED);
    assert!(words(&node, 1).policy(Direction::Ingress) > POLICY_DENY);
    assert!(!node.ingress(1, "10.0.0.2", 80) && node.egress(1, "10.0.0.2", 80) && node.ingress(2, "10.0.0.1", 80));
}

#[test]
fn a_pod_that_the_cluster_does_not_know_yet_is_denied() {
    let mut node = Node::with(Vec::new(), &["x/new"]);
    assert!(!node.ingress(1, "192.0.2.1", 80) && !node.egress(1, "192.0.2.1", 80));
    node.put(Object::Pod(pod("x/new", "10.0.0.7", "")));
    assert!(node.ingress(1, "192.0.2.1", 80) && node.egress(1, "192.0.2.1", 80));
}

#[test]
fn a_pod_selector_alone_stays_in_the_policys_namespace() {
    let node = ingress_of_web(vec![rule(pods("app=other"), tcp(80, 80))]);
    assert!(node.ingress(1, "10.0.0.2", 80) && !node.ingress(1, "10.0.1.1", 80));
}

#[test]
fn both_selectors_in_one_item_are_anded_and_two_items_are_ored() {
    let team = |pods: &str| Peer::Pods { namespaces: Some(selector("team=b")), pods: selector(pods) };
    let node = ingress_of_web(vec![rule(Peers::AnyOf(vec![team("app=other")]), tcp(80, 80))]);
    assert!(node.ingress(1, "10.0.1.1", 80) && !node.ingress(1, "10.0.0.2", 80));
    let other = Peer::Pods { namespaces: None, pods: selector("app=other") };
    let node = ingress_of_web(vec![rule(Peers::AnyOf(vec![team(""), other]), tcp(80, 80))]);
    assert!(node.ingress(1, "10.0.1.1", 80) && node.ingress(1, "10.0.0.2", 80));
}

#[test]
fn every_namespace_is_pods_only_and_everyone_is_outsiders_too() {
    let all = Peer::Pods { namespaces: Some(Selector::default()), pods: Selector::default() };
    let node = ingress_of_web(vec![rule(Peers::AnyOf(vec![all]), tcp(80, 80)), rule(anyone(), tcp(81, 81))]);
    assert!(node.ingress(1, "10.0.1.1", 80) && !node.ingress(1, "192.0.2.1", 80));
    assert!(node.ingress(1, "10.0.1.1", 81) && node.ingress(1, "192.0.2.1", 81));
}

#[test]
fn policies_only_add() {
    let mut node = ingress_of_web(vec![rule(pods("app=other"), tcp(80, 80))]);
    node.put(policy("x/a-deny", "", Some(Vec::new()), None));
    node.put(policy("x/z-more", "app=web", Some(vec![rule(anyone(), tcp(81, 81))]), None));
    assert!(node.ingress(1, "10.0.0.2", 80) && node.ingress(1, "10.0.0.2", 81) && node.ingress(1, "192.0.2.1", 81));
    assert!(!node.ingress(1, "192.0.2.1", 80) && !node.ingress(1, "10.0.0.2", 82));
}

#[test]
fn peers_and_ports_pair_inside_one_rule_only() {
    let node = ingress_of_web(vec![
        rule(pods("app=other"), tcp(80, 80)),
        rule(Peers::AnyOf(vec![block("192.0.2.0/24", &[])]), tcp(81, 81)),
    ]);
    assert!(node.ingress(1, "10.0.0.2", 80) && node.ingress(1, "192.0.2.1", 81));
    assert!(!node.ingress(1, "10.0.0.2", 81) && !node.ingress(1, "192.0.2.1", 80));
}

#[test]
fn a_smaller_block_hides_nothing_of_a_larger_one_and_an_exception_cuts_only_its_own() {
    let node = ingress_of_web(vec![
        rule(Peers::AnyOf(vec![block("192.0.0.0/16", &["192.0.2.0/24"])]), tcp(80, 80)),
        rule(Peers::AnyOf(vec![block("192.0.2.128/25", &[])]), tcp(81, 81)),
        rule(Peers::AnyOf(vec![block("192.0.2.0/24", &[])]), tcp(82, 82)),
    ]);
    let open = |peer: &str| [80, 81, 82].map(|port| node.ingress(1, peer, port));
    assert_eq!(open("192.0.1.1"), [true, false, false]);
    assert_eq!(open("192.0.2.1"), [false, false, true]);
    assert_eq!(open("192.0.2.200"), [false, true, true]);
}

#[test]
fn a_pod_in_a_block_has_the_rules_of_both() {
    let block = rule(Peers::AnyOf(vec![block("10.0.0.0/24", &[])]), tcp(81, 81));
    let node = ingress_of_web(vec![rule(pods("app=other"), tcp(80, 80)), block]);
    assert!(node.ingress(1, "10.0.0.2", 80) && node.ingress(1, "10.0.0.2", 81));
    assert!(!node.ingress(1, "10.0.0.9", 80) && node.ingress(1, "10.0.0.9", 81));
}

#[test]
fn families_never_mix() {
    let node = ingress_of_web(vec![rule(Peers::AnyOf(vec![block("0.0.0.0/0", &[])]), tcp(80, 80))]);
    assert!(node.ingress(1, "192.0.2.1", 80) && !node.ingress(1, "2001:db8::1", 80) && !node.ingress(1, "fd00::2", 80));
    // Nor where the other family has regions of its own.
    let node = ingress_of_web(vec![
        rule(Peers::AnyOf(vec![block("0.0.0.0/0", &[])]), tcp(80, 80)),
        rule(Peers::AnyOf(vec![block("2001:db8::/32", &[])]), tcp(443, 443)),
    ]);
    assert!(node.ingress(1, "192.0.2.1", 80) && !node.ingress(1, "192.0.2.1", 443));
    assert!(node.ingress(1, "2001:db8::1", 443) && !node.ingress(1, "2001:db8::1", 80));
}

#[test]
fn all_ports_of_all_protocols_is_more_than_all_ports_of_three() {
    let sctp = PortMatch { protocol: Protocol::Sctp, ports: PortRange::Numbers(80, 80) };
    let node = ingress_of_web(vec![
        rule(pods("app=other"), Ports::Everything),
        rule(Peers::AnyOf(vec![block("192.0.2.0/24", &[])]), tcp(1, 65_535)),
        rule(Peers::AnyOf(vec![block("198.51.100.0/24", &[])]), Ports::AnyOf(vec![sctp])),
    ]);
    assert!(node.passes(1, Direction::Ingress, "10.0.0.2", ICMP));
    assert!(!node.passes(1, Direction::Ingress, "192.0.2.1", ICMP) && node.ingress(1, "192.0.2.1", 65_535));
    assert!(!node.ingress(1, "198.51.100.1", 80));
    assert!(node.compiler.desired().tables.port_sets.len() == 1, "a full range needs no port set");
}

#[test]
fn a_named_port_is_the_subjects_for_ingress_and_each_peers_own_for_egress() {
    let node = ingress_of_web(vec![rule(anyone(), tcp_named("http"))]);
    assert!(node.ingress(1, "10.0.0.2", 80) && !node.ingress(1, "10.0.0.2", 8080));
    let node = egress_of_web(vec![rule(anyone(), tcp_named("http"))]);
    assert!(node.egress(1, "10.0.0.2", 8080) && !node.egress(1, "10.0.0.2", 80));
    assert!(!node.egress(1, "10.0.1.1", 80) && !node.egress(1, "192.0.2.1", 80));
}

#[test]
fn a_named_port_with_a_block_is_that_of_the_pod_behind_the_address() {
    let node = egress_of_web(vec![rule(Peers::AnyOf(vec![block("10.0.0.0/24", &[])]), tcp_named("http"))]);
    assert!(node.egress(1, "10.0.0.2", 8080) && !node.egress(1, "10.0.0.9", 8080) && !node.egress(1, "10.0.1.1", 80));
}

#[test]
fn a_pod_whose_named_port_moves_is_followed() {
    let mut node = egress_of_web(vec![rule(anyone(), tcp_named("http"))]);
    let revision = node.revision(1);
    node.put(Object::Pod(Pod { named_ports: vec![named("http", 9090)], ..pod("x/other", "10.0.0.2", "app=other") }));
    assert!(node.egress(1, "10.0.0.2", 9090) && !node.egress(1, "10.0.0.2", 8080));
    assert!(node.revision(1) > revision);
}

#[test]
fn completed_and_host_network_pods_are_neither_peers_nor_subjects() {
    let mut node = ingress_of_web(vec![rule(pods("app=other"), tcp(80, 80))]);
    node.put(Object::Pod(Pod { terminal: true, ..pod("x/other", "10.0.0.2", "app=other") }));
    assert!(!node.ingress(1, "10.0.0.2", 80));
    node.put(Object::Pod(Pod { host_network: true, ..pod("x/other", "10.0.0.2", "app=other") }));
    assert!(!node.ingress(1, "10.0.0.2", 80));
    node.put(Object::Pod(Pod { terminal: true, ..pod("x/web", "10.0.0.1", "app=web") }));
    assert!(node.ingress(1, "192.0.2.1", 80));
}

#[test]
fn an_address_of_two_live_pods_may_only_what_both_may_and_is_said() {
    let mut node = ingress_of_web(vec![rule(pods("app=other"), tcp(80, 80)), rule(pods(""), tcp(81, 81))]);
    node.put(Object::Pod(pod("x/clone", "10.0.0.2", "app=clone")));
    assert!(!node.ingress(1, "10.0.0.2", 80) && node.ingress(1, "10.0.0.2", 81));
    let problem = node.compiler.problems().remove(0).to_string();
    assert!(problem.contains("Pod x/clone, Pod x/other: address 10.0.0.2 is claimed by 2 live pods"), "{problem}");
    node.delete(ObjectRef::Pod(key("x/clone")));
    assert!(node.ingress(1, "10.0.0.2", 80) && node.compiler.problems().is_empty());
}

#[test]
fn namespaces_that_nobody_declared_match_by_their_name() {
    let by_name = Peer::Pods { namespaces: Some(selector("kubernetes.io/metadata.name=z")), pods: Selector::default() };
    let mut node = ingress_of_web(vec![rule(Peers::AnyOf(vec![by_name]), tcp(80, 80))]);
    node.put(Object::Pod(pod("z/new", "10.0.2.1", "")));
    assert!(node.ingress(1, "10.0.2.1", 80) && !node.ingress(1, "10.0.1.1", 80));
}

#[test]
fn a_namespaces_labels_act_at_once() {
    let team = Peer::Pods { namespaces: Some(selector("team=a")), pods: Selector::default() };
    let mut node = ingress_of_web(vec![rule(Peers::AnyOf(vec![team]), tcp(80, 80))]);
    assert!(!node.ingress(1, "10.0.1.1", 80));
    node.put(namespace("y", "team=a"));
    assert!(node.ingress(1, "10.0.1.1", 80));
    node.delete(ObjectRef::Namespace("y".into()));
    assert!(!node.ingress(1, "10.0.1.1", 80));
}

#[test]
fn only_slots_whose_answers_change_get_a_newer_revision() {
    let mut node = ingress_of_web(vec![rule(pods("app=other"), tcp(80, 80))]);
    node.put(policy("x/other", "app=other", Some(vec![rule(pods("role=none"), tcp(80, 80))]), None));
    let before = [node.revision(1), node.revision(2)];
    // A label that no rule of slot 1 asks for, but slot 2 does.
    node.put(Object::Pod(pod("x/third", "10.0.0.3", "role=none")));
    assert_eq!(node.revision(1), before[0]);
    assert_eq!(node.revision(2), before[1] + 1);
    // Labels that nobody asks for, and an edit that says the same.
    node.put(Object::Pod(pod("x/third", "10.0.0.3", "role=none color=red")));
    assert_eq!(node.revision(2), before[1] + 1);
}

#[test]
fn pods_with_equal_policies_share_a_policy_id() {
    let mut node = ingress_of_web(Vec::new());
    node.put(policy("x/all", "", None, Some(vec![rule(anyone(), tcp(443, 443))])));
    let egress = |slot| words(&node, slot).policy(Direction::Egress);
    assert_eq!(egress(1), egress(2));
    assert_eq!(node.compiler.desired().tables.allow.len(), 2);
}

#[test]
fn addresses_that_no_rule_tells_apart_have_no_entry() {
    let node = ingress_of_web(vec![rule(anyone(), tcp(80, 80))]);
    assert_eq!(node.maps.now.tables.addresses, Tables::default().addresses);
    assert_eq!(node.maps.now.tables.allow_entries().count(), 1);
}

#[test]
fn a_slot_that_passes_to_another_pod_starts_with_new_flows() {
    let mut node = ingress_of_web(Vec::new());
    let revision = node.revision(2);
    node.compiler.set_local([(1, key("x/web")), (2, key("y/peer"))].into());
    node.settle();
    assert!(node.revision(2) > revision && node.ingress(2, "192.0.2.1", 80));
    node.compiler.set_local(slots(&["x/web"]));
    node.settle();
    assert!(!node.ingress(2, "192.0.2.1", 80) && !node.egress(2, "192.0.2.1", 80));
}
