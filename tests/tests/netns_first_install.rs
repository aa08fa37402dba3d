//! The first agent on nodes whose pods are at work: what policy allows does not lose a packet, what it does not allow ends, and
//! `--dry-run` has named exactly that before.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netpol_tests::agent::{Agent, Options, dry_run};
use netpol_tests::cluster::{Cluster, OUTSIDE};
use netpol_tests::connection::{Connection, Side};
use netpol_tests::counted::retransmitted;
use netpol_tests::kube_proxy::Form;
use netpol_tests::level::has_agent;
use netpol_tests::probe::{PATIENCE, Probe};
use netpol_tests::servers::Transport;
use netpol_tests::services::{NODES, Services, Way, egress, ingress, policy};
use serde_json::Value;

/// How long nothing may arrive on a connection that was cut: TCP repeats several times within it.
const CUT: Duration = Duration::from_millis(1200);
/// What came late is there by now.
const LATE: Duration = Duration::from_millis(20);
/// Between two messages of a busy connection.
const PAUSE: Duration = Duration::from_millis(5);

/// Who may reach whom:
/// - client is isolated for egress and may reach near and far only; its own node it may reach anyway.
/// - near is isolated for ingress and may be reached by client only, and by itself.
/// - near-db is isolated for ingress and may be reached by nobody. What it opens itself is its own affair.
/// - far may be reached by everybody, on any port but from outside.
fn policies() -> String {
    [
        egress("client", &["near", "far"]),
        ingress("near", &["client", "near"]),
        ingress("near-db", &[]),
        policy("far", "ingress", "[{from: [{namespaceSelector: {}}]}]"),
    ]
    .join("---\n")
}

/// From, to, by which address; and whether policy lets it be.
const CONNECTIONS: [(&str, &str, Way, bool); 23] = [
    // One node.
    ("shop/client", "near", Way::Direct, true),
    ("shop/client", "near", Way::ClusterIp, true),
    ("shop/client", "near", Way::NodePort(NODES[0]), true),
    ("shop/client", "near-db", Way::Direct, false),
    ("shop/client", "near-db", Way::ClusterIp, false),
    ("shop/other", "near", Way::Direct, false),
    ("shop/other", "near", Way::ClusterIp, false),
    // Its egress is free: its answers alone would make it look like the opener.
    ("shop/other", "near-db", Way::Direct, false),
    ("shop/near-db", "far", Way::Direct, true),
    ("shop/near-db", "far-client", Way::Direct, true),
    ("shop/near", "near", Way::ClusterIp, true),
    // Its own node, and another one.
    ("shop/client", "host-near", Way::ClusterIp, true),
    ("shop/client", "host-far", Way::ClusterIp, false),
    // The other node.
    ("shop/client", "far", Way::Direct, true),
    ("shop/client", "far", Way::ClusterIp, true),
    ("shop/client", "far-db", Way::ClusterIp, false),
    ("shop/far-client", "near", Way::Direct, false),
    ("shop/far-client", "near-db", Way::ClusterIp, false),
    // The other node masquerades it, so that far hears from a node.
    ("shop/other", "far", Way::NodePort(NODES[1]), false),
    ("shop/other", "far", Way::ClusterIp, true),
    // Out, and in.
    ("shop/client", "away", Way::ClusterIp, false),
    ("shop/other", "away", Way::ClusterIp, true),
    (OUTSIDE, "near", Way::NodePort(NODES[0]), false),
];

/// An open connection and what is to become of it.
struct Held {
    connection: Connection,
    allowed: bool,
    /// Whom the client asks, as the node sees it whose pod's policy is about it.
    asked: SocketAddr,
}

fn open_all(services: &Services) -> Vec<Held> {
    let mut held = Vec::new();
    for (from, backend, way, allowed) in CONNECTIONS {
        for (transport, ipv6) in [(Transport::Tcp, false), (Transport::Tcp, true), (Transport::Udp, false)] {
            let probe = probe(services, from, (backend, way), transport, ipv6);
            // Behind its own node's translation, what a pod asks a pod of another node for is that pod's address.
            let asked = match (from, way) {
                ("shop/far-client", Way::ClusterIp) => services.at(backend, Way::Direct, transport, ipv6).unwrap(),
                _ => probe.at,
            };
            held.push(Held { connection: Connection::open(&services.cluster, &probe).unwrap(), allowed, asked });
        }
    }
    held
}

