//! The scenarios of `tests/corpora/behaviours.json`, each as a test of its name: flows, changes, pods, nodes. Those about
//! services and packets are in `netns_behaviours_packets.rs`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use netpol_tests::attack::arena::{Arena, Ground, POLICIES};
use netpol_tests::attack::{Subject, replies, spoofing};
use netpol_tests::behaviours::{FAMILIES, Stage};
use netpol_tests::conformance::{self, Settings};
use netpol_tests::connection::Side;
use netpol_tests::level::has_agent;
use netpol_tests::probe::{PATIENCE, SILENCE};
use netpol_tests::servers::Transport::{Tcp, Udp};

const WEB: (netpol_tests::servers::Transport, u16) = (Tcp, 80);
const DNS: (netpol_tests::servers::Transport, u16) = (Udp, 53);

/// Nobody may reach x/a.
const CLOSED: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}";
/// x/a may reach nobody, and nobody x/a.
const SEALED: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress]}";
/// Pods labelled b, of any namespace, may reach x/a.
const FROM_B: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
                      ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]}]}";

fn stage() -> Option<Stage> {
    has_agent().then(|| Stage::start().unwrap())
}

#[test]
fn flow_reply_ingress_isolated() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", CLOSED).unwrap();
    for how in [WEB, DNS] {
        for ipv6 in FAMILIES {
            let mut open = stage.open("x/a", "y/b", how, ipv6).unwrap();
            for side in [Side::Client, Side::Server, Side::Server] {
                assert!(open.passes(&stage.cluster, side, PATIENCE).unwrap(), "{how:?} {side:?}");
            }
        }
        stage.is_denied("y/b", "x/a", how).unwrap();
    }
}

#[test]
fn flow_reply_egress_isolated() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}").unwrap();
    for how in [WEB, DNS] {
        for ipv6 in FAMILIES {
            let mut open = stage.open("y/b", "x/a", how, ipv6).unwrap();
            for side in [Side::Client, Side::Server] {
                assert!(open.passes(&stage.cluster, side, PATIENCE).unwrap(), "{how:?} {side:?}");
            }
        }
        stage.is_denied("x/a", "y/b", how).unwrap();
        stage.is_denied("x/a", "x/b", how).unwrap();
    }
}

#[test]
fn flow_reply_is_not_a_licence() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", CLOSED).unwrap();
    for ipv6 in FAMILIES {
        let [opener, other] = [5000, 5001].map(|port| stage.udp("x/a", port, ipv6).unwrap());
        let [server, stranger] = [5300, 5400].map(|port| stage.udp("y/b", port, ipv6).unwrap());
        opener.send_to(b"question", server.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        server.recv_from(&mut buffer).unwrap();
        let before = stage.counted("x/a", "ingress", "policy-denied").unwrap();
        server.send_to(b"elsewhere", other.local_addr().unwrap()).unwrap();
        stranger.send_to(b"from elsewhere", opener.local_addr().unwrap()).unwrap();
        server.send_to(b"answer", opener.local_addr().unwrap()).unwrap();
        // The answer was sent last: what else had come would be there before it.
        let (length, from) = opener.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], server.local_addr().unwrap()));
        assert!(other.recv_from(&mut buffer).is_err(), "another port heard something");
        assert_eq!(stage.counted("x/a", "ingress", "policy-denied").unwrap() - before, 2);
    }
}

/// Flows have no clock: an entry goes when others need its place, or with the maps. Without it the rules decide anew.
#[test]
fn flow_long_idle() {
    let Some(mut stage) = stage() else { return };
    stage.policy("p", "x", FROM_B).unwrap();
    let mut open: Vec<_> = FAMILIES.iter().map(|&ipv6| stage.open("y/b", "x/a", WEB, ipv6).unwrap()).collect();
    stage.kill_agents().unwrap();
    for (_, node) in stage.cluster.nodes() {
        let pins = std::fs::read_dir(node.bpffs().join("netpol")).into_iter().flatten().flatten();
        assert!(pins.count() > 0, "nothing is pinned at {}", node.bpffs().display());
        std::fs::remove_dir_all(node.bpffs().join("netpol")).unwrap();
    }
    stage.start_agents().unwrap();
    for open in &mut open {
        for side in [Side::Client, Side::Server] {
            assert!(open.passes(&stage.cluster, side, PATIENCE).unwrap(), "from the {side:?}");
        }
    }
    stage.is_denied("y/c", "x/a", WEB).unwrap();
}

