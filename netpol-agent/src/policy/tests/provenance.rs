//! What the numbers stand for, and for how long.

use netpol_common::abi::{Direction, IDENTITY_NONE};

use super::node::{Node, block, key, pod, pods, policy, rule, tcp};
use crate::cluster::model::{Object, ObjectRef, Peers};
use crate::policy::Explanation;

const TCP: u8 = 6;
const ICMP: u8 = 1;

fn shop() -> Node {
    let outside = Peers::AnyOf(vec![block("192.0.2.0/24", &["192.0.2.128/25"])]);
    let objects = vec![
        Object::Pod(pod("x/web", "10.0.0.1", "app=web")),
        Object::Pod(pod("x/peer", "10.0.0.2", "role=peer")),
        policy("x/deny", "", Some(Vec::new()), None),
        policy(
            "x/web",
            "app=web",
            Some(vec![rule(pods("role=peer"), tcp(80, 80)), rule(outside, tcp(443, 443))]),
            None,
        ),
    ];
    Node::with(objects, &["x/web"])
}

fn explain(node: &Node, peer: &str, protocol: u8, port: u16) -> Explanation {
    let id = node.maps.now.word(1).policy(Direction::Ingress);
    let identity = node.maps.now.tables.identity_of(peer.parse().unwrap());
    node.compiler.provenance().explain(id, identity, protocol, port).expect("numbers in the maps are known")
}

fn shown(rules: &[crate::policy::RuleReference]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

#[test]
fn a_verdict_names_the_policies_that_isolate_and_the_rules_that_allow_or_nearly_did() {
    let node = shop();
    let allowed = explain(&node, "10.0.0.2", TCP, 80);
    assert_eq!(allowed.isolated_by, [key("x/deny"), key("x/web")]);
    assert_eq!(shown(&allowed.allowed_by), ["NetworkPolicy x/web ingress[0]"]);
    let other_port = explain(&node, "10.0.0.2", TCP, 443);
    assert!(other_port.allowed_by.is_empty());
    assert_eq!(shown(&other_port.other_port), ["NetworkPolicy x/web ingress[0]"]);
    assert_eq!(shown(&other_port.other_peer), ["NetworkPolicy x/web ingress[1]"]);
    assert!(explain(&node, "10.0.0.2", ICMP, 0).allowed_by.is_empty());
}

#[test]
fn slots_and_identities_are_described_in_words() {
    let node = shop();
    let provenance = node.compiler.provenance();
    assert_eq!(provenance.pod(1), Some(&key("x/web")));
    let peer = |address: &str| {
        let identity = node.maps.now.tables.identity_of(address.parse().unwrap());
        provenance.peer(identity).unwrap().iter().map(ToString::to_string).collect::<Vec<String>>()
    };
    assert_eq!(peer("10.0.0.2"), ["pods role=peer in namespace x"]);
    assert_eq!(peer("192.0.2.1"), ["ipBlock 192.0.2.0/24 except 192.0.2.128/25"]);
    assert!(peer("192.0.2.200").is_empty());
    assert_eq!(provenance.peer(IDENTITY_NONE), Some(Vec::new()));
    assert_eq!(provenance.peer(999), None);
}

#[test]
fn a_number_that_was_dropped_keeps_its_meaning_for_events_in_flight() {
    let mut node = shop();
    let id = node.maps.now.word(1).policy(Direction::Ingress);
    node.delete(ObjectRef::NetworkPolicy(key("x/web")));
    assert_ne!(node.maps.now.word(1).policy(Direction::Ingress), id);
    let names = |node: &Node| node.compiler.provenance().isolated_by(id).cloned().collect::<Vec<_>>();
    assert_eq!(names(&node), [key("x/deny"), key("x/web")]);
    for step in 0..3 {
        node.put(Object::Pod(pod("x/web", "10.0.0.1", &format!("app=web step={step}"))));
        node.put(policy("x/deny", "", Some(vec![rule(pods(""), tcp(step, step))]), None));
    }
    assert!(names(&node).is_empty(), "a number that may come again has no old meaning");
}
