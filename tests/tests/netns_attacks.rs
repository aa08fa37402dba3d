//! Attacks from a pod whose root has CAP_NET_RAW, on real packets under the real agent. None may get through.
//!
//! Each subject is a table of named attacks on one node: see `netpol_tests::attack` for what proves one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, and names what it tried"
)]

use std::net::{SocketAddr, UdpSocket};

use netpol_common::abi::Reason;
use netpol_tests::attack::arena::{Arena, Ground, POLICIES, key, marks};
use netpol_tests::attack::cast::{FAMILIES, JAILED, MALLORY, OPEN, PODS, SHUT, VICTIM, unspecified};
use netpol_tests::attack::wire::Wire;
use netpol_tests::attack::{
    Drops, Intent, Subject, fragments, headers, link, replies, spoofing, through_node, tunnels,
};
use netpol_tests::level::has_agent;
use netpol_tests::node::NODE;
use netpol_tests::probe::PATIENCE;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Mark;

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

#[test]
fn headers_outside_the_linear_part_of_a_buffer_are_judged_too() {
    if !has_agent() {
        return;
    }
    let mut arena = Arena::start(Ground::default(), POLICIES).unwrap();
    for ipv6 in FAMILIES {
        for (from, direction, counted_by, reason) in
            [(JAILED, "egress", JAILED, "policy-denied"), (MALLORY, "ingress", VICTIM, "policy-denied")]
        {
            let frames = |intent: Intent| {
                let port = intent.choose(SHUT, OPEN);
                let cast = arena.cast();
                let syn = cast.syn((from, VICTIM), ipv6, port, intent);
                let datagram = cast.datagram((from, VICTIM), ipv6, port, intent);
                // Options or an extension header move the ports further out.
                let longer =
                    if ipv6 { syn.clone().extension(60, &[0, 1, 4, 0, 0, 0, 0]) } else { syn.clone().options(&[1; 8]) };
                [syn, datagram, longer].map(|packet| cast.frame(from, VICTIM, &packet)).to_vec()
            };
            let (evil, legal) = (frames(Intent::Evil), frames(Intent::Legal));
            let drops = Drops { pod: counted_by, direction, reason, packets: 3 };
            let before = arena.counted(&drops).unwrap();
            arena.wire(VICTIM).unwrap().forget().unwrap();
            for frames in [&evil, &legal] {
                let namespace = arena.node.pod(&key(from)).unwrap().namespace();
                Wire::send_outside_linear(namespace, "eth0", frames).unwrap();
            }
            let victim = arena.wire(VICTIM).unwrap();
            let count = |frames: &[Vec<u8>], intent| frames.iter().map(|it| marks(it, intent)).sum::<usize>();
            let arrived = victim.wait_until(PATIENCE, |frames| count(frames, Intent::Legal) == 3).unwrap();
            assert!(arrived, "IPv6 {ipv6}, from {from}: legal frames did not arrive");
            assert_eq!(count(victim.received().unwrap(), Intent::Evil), 0, "IPv6 {ipv6}, from {from}: IT GOT THROUGH");
            assert_eq!(arena.counted(&drops).unwrap() - before, 3, "IPv6 {ipv6}, from {from}");
        }
    }
}

/// A process of the host's network may put any mark on its packets. The node may reach its own pods without one, so no mark
/// may gain it anything; and one that a pod's packets carry must not make it that pod.
#[test]
fn a_mark_of_a_host_network_process_gains_nothing() {
    if !has_agent() {
        return;
    }
    let mut arena = Arena::start(Ground::default(), POLICIES).unwrap();
    let endpoints = arena.agent().sync().unwrap().endpoints;
    assert_eq!(endpoints.len(), PODS.len());
    // A pod's packets may come back to it through a service: that its own slot passes is no gain for the node.
    let slots: Vec<u32> = endpoints.iter().filter(|it| it.pod != key(VICTIM)).map(|it| it.slot).collect();
    for ipv6 in FAMILIES {
        let to = SocketAddr::new(arena.cast().address(VICTIM, ipv6), SHUT);
        for code in slots.iter().copied().chain([200, 254, 255]) {
            arena.wire(VICTIM).unwrap().forget().unwrap();
            let before = denied(&arena);
            // A socket of its own for each: what an unmarked packet opened is open.
            for (mark, intent) in [(code << 24, Intent::Evil), (0x4000, Intent::Legal)] {
                let namespace = arena.node.namespace(NODE).unwrap();
                let socket = namespace.enter(|| UdpSocket::bind((unspecified(ipv6), 0))).unwrap().unwrap();
                // Bits outside the mask are others' business, as kube-proxy's.
                setsockopt(&socket, Mark, &mark).unwrap();
                socket.send_to(intent.mark(), to).unwrap();
            }
            let victim = arena.wire(VICTIM).unwrap();
            let arrived = victim.wait_for(PATIENCE, |frame| marks(frame, Intent::Legal) > 0).unwrap();
            assert!(arrived, "IPv6 {ipv6}: the node does not reach its pod");
            let leaked = victim.received().unwrap().iter().any(|frame| marks(frame, Intent::Evil) > 0);
            assert!(!leaked, "IPv6 {ipv6}, mark {code}: IT GOT THROUGH");
            assert_eq!(denied(&arena) - before, 1, "IPv6 {ipv6}, mark {code}");
        }
    }
}

/// Packets that were dropped, in whosever name: a mark's pod is asked too.
fn denied(arena: &Arena) -> u64 {
    let drops = |reason: &str| Reason::ALL.iter().any(|it| it.is_drop() && !it.is_quiet() && it.name() == reason);
    let counters = arena.agent().counters().unwrap();
    counters.iter().filter(|it| drops(&it.reason)).map(|it| it.packets).sum()
}