#[test]
fn flow_source_port_reuse() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", CLOSED).unwrap();
    let mut buffer = [0; 64];
    for ipv6 in FAMILIES {
        let servers = ["x/b", "y/b"].map(|place| SocketAddr::new(stage.cluster.address(place, ipv6).unwrap(), 53));
        for round in 0..200 {
            // The same source port each time, of a new socket, to one server or the other.
            let client = stage.udp("x/a", 40_053, ipv6).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"HELLO\n", servers[round % 2]).unwrap();
            let (_, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from, servers[round % 2], "round {round}");
        }
    }
    for pod in ["x/a", "x/b", "y/b"] {
        assert_eq!(stage.counted(pod, "ingress", "policy-denied").unwrap(), 0, "{pod}");
    }
}

#[test]
fn flow_agent_restart() {
    let Some(mut stage) = stage() else { return };
    stage.policy("deny", "x", "{podSelector: {}, policyTypes: [Ingress, Egress]}").unwrap();
    stage.policy("p", "x", FROM_B).unwrap();
    let mut open = stage.open("y/b", "x/a", WEB, false).unwrap();
    stage.kill_agents().unwrap();
    assert!(open.passes(&stage.cluster, Side::Client, PATIENCE).unwrap());
    stage.is_denied("y/c", "x/a", WEB).unwrap();
    let knocking = stage.udp("y/c", 0, false).unwrap();
    let to = SocketAddr::new(stage.cluster.address("x/a", false).unwrap(), 54);
    let mut arrivals = stage.cluster.watch("x/a").unwrap();
    let started = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !started.load(Ordering::SeqCst) {
                knocking.send_to(b"knock", to).unwrap();
                thread::yield_now();
            }
        });
        stage.start_agents().unwrap();
        started.store(true, Ordering::SeqCst);
    });
    assert_eq!(arrivals.at_port(Udp, 54).unwrap(), 0, "a denied datagram got through during the restart");
    for side in [Side::Server, Side::Client] {
        assert!(open.passes(&stage.cluster, side, PATIENCE).unwrap());
    }
    stage.is_denied("y/c", "x/a", WEB).unwrap();
}

fn no_attack_succeeds(subject: Subject) {
    if has_agent() {
        let mut arena = Arena::start(Ground::default(), POLICIES).unwrap();
        let failures = arena.failures(&subject(arena.cast())).unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

#[test]
fn flow_poison_spoofed_reply() {
    no_attack_succeeds(replies::attacks);
}

#[test]
fn flow_spoofed_source() {
    no_attack_succeeds(spoofing::attacks);
}

/// Our choice: cut, with the next packet, in both directions.
#[test]
fn change_deny_existing() {
    let Some(stage) = stage() else { return };
    let mut open: Vec<_> = [WEB, DNS].map(|how| stage.open("x/b", "x/a", how, false).unwrap()).into();
    stage.policy("p", "x", CLOSED).unwrap();
    for open in &mut open {
        for side in [Side::Client, Side::Server] {
            assert!(!open.passes(&stage.cluster, side, SILENCE).unwrap(), "{side:?}");
        }
    }
}

#[test]
fn change_allow_new() {
    let Some(stage) = stage() else { return };
    stage.policy("deny", "x", CLOSED).unwrap();
    [WEB, DNS].iter().for_each(|how| stage.is_denied("y/b", "x/a", *how).unwrap());
    stage.policy("p", "x", FROM_B).unwrap();
    [WEB, DNS].iter().for_each(|how| stage.reaches("y/b", "x/a", *how).unwrap());
}

/// A sandbox's interface is held from the moment on that the agent has it, which is what a pod's start waits for; nothing of
/// the pod is known yet, neither its object nor its labels.
#[test]
fn change_isolated_before_start() {
    let Some(mut stage) = stage() else { return };
    stage.policy("p", "x", "{podSelector: {}, policyTypes: [Ingress, Egress]}").unwrap();
    for (round, key) in (60..).zip(["x/late-1", "x/late-2", "x/late-3"]) {
        stage.sandbox(key, "n1", round).unwrap();
        stage.is_denied(key, "y/c", DNS).unwrap();
        stage.is_denied(key, "y/b", WEB).unwrap();
        stage.change_pod(key, "{pod: late}", ("phase: Running", "")).unwrap();
        stage.is_denied(key, "y/c", DNS).unwrap();
    }
    // Held as long as nobody knows it, and let go as soon as somebody says that no policy selects it.
    stage.sandbox("y/late", "n1", 70).unwrap();
    stage.is_denied("y/late", "y/c", DNS).unwrap();
    stage.change_pod("y/late", "{pod: late}", ("phase: Running", "")).unwrap();
    stage.reaches("y/late", "y/c", DNS).unwrap();
}

#[test]
fn change_no_gap_on_update() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", FROM_B).unwrap();
    let mut allowed = stage.open("y/b", "x/a", DNS, false).unwrap();
    let denied = stage.udp("y/c", 0, false).unwrap();
    let mut arrivals = stage.cluster.watch("x/a").unwrap();
    let to = SocketAddr::new(stage.cluster.address("x/a", false).unwrap(), 54);
    let done = AtomicBool::new(false);
    let exchanged = thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut exchanged = 0;
            while !done.load(Ordering::SeqCst) {
                // Datagrams: one that is lost is not sent again.
                assert!(allowed.passes(&stage.cluster, Side::Client, PATIENCE).unwrap(), "after {exchanged}");
                denied.send_to(b"knock", to).unwrap();
                exchanged += 1;
            }
            exchanged
        });
        for round in 0..100 {
            let other = if round % 2 == 0 { ", {podSelector: {matchLabels: {pod: b}}}" } else { "" };
            let spec = format!(
                "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Ingress], ingress: [{{from: \
                 [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{pod: b}}}}}}{other}]}}]}}"
            );
            stage.policy("p", "x", &spec).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        traffic.join().unwrap()
    });
    assert!(exchanged > 100, "only {exchanged} exchanges");
    assert_eq!(arrivals.at_port(Udp, 54).unwrap(), 0, "a denied datagram got through");
}

