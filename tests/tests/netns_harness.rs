//! The harness itself, with no agent: what passes when nothing is enforced, and that nothing is left behind.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use netpol_tests::connection::{Connection, Side};
use netpol_tests::level::has_kernel;
use netpol_tests::manifests::PodAddresses;
use netpol_tests::node::{NODE, Node, OUTSIDE};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::shop::{Shop, case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn two_pods() -> Node {
    let mut node = Node::start(&[]).unwrap();
    for (key, host) in [("a/client", 11), ("a/server", 12)] {
        node.add_pod(&PodAddresses::new(key, &addresses(host))).unwrap();
    }
    node
}

fn addresses(host: u16) -> [IpAddr; 2] {
    let v4 = format!("10.244.1.{host}").parse().unwrap();
    [v4, format!("fd00:10:244:1::{host}").parse().unwrap()]
}

#[test]
fn without_an_agent_everybody_reaches_everything_in_both_families() {
    if !has_kernel() {
        return;
    }
    let case = case("shop");
    let before = Shop::expectation(&case, "before").unwrap();
    let shop = Shop::build(&case, &[&before]).unwrap();
    for ipv6 in [false, true] {
        let (measured, odd) = shop.measure(&before, ipv6).unwrap();
        assert_eq!(before.differences(&measured), [], "ipv6: {ipv6}\n{}", measured.render(false));
        assert_eq!(odd, [""; 0]);
    }
}

#[test]
fn a_connection_carries_messages_from_either_side() {
    if !has_kernel() {
        return;
    }
    let node = two_pods();
    for transport in [Transport::Tcp, Transport::Udp] {
        node.serve("a/server", transport, [7000]).unwrap();
        for ipv6 in [false, true] {
            let probe = Probe::new(&node, "a/client", ("a/server", transport, 7000), ipv6).unwrap();
            let mut connection = Connection::open(&node, &probe).unwrap();
            for side in [Side::Server, Side::Client, Side::Client, Side::Server] {
                assert!(connection.passes(&node, side, PATIENCE).unwrap(), "{probe}: from the {side:?}");
            }
        }
    }
}

#[test]
fn silence_a_refusal_and_an_answer_are_told_apart() {
    if !has_kernel() {
        return;
    }
    let node = two_pods();
    node.serve("a/server", Transport::Tcp, [7000]).unwrap();
    let probe = |port| Probe::new(&node, "a/client", ("a/server", Transport::Tcp, port), false).unwrap();
    assert_eq!(node.probe(&probe(7000), PATIENCE).unwrap(), Outcome::Answered);
    assert!(matches!(node.probe(&probe(7001), PATIENCE).unwrap(), Outcome::Other(what) if what.contains("refused")));
    let mut nobody = probe(7000);
    nobody.at.set_ip("10.244.1.99".parse().unwrap());
    assert_eq!(node.probe(&nobody, SILENCE).unwrap(), Outcome::Silence);
    let mut wrong = probe(7000);
    wrong.to = "a/other".to_owned();
    assert!(matches!(node.probe(&wrong, PATIENCE).unwrap(), Outcome::Other(what) if what.contains("a/server")));
}

#[test]
fn node_and_outside_reach_pods_with_their_own_addresses() {
    if !has_kernel() {
        return;
    }
    let node = two_pods();
    node.serve("a/server", Transport::Tcp, [7000]).unwrap();
    for from in [NODE, OUTSIDE] {
        for ipv6 in [false, true] {
            let probe = Probe::new(&node, from, ("a/server", Transport::Tcp, 7000), ipv6).unwrap();
            assert_eq!(node.probe(&probe, PATIENCE).unwrap(), Outcome::Answered, "{probe}");
        }
    }
}

#[test]
fn a_pod_can_go_and_come_back_under_another_interface() {
    if !has_kernel() {
        return;
    }
    let mut node = two_pods();
    let first = node.pod("a/server").unwrap().interface().to_owned();
    node.remove_pod("a/server").unwrap();
    node.add_pod(&PodAddresses::new("a/server", &addresses(12))).unwrap();
    assert_ne!(node.pod("a/server").unwrap().interface(), first);
    node.serve("a/server", Transport::Udp, [7000]).unwrap();
    let probe = Probe::new(&node, "a/client", ("a/server", Transport::Udp, 7000), false).unwrap();
    assert_eq!(node.probe(&probe, PATIENCE).unwrap(), Outcome::Answered);
}

#[test]
fn a_node_that_is_dropped_leaves_nothing_behind() {
    if !has_kernel() {
        return;
    }
    let node = two_pods();
    let id = node.run().id().to_owned();
    assert!(!traces(&id).is_empty());
    drop(node);
    assert_eq!(traces(&id), [""; 0]);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    if !has_kernel() {
        return;
    }
    let (mut demo, id) = demo_left_up();
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(traces(&id), [""; 0]);
}

#[test]
fn what_a_killed_demo_leaves_is_swept_by_the_next_start() {
    if !has_kernel() {
        return;
    }
    let (mut demo, id) = demo_left_up();
    demo.kill().unwrap();
    demo.wait().unwrap();
    let _next = Node::start(&[]).unwrap();
    assert_eq!(traces(&id), [""; 0]);
}

/// A demo that has built everything, and its run's id.
fn demo_left_up() -> (Child, String) {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_netpol-demo"));
    demo.args(["--no-agent", "--keep", "--json"]).stdout(Stdio::piped());
    let mut demo = demo.spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut id = None;
    for line in &mut lines {
        let step: serde_json::Value = serde_json::from_str(&line).unwrap();
        if step["step"] == "built" {
            id = Some(step["run"].as_str().unwrap().to_owned());
        }
        if step["step"] == "try" {
            break;
        }
    }
    // Somebody must go on reading, or the demo ends by itself.
    std::thread::spawn(|| lines.for_each(drop));
    (demo, id.unwrap())
}

/// Whatever bears the run's id: namespaces, directories, mounts.
fn traces(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["/run/netns", "/run/netpol-tests"] {
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        found.extend(names.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    found.extend(std::fs::read_to_string("/proc/self/mounts").unwrap().lines().map(str::to_owned));
    found.retain(|name| name.contains(id));
    found
}
