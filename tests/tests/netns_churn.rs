//! Traffic that stays allowed, and knocks that stay denied, while labels and policies change as fast as the agent can
//! follow: nothing is lost, nothing gets in, and the datapath dropped exactly the knocks. `NETPOL_SEED` (a number) makes
//! other edits.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_common::abi::Reason;
use netpol_tests::agent::{Agent, Options};
use netpol_tests::churn::{
    ALLOWED, CLOSED_PORT, Churn, DENIED, Edit, NODE_NAME, PODS, QUIET_TCP_PORT, QUIET_UDP_PORT, STRANGER,
    STRANGER_ADDRESSES, TCP_PORT, UDP_PORT, addresses_of,
};
use netpol_tests::counted::{Flow, Manner, Tally, during, retransmitted, serve};
use netpol_tests::level::{has_agent, is_full};
use netpol_tests::manifests::PodAddresses;
use netpol_tests::node::{Node, OUTSIDE, OUTSIDE_ADDRESSES};
use netpol_tests::servers::Transport;

/// Edits in the quick tier, and in the full one.
const EDITS: (usize, usize) = (150, 1_000);
/// So long every flow needs to ask more than once.
const SEEN: Duration = Duration::from_millis(20);
/// Places whose SYNs must not be answered; they may repeat some.
const KNOCKING: [&str; 2] = ["a/denied", "a/jailed"];

/// What every server answers on.
const PORTS: [(Transport, u16); 5] = [
    (Transport::Tcp, TCP_PORT),
    (Transport::Udp, UDP_PORT),
    (Transport::Udp, QUIET_UDP_PORT),
    (Transport::Tcp, QUIET_TCP_PORT),
    (Transport::Udp, CLOSED_PORT),
];

fn node() -> Node {
    let mut node = Node::start(&STRANGER_ADDRESSES).unwrap();
    for (key, host) in PODS {
        node.add_pod(&PodAddresses::new(key, &addresses_of(host))).unwrap();
    }
    node
}

/// The place of a party, and its address in one family.
fn place(node: &Node, party: &str, ipv6: bool) -> (String, IpAddr) {
    let of = |addresses: [IpAddr; 2]| addresses[usize::from(ipv6)];
    match party {
        STRANGER => (OUTSIDE.to_owned(), of(STRANGER_ADDRESSES)),
        OUTSIDE => (OUTSIDE.to_owned(), of(OUTSIDE_ADDRESSES)),
        pod => (pod.to_owned(), node.address(pod, ipv6).unwrap()),
    }
}

fn flows(node: &Node) -> Vec<Flow> {
    let mut flows = Vec::new();
    for ipv6 in [false, true] {
        let mut add = |from: &str, to: &str, transport, port, manner| {
            let ((from, source), (_, to)) = (place(node, from, ipv6), place(node, to, ipv6));
            let source = (from == OUTSIDE).then_some(source);
            flows.push(Flow { from, source, at: SocketAddr::new(to, port), transport, manner });
        };
        for (from, to) in ALLOWED {
            for manner in [Manner::Stays, Manner::ComesAnew] {
                add(from, to, Transport::Tcp, TCP_PORT, manner);
                add(from, to, Transport::Udp, UDP_PORT, manner);
            }
        }
        for (from, to, transport, port) in DENIED {
            add(from, to, transport, port, Manner::Knocks);
        }
    }
    flows
}

/// Packets by what became of them: judged, and dropped (those for other pods, which a bridge floods, left out).
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    passed: u64,
    dropped: u64,
}

fn judged(agent: &Agent) -> Judged {
    let mut judged = Judged::default();
    for counter in agent.counters().unwrap() {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == counter.reason).unwrap();
        match (reason.is_drop(), reason.is_quiet()) {
            (true, false) => judged.dropped += counter.packets,
            (true, true) => {}
            (false, _) => judged.passed += counter.packets,
        }
    }
    judged
}

fn carry_out(node: &Node, edit: &Edit) {
    let manifests = node.run().manifests();
    match edit {
        Edit::Put(name, object) => {
            let staged = manifests.with_extension("new");
            std::fs::write(&staged, object.to_string()).unwrap();
            std::fs::rename(&staged, manifests.join(name)).unwrap();
        }
        Edit::Remove(name) => std::fs::remove_file(manifests.join(name)).unwrap(),
    }
}

fn start_agent(node: &Node) -> Agent {
    let arguments = ["--node".to_owned(), NODE_NAME.to_owned()].to_vec();
    Agent::start(node, &Options { arguments, ..Options::default() }).unwrap()
}

/// Another agent in place of one that was killed.
fn restarted(agent: Agent, node: &Node) -> Agent {
    agent.kill().unwrap();
    start_agent(node)
}

#[test]
fn allowed_traffic_loses_nothing_and_denied_traffic_gains_nothing_while_labels_and_policies_change() {
    if !has_agent() {
        return;
    }
    let node = node();
    let tally = Arc::new(Tally::default());
    for server in ["a/server", "b/server", OUTSIDE] {
        serve(&node, server, &PORTS, &tally).unwrap();
    }
    let seed = std::env::var("NETPOL_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut churn = Churn::new(seed);
    for edit in churn.beginning() {
        carry_out(&node, &edit);
    }
    let agent = start_agent(&node);
    let settled = agent.sync().unwrap();
    assert!(settled.endpoints.iter().all(|endpoint| endpoint.state == "enforced"), "{settled:?}");
    assert_eq!((settled.endpoints.len(), settled.problems.len()), (PODS.len(), 0), "{settled:?}");

    let (before, started) = (judged(&agent), Instant::now());
    let edits = if is_full() { EDITS.1 } else { EDITS.0 };
    let agent = during(&node, &flows(&node), &tally, || {
        let mut agent = agent;
        for number in 1..=edits {
            carry_out(&node, &churn.next_edit());
            agent.sync()?;
            // Some edits come at once after another; of others every flow sees what they have done.
            if number % 2 == 0 {
                std::thread::sleep(SEEN);
            }
            if number == edits / 2 {
                agent = restarted(agent, &node);
            }
        }
        Ok(agent)
    })
    .unwrap();
    let (after, took) = (judged(&agent), started.elapsed());
    let (passed, dropped) = (after.passed - before.passed, after.dropped - before.dropped);
    let repeated = |place: &str| retransmitted(&node, place).unwrap();
    let repeated_knocks: u64 = KNOCKING.iter().map(|place| repeated(place)).sum();
    println!(
        "{edits} edits and a restart in {:.1} s: {} questions, {} lost; {passed} packets passed; {} knocks, {} leaked, \
         {dropped} dropped",
        took.as_secs_f64(),
        tally.asked(),
        tally.lost(),
        tally.knocked(),
        tally.leaked(),
    );
    assert_eq!((tally.lost(), tally.leaked()), (0, 0), "{:#?}", tally.notes());
    assert_eq!(dropped, tally.knocked() + repeated_knocks, "knocks and drops; {:#?}", agent.drops().last(5));
    for place in ["a/client", "a/server", "b/client", "b/server", OUTSIDE] {
        assert_eq!(repeated(place), 0, "{place} had to send TCP segments again");
    }
    let enough = u64::try_from(edits).unwrap() * 10;
    assert!(tally.asked() > enough && tally.knocked() > enough, "too little traffic to mean anything");
}