/// Our choice: what a policy allows works as soon as the pod is found.
#[test]
fn change_allow_after_isolation() {
    let Some(mut stage) = stage() else { return };
    stage.policy("p", "x", FROM_B).unwrap();
    stage.recreate("x/a").unwrap();
    stage.sync().unwrap();
    // It may fail at first (the node has not found the pod's neighbour entry yet), and must succeed soon.
    let deadline = Instant::now() + PATIENCE * 2;
    while let Err(error) = stage.reaches("y/b", "x/a", WEB) {
        assert!(Instant::now() < deadline, "{error:#}");
        stage.sync().unwrap();
    }
    stage.is_denied("y/c", "x/a", WEB).unwrap();
}

/// Init containers and sidecars share the pod's namespace; what differs is the phase that the API server shows.
#[test]
fn pod_init_and_sidecar() {
    let Some(stage) = stage() else { return };
    stage.policy("deny", "x", SEALED).unwrap();
    stage.policy("p", "x", FROM_B).unwrap();
    for phase in ["phase: Pending", "phase: Running"] {
        stage.change_pod("x/a", "{pod: a}", (phase, "")).unwrap();
        stage.reaches("x/b", "x/a", WEB).unwrap();
        stage.is_denied("y/c", "x/a", WEB).unwrap();
        stage.is_denied("x/a", "x/b", WEB).unwrap();
    }
}

#[test]
fn pod_terminating() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", FROM_B).unwrap();
    let mut open = stage.open("y/b", "x/a", WEB, false).unwrap();
    let deleted = ", deletionTimestamp: \"2026-01-01T00:00:00Z\", deletionGracePeriodSeconds: 3600";
    stage.change_pod("x/a", "{pod: a}", ("phase: Running", deleted)).unwrap();
    stage.change_pod("y/b", "{pod: b}", ("phase: Running", deleted)).unwrap();
    assert!(open.passes(&stage.cluster, Side::Client, PATIENCE).unwrap());
    stage.reaches("y/b", "x/a", WEB).unwrap();
    stage.is_denied("y/c", "x/a", WEB).unwrap();
}

#[test]
fn pod_completed_ip_reuse() {
    if has_agent() {
        let mut settings = Settings::all_of(conformance::committed());
        settings.globs = vec!["extra/ipreuse-*".to_owned()];
        let tally = conformance::run(&settings, |line| println!("{line}")).unwrap();
        assert!(tally.failed == 0 && tally.passed > 0, "{tally}");
    }
}

