//! Attacks from a pod whose root has CAP_NET_RAW, on real packets under the real agent. None may get through.
//!
//! Each subject is a table of named attacks on one node: see `netpol_tests::attack` for what proves one.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use netpol_tests::attack::arena::{Arena, Ground, POLICIES};
use netpol_tests::attack::{Subject, fragments, headers, link, replies, spoofing, through_node, tunnels};
use netpol_tests::level::has_agent;

/// Tries the attacks of all these subjects on one node.
fn try_all(ground: Ground, subjects: &[Subject]) {
    if !has_agent() {
        return;
    }
    let mut arena = Arena::start(ground, POLICIES).unwrap();
    let attacks: Vec<_> = subjects.iter().flat_map(|subject| subject(arena.cast())).collect();
    let failures = arena.failures(&attacks).unwrap();
    for attack in &attacks {
        println!("{}", attack.name);
    }
    assert!(failures.is_empty(), "{} of {} attacks:\n{}", failures.len(), attacks.len(), failures.join("\n"));
}

#[test]
fn nobody_passes_for_another() {
    try_all(Ground::default(), &[spoofing::attacks]);
}

#[test]
fn nobody_passes_for_another_where_connections_are_tracked() {
    try_all(Ground { conntrack: true, ..Ground::default() }, &[spoofing::attacks]);
}

#[test]
fn no_header_hides_the_ports() {
    try_all(Ground::default(), &[headers::attacks]);
}

#[test]
fn no_fragment_rewrites_what_was_judged() {
    try_all(Ground::default(), &[fragments::attacks, fragments::attacks_on_receiver]);
}

#[test]
fn no_fragment_gets_through_a_bridge_that_reassembles() {
    let ground = Ground { conntrack: true, ..Ground::default() };
    try_all(ground, &[fragments::attacks, fragments::attacks_on_receiver_reassembled]);
}

#[test]
fn no_forged_reply_opens_a_flow() {
    try_all(Ground::default(), &[replies::attacks]);
}

#[test]
fn nothing_beside_ip_gets_through() {
    try_all(Ground::default(), &[link::attacks]);
}

#[test]
fn no_tunnel_ends_at_the_pods_own_node() {
    try_all(Ground { vxlan: true, ..Ground::default() }, &[tunnels::attacks]);
}

#[test]
fn the_node_is_no_way_around_policy() {
    try_all(Ground::default(), &[through_node::attacks]);
}