fn probe(services: &Services, from: &str, to: (&str, Way), transport: Transport, ipv6: bool) -> Probe {
    if to.0 != "far-client" {
        return services.probe(from, to, transport, ipv6).unwrap();
    }
    // No service leads there, which is where the case knows addresses from.
    let at = services.probe(from, ("far", Way::Direct), transport, ipv6).unwrap().at;
    let at = SocketAddr::new(services.cluster.address("shop/far-client", ipv6).unwrap(), at.port());
    Probe { from: from.to_owned(), to: "shop/far-client".to_owned(), at, transport }
}

impl Held {
    /// The connection as `--dry-run` names it.
    fn name(&self) -> String {
        let transport = self.connection.probe().transport.name().to_uppercase();
        format!("{transport} {} -> {}", self.connection.local(), self.asked)
    }
}

/// What the dry runs of both nodes say would be cut.
fn forecast(cluster: &Cluster) -> BTreeSet<String> {
    let mut cut = BTreeSet::new();
    for node in NODES {
        let said: Value = serde_json::from_str(&dry_run(cluster, node, &["-o", "json"]).unwrap()).unwrap();
        assert_eq!((&said["complete"], &said["unreadable"]), (&Value::Bool(true), &Value::from(0)), "{said}");
        for one in said["cut"].as_array().unwrap() {
            let end = |party: &Value| {
                let address = party["address"].as_str().unwrap().parse().unwrap();
                SocketAddr::new(address, u16::try_from(party["port"].as_u64().unwrap()).unwrap())
            };
            assert!(!one["isolatedBy"].as_array().unwrap().is_empty() && one["pod"].is_string(), "{one}");
            cut.insert(format!("{} {} -> {}", one["protocol"].as_str().unwrap(), end(&one["from"]), end(&one["to"])));
        }
    }
    cut
}

/// Talks both ways on allowed connections until `over`; what did not arrive.
fn keep_busy(cluster: &Cluster, connection: &mut Connection, over: &AtomicBool, passed: &AtomicU64) -> Vec<String> {
    let mut lost = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for side in [Side::Client, Side::Server] {
            match connection.passes(cluster, side, PATIENCE) {
                Ok(true) => _ = passed.fetch_add(1, Ordering::Relaxed),
                Ok(false) => lost.push(format!("{}: a message of the {side:?} was lost", connection.probe())),
                Err(error) => lost.push(format!("{}: {error:#}", connection.probe())),
            }
            if lost.len() > 3 {
                return lost;
            }
        }
        thread::sleep(PAUSE);
    }
    lost
}

/// Whichever side begins, nothing arrives: all are tried at once.
#[track_caller]
fn assert_closed(cluster: &Cluster, connections: &mut [Held]) {
    // Servers first: it is their packets that could make them look like the opener.
    for side in [Side::Server, Side::Client, Side::Server] {
        let sent: Vec<String> = connections.iter_mut().map(|it| it.connection.send(cluster, side).unwrap()).collect();
        let other = if side == Side::Server { Side::Client } else { Side::Server };
        let deadline = Instant::now() + CUT;
        for (held, message) in connections.iter_mut().zip(sent) {
            let left = deadline.saturating_duration_since(Instant::now()).max(LATE);
            let arrived = held.connection.arrives(cluster, other, &message, left).unwrap();
            assert!(!arrived, "{}: a message of the {side:?} came through", held.connection.probe());
        }
    }
}

/// Adds the clsact qdisc to every device of the nodes, as another program would have done: the kernel stops a device for a
/// moment to add it and loses what goes out, which is none of the agent's doing.
fn add_clsact(cluster: &Cluster) {
    for (_, node) in cluster.nodes() {
        let add = || {
            for device in nix::net::if_::if_nameindex().unwrap().iter() {
                let name = device.name().to_str().unwrap();
                let tc = Command::new("tc").args(["qdisc", "add", "dev", name, "clsact"]).status().unwrap();
                assert!(tc.success(), "clsact on {name}");
            }
        };
        node.namespace().enter(add).unwrap();
    }
}