#[test]
fn pod_recreated_same_name() {
    let Some(mut stage) = stage() else { return };
    stage.policy("p", "x", FROM_B).unwrap();
    stage.is_denied("y/c", "x/a", WEB).unwrap();
    stage.recreate("x/a").unwrap();
    stage.change_pod("x/a", "{pod: other}", ("phase: Running", "")).unwrap();
    stage.reaches("y/c", "x/a", WEB).unwrap();
    stage.recreate("x/a").unwrap();
    stage.change_pod("x/a", "{pod: a}", ("phase: Running", "")).unwrap();
    stage.is_denied("y/c", "x/a", WEB).unwrap();
}

#[test]
fn node_kubelet_probe() {
    let Some(stage) = stage() else { return };
    stage.policy("deny-x", "x", "{podSelector: {}, policyTypes: [Ingress, Egress]}").unwrap();
    stage.policy("deny-y", "y", "{podSelector: {}, policyTypes: [Ingress, Egress]}").unwrap();
    for (node, pod) in [("n1", "x/a"), ("n1", "x/b"), ("n2", "y/b")] {
        stage.reaches(node, pod, WEB).unwrap();
        stage.reaches(node, pod, DNS).unwrap();
    }
    stage.is_denied("x/b", "x/a", WEB).unwrap();
}

#[test]
fn node_hostnet_server() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", CLOSED).unwrap();
    stage.reaches("x/a", "n1", WEB).unwrap();
    stage.reaches("x/a", "n2", WEB).unwrap();
    stage.is_denied("x/b", "x/a", WEB).unwrap();
}

/// A process of another node comes by VXLAN, from the first address of that node's pods and not from the node's own.
#[test]
fn node_remote_node_vxlan() {
    let Some(stage) = stage() else { return };
    let with_blocks = |blocks: [&str; 2]| {
        let [v4, v6] = blocks;
        format!(
            "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Ingress], ingress: [{{from: \
             [{{ipBlock: {{cidr: {v4}}}}}, {{ipBlock: {{cidr: \"{v6}\"}}}}]}}]}}"
        )
    };
    stage.policy("p", "x", &with_blocks(["192.0.2.11/32", "2001:db8::11/128"])).unwrap();
    stage.is_denied("n2", "x/a", WEB).unwrap();
    stage.policy("p", "x", &with_blocks(["10.244.2.0/32", "fd00:10:244:2::/128"])).unwrap();
    stage.reaches("n2", "x/a", WEB).unwrap();
}

#[test]
fn scale_many_pods_one_address_set() {
    let Some(stage) = stage() else { return };
    let many: Vec<String> = (0..3000_u32)
        .map(|number| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{namespace: \"y\", name: many-{number}, labels: {{pod: b}}}}, spec: \
                 {{nodeName: n3}}, status: {{phase: Running, podIPs: [{{ip: 10.245.{}.{}}}]}}}}",
                number / 250,
                number % 250 + 1
            )
        })
        .collect();
    let list = |changed: Option<usize>| {
        let items: Vec<String> = many
            .iter()
            .enumerate()
            .map(|(at, it)| if Some(at) == changed { it.replace("pod: b", "pod: z") } else { it.clone() })
            .collect();
        format!("{{apiVersion: v1, kind: List, items: [{}]}}\n", items.join(",\n"))
    };
    stage.put("20-many.yaml", &list(None)).unwrap();
    stage.policy("p", "x", FROM_B).unwrap();
    let mut open = stage.open("y/b", "x/a", DNS, false).unwrap();
    for changed in [7, 1500, 2999] {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    assert!(open.passes(&stage.cluster, Side::Client, PATIENCE).unwrap(), "verdicts of others flap");
                }
            });
            stage.put("20-many.yaml", &list(Some(changed))).unwrap();
            done.store(true, Ordering::SeqCst);
            traffic.join().unwrap();
        });
        stage.is_denied("y/c", "x/a", WEB).unwrap();
    }
    // The one whose label changes is the one that changes.
    stage.change_pod("y/b", "{pod: z}", ("phase: Running", "")).unwrap();
    stage.is_denied("y/b", "x/a", WEB).unwrap();
    stage.reaches("x/b", "x/a", WEB).unwrap();
}