/// Starts an agent on each node while the busy connections go on. They die with this thread.
fn install(cluster: &Cluster, attach: &str, busy: &mut [Held], passed: &AtomicU64) -> (Vec<Agent>, Vec<String>) {
    let over = AtomicBool::new(false);
    let lost = Mutex::new(Vec::new());
    let agents = thread::scope(|scope| {
        for held in busy {
            let (over, lost) = (&over, &lost);
            scope.spawn(move || {
                let found = keep_busy(cluster, &mut held.connection, over, passed);
                lost.lock().unwrap().extend(found);
            });
        }
        let start = |node: &&str| {
            let arguments = vec![format!("--attach={attach}")];
            let options = Options { node: Some((*node).to_owned()), arguments, ..Options::default() };
            Agent::start(cluster, &options)
        };
        let agents = NODES.iter().map(start).collect::<anyhow::Result<Vec<_>>>();
        over.store(true, Ordering::Relaxed);
        agents.unwrap()
    });
    (agents, lost.into_inner().unwrap())
}

fn first_install(form: Form, attach: &str) {
    if !has_agent() {
        return;
    }
    let services = Services::build(form).unwrap();
    let cluster = &services.cluster;
    cluster.run().put_manifest("90.yaml", &policies()).unwrap();
    // Of each kind one that is idle throughout, and of the allowed ones another that is not.
    let idle = open_all(&services);
    let (mut busy, denied_too): (Vec<Held>, Vec<Held>) = open_all(&services).into_iter().partition(|it| it.allowed);
    let (mut kept, mut cut): (Vec<Held>, Vec<Held>) = idle.into_iter().partition(|it| it.allowed);
    cut.extend(denied_too);

    let wanted: BTreeSet<String> = cut.iter().map(Held::name).collect();
    let said = forecast(cluster);
    let differing: Vec<&String> = said.symmetric_difference(&wanted).collect();
    assert_eq!(differing, [""; 0], "said by --dry-run, or denied by policy, but not both");
    for held in kept.iter_mut().chain(&mut cut) {
        assert!(held.connection.passes(cluster, Side::Client, PATIENCE).unwrap(), "{}", held.connection.probe());
    }

    if attach == "clsact" {
        add_clsact(cluster);
    }
    let passed = AtomicU64::new(0);
    let (agents, lost) = install(cluster, attach, &mut busy, &passed);
    let drops: Vec<Vec<String>> = agents.iter().map(|agent| agent.drops().last(10)).collect();
    assert_eq!(lost, [""; 0], "busy connections; drops: {drops:#?}");
    for place in cluster.places() {
        assert_eq!(retransmitted(cluster, place).unwrap(), 0, "{place} had to send TCP segments again");
    }
    assert!(passed.load(Ordering::Relaxed) > 1000, "too little traffic to mean anything");
    for agent in &agents {
        let settled = agent.sync().unwrap();
        // The manifests also hold what only kube-proxy reads.
        let about_traffic = |it: &&Value| !it["object"].as_str().unwrap().starts_with("EndpointSlice");
        assert_eq!(settled.problems.iter().find(about_traffic), None);
    }

    // On an idle connection it may be the server that goes on.
    for side in [Side::Server, Side::Client] {
        for held in &mut kept {
            let probe = held.connection.probe().clone();
            assert!(held.connection.passes(cluster, side, PATIENCE).unwrap(), "{probe}: {side:?}");
        }
    }
    assert_closed(cluster, &mut cut);
    for (place, node) in [("shop/client", 0), ("shop/near-db", 0), ("shop/far", 1)] {
        let counters = agents[node].counters().unwrap();
        let of_place = counters.iter().filter(|it| it.pod == place);
        let refused: u64 = of_place.filter(|it| it.reason == "mid-stream").map(|it| it.packets).sum();
        assert_eq!(refused, 0, "{place}");
    }
}

#[test]
fn allowed_connections_lose_nothing_and_denied_ones_end_with_iptables_and_tcx() {
    first_install(Form::Iptables, "auto");
}

#[test]
fn allowed_connections_lose_nothing_and_denied_ones_end_with_nftables_and_clsact() {
    first_install(Form::Nftables, "clsact");
}
