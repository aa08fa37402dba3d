//! Agents of two versions, whose maps are laid out differently, take over from each other under continuous traffic; they
//! are killed in the midst of it; and pods, policies and the node itself change while no agent runs.
//!
//! `client` is isolated both ways and may only ask `server`, so that every answer depends on what the datapath remembers.
//! Each pair exchanges a packet every few milliseconds; nothing is repeated without being counted.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netpol_tests::agent::{Agent, Options, Settled, Version, cleanup};
use netpol_tests::connection::{Connection, Side};
use netpol_tests::counted::{Flow, Manner, Tally, during, retransmitted, serve};
use netpol_tests::level::{has_both_agents, is_full};
use netpol_tests::manifests::PodAddresses;
use netpol_tests::node::{NODE, Node, OUTSIDE};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;

/// Changes of version in the quick tier, and in the full one.
const UPGRADES: (u32, u32) = (4, 20);
/// Starts that are cut short in the quick tier, and in the full one.
const KILLS: (u32, u32) = (10, 60);

const PORT: u16 = 7000;
/// Answered to probes.
const PROBED: u16 = 7001;
/// Pods, and the role that policies know each by.
const PODS: [(&str, &str, u8); 5] = [
    ("a/server", "server", 11),
    ("a/client", "client", 12),
    ("a/denied", "none", 13),
    ("a/old", "client", 14),
    ("a/new", "new", 15),
];

const POLICIES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: a}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{podSelector: {matchLabels: {role: client}}}, {ipBlock: {cidr: 192.0.2.100/32}}, {ipBlock: {cidr: "2001:db8::100/128"}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: a}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Ingress, Egress]
  egress:
    - to: [{podSelector: {matchLabels: {role: server}}}]
"#;

/// Allows `denied` what it is denied.
const OPENING: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: opening, namespace: a}
spec:
  podSelector: {matchLabels: {role: server}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: none}}}]
      ports: [{protocol: TCP, port: 7001}]
"#;

fn addresses(host: u8) -> [IpAddr; 2] {
    let v6 = format!("fd00:10:244:1::{host}");
    [IpAddr::from([10, 244, 1, host]), v6.parse().unwrap()]
}

fn put(node: &Node, name: &str, text: &str) {
    let staged = node.run().manifests().with_extension("new");
    fs::write(&staged, text).unwrap();
    fs::rename(&staged, node.run().manifests().join(name)).unwrap();
}

fn remove(node: &Node, name: &str) {
    fs::remove_file(node.run().manifests().join(name)).unwrap();
}

fn put_pod(node: &Node, (key, role, host): (&str, &str, u8)) {
    let name = key.strip_prefix("a/").unwrap();
    let [v4, v6] = addresses(host);
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{role: {role}}}}}\n\
         status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n"
    );
    put(node, &format!("{name}.yaml"), &text);
}

/// A node with all pods and policies but the pod `new`, whose interface is not there yet.
fn node(tally: &Arc<Tally>) -> Node {
    let mut node = Node::start(&[]).unwrap();
    put(&node, "namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
    put(&node, "policies.yaml", POLICIES);
    for pod in PODS {
        node.add_pod(&PodAddresses::new(pod.0, &addresses(pod.2))).unwrap();
        node.serve(pod.0, Transport::Tcp, [PROBED]).unwrap();
        put_pod(&node, pod);
    }
    for place in ["a/server", "a/client"] {
        serve(&node, place, &[(Transport::Tcp, PORT), (Transport::Udp, PORT)], tally).unwrap();
    }
    remove(&node, "new.yaml");
    node.unplug("a/new").unwrap();
    node
}

fn flows(node: &Node) -> Vec<Flow> {
    let mut flows = Vec::new();
    for ipv6 in [false, true] {
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut add = |from: &str, to: &str, manner| {
                let at = SocketAddr::new(node.address(to, ipv6).unwrap(), PORT);
                flows.push(Flow { from: from.to_owned(), source: None, at, transport, manner });
            };
            add("a/client", "a/server", Manner::Stays);
            add("a/client", "a/server", Manner::ComesAnew);
            add(OUTSIDE, "a/server", Manner::Stays);
            add("a/denied", "a/server", Manner::Knocks);
            add("a/server", "a/client", Manner::Knocks);
        }
    }
    flows
}

fn other(version: Version) -> Version {
    match version {
        Version::This => Version::Next,
        Version::Next => Version::This,
    }
}

/// Options of an agent that attaches as `attach` says.
fn options(version: Version, attach: &str) -> Options {
    Options { version, arguments: vec![format!("--attach={attach}")], ..Options::default() }
}

fn start(node: &Node, version: Version) -> Agent {
    Agent::start(node, &options(version, "auto")).unwrap()
}

fn slots(settled: &Settled) -> BTreeMap<String, u32> {
    assert!(settled.endpoints.iter().all(|endpoint| endpoint.state == "enforced"), "{settled:?}");
    settled.endpoints.iter().map(|endpoint| (endpoint.pod.clone(), endpoint.slot)).collect()
}

/// Names of the pins: maps without their layout, and links.
fn pins(node: &Node) -> (Vec<String>, BTreeSet<String>) {
    let list = |what: &str| {
        let entries = fs::read_dir(node.node(NODE).unwrap().bpffs().join("netpol").join(what)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let mut maps: Vec<String> = list("maps").iter().map(|name| name.split("-v").next().unwrap().to_owned()).collect();
    maps.sort();
    (maps, list("links").into_iter().collect())
}

/// Each map is pinned once, and each pod has its two links (or the mark of its qdisc).
fn assert_no_remains(node: &Node) {
    let (maps, mut links) = pins(node);
    let uplink = node.namespace(NODE).unwrap().enter(|| nix::net::if_::if_nametoindex("eth0")).unwrap().unwrap();
    links.retain(|link| !link.starts_with(&format!("{uplink}-")));
    assert_eq!(maps.iter().collect::<BTreeSet<_>>().len(), maps.len(), "two layouts of a map: {maps:?}");
    let pods = PODS.iter().filter_map(|(key, ..)| node.interface_index(key).ok());
    let per_pod: &[&str] =
        if links.iter().any(|link| link.ends_with("clsact")) { &["clsact"] } else { &["from_pod", "to_pod"] };
    let expected = pods.flat_map(|index| per_pod.iter().map(move |what| format!("{index}-{what}")));
    assert_eq!(links, expected.collect());
}

/// The figures, if they are as they must be.
fn nothing_lost(node: &Node, tally: &Tally, what: &str) -> String {
    assert_eq!((tally.lost(), tally.leaked()), (0, 0), "{:#?}", tally.notes());
    for place in ["a/client", OUTSIDE] {
        assert_eq!(retransmitted(node, place).unwrap(), 0, "{place} had to send TCP segments again");
    }
    assert!(tally.asked() > 500 && tally.knocked() > 200, "too little traffic to mean anything");
    format!("{what}: {} questions, 0 lost; {} knocks, 0 leaked", tally.asked(), tally.knocked())
}

fn ask(node: &Node, from: &str, to: &str, limit: Duration) -> [Outcome; 2] {
    [false, true].map(|ipv6| {
        let probe = Probe::new(node, from, (to, Transport::Tcp, PROBED), ipv6).unwrap();
        node.probe(&probe, limit).unwrap()
    })
}

const PASSES: [Outcome; 2] = [Outcome::Answered, Outcome::Answered];
const SILENT: [Outcome; 2] = [Outcome::Silence, Outcome::Silence];

fn assert_policies(node: &Node) {
    assert_eq!(ask(node, "a/client", "a/server", PATIENCE), PASSES);
    assert_eq!(ask(node, OUTSIDE, "a/server", PATIENCE), PASSES);
    assert_eq!(ask(node, "a/client", "a/denied", SILENCE), SILENT);
    assert_eq!(ask(node, "a/denied", "a/server", SILENCE), SILENT);
    assert_eq!(ask(node, "a/server", "a/client", SILENCE), SILENT);
}

#[test]
fn upgrades_and_downgrades_lose_and_leak_nothing() {
    if has_both_agents() {
        println!("{}", upgrade_and_downgrade("tcx"));
    }
}

#[test]
fn upgrades_and_downgrades_lose_and_leak_nothing_on_kernels_without_tcx() {
    if has_both_agents() {
        println!("{}", upgrade_and_downgrade("clsact"));
    }
}

fn upgrade_and_downgrade(attach: &str) -> String {
    let tally = Arc::new(Tally::default());
    let node = node(&tally);
    let mut version = Version::This;
    let mut agent = Agent::start(&node, &options(version, attach)).unwrap();
    let mut opened = Vec::new();
    let first = slots(&agent.sync().unwrap());
    let upgrades = if is_full() { UPGRADES.1 } else { UPGRADES.0 };
    let agent = during(&node, &flows(&node), &tally, || {
        for round in 0..upgrades {
            if round % 2 == 0 {
                agent.kill()?
            } else {
                agent.stop()?
            };
            // A policy comes and goes while nobody looks.
            if round % 4 == 0 {
                put(&node, "opening.yaml", OPENING)
            } else if round % 4 == 2 {
                remove(&node, "opening.yaml")
            }
            version = other(version);
            agent = Agent::start(&node, &options(version, attach))?;
            assert_eq!(slots(&agent.sync()?), first, "slots carry over");
            assert_no_remains(&node);
            // What was opened while it was allowed goes on so long, and no longer.
            for connection in &mut opened {
                let (passes, limit) = if round % 4 < 2 { (true, PATIENCE) } else { (false, SILENCE) };
                let connection: &mut Connection = connection;
                assert_eq!(connection.passes(&node, Side::Server, limit)?, passes, "round {round}");
            }
            if round % 4 == 2 {
                opened.clear();
            }
            if round % 4 == 0 {
                let probe = Probe::new(&node, "a/denied", ("a/server", Transport::Tcp, PROBED), false)?;
                opened.push(Connection::open(&node, &probe)?);
            }
            let expected = if round % 4 < 2 { PASSES } else { SILENT };
            assert_eq!(ask(&node, "a/denied", "a/server", SILENCE), expected, "round {round}");
        }
        Ok(agent)
    })
    .unwrap();
    let figures = nothing_lost(&node, &tally, &format!("{upgrades} upgrades and downgrades with {attach}"));
    agent.stop().unwrap();
    cleanup(node.node(NODE).unwrap(), version, &[]).unwrap();
    assert!(!node.node(NODE).unwrap().bpffs().join("netpol").exists(), "clean-up leaves nothing");
    assert_eq!(ask(&node, "a/server", "a/client", PATIENCE), PASSES, "nothing is enforced any more");
    figures
}

#[test]
fn agents_killed_at_any_moment_of_their_start_are_healed_by_the_next() {
    if !has_both_agents() {
        return;
    }
    let tally = Arc::new(Tally::default());
    let node = node(&tally);
    let started = Instant::now();
    let first = start(&node, Version::This);
    let whole = started.elapsed();
    let before = slots(&first.sync().unwrap());
    let kills = if is_full() { KILLS.1 } else { KILLS.0 };
    let agent = during(&node, &flows(&node), &tally, || {
        first.kill()?;
        for number in 0..kills {
            // Every moment of a start, in a scattered order; two of one version in a row now and then.
            let moment = whole * (number * 7 % kills) / kills;
            let version = if number % 5 < 2 { Version::This } else { Version::Next };
            let agent = Agent::spawn(&node, &Options { version, ..Options::default() })?;
            thread::sleep(moment);
            agent.kill()?;
            if number % 3 == 0 {
                // The next has something to attach, too.
                node.unplug("a/old")?;
                node.plug("a/old", 0)?;
            }
        }
        let agent = start(&node, Version::Next);
        let mut after = slots(&agent.sync()?);
        after.insert("a/old".to_owned(), before.get("a/old").copied().unwrap());
        assert_eq!(after, before, "slots carry over");
        assert_no_remains(&node);
        Ok(agent)
    })
    .unwrap();
    println!("{}", nothing_lost(&node, &tally, &format!("{kills} starts cut short, of {whole:.1?}")));
    assert_policies(&node);
    agent.stop().unwrap();
    cleanup(node.node(NODE).unwrap(), Version::This, &[]).unwrap();
    assert!(!node.node(NODE).unwrap().bpffs().join("netpol").exists(), "clean-up leaves nothing");
}

#[test]
fn a_pod_that_came_while_no_agent_ran_inherits_nothing_of_the_one_that_went() {
    if !has_both_agents() {
        return;
    }
    let tally = Arc::new(Tally::default());
    let node = node(&tally);
    let agent = start(&node, Version::This);
    let before = slots(&agent.sync().unwrap());
    let agent = during(&node, &flows(&node), &tally, || {
        assert_eq!(ask(&node, "a/old", "a/server", PATIENCE), PASSES);
        assert_eq!(ask(&node, OUTSIDE, "a/old", SILENCE), SILENT);
        agent.kill()?;
        let index = node.interface_index("a/old")?;
        node.unplug("a/old")?;
        remove(&node, "old.yaml");
        node.plug("a/new", index)?;
        put_pod(&node, PODS[4]);
        assert_eq!(node.interface_index("a/new")?, index);
        let agent = start(&node, Version::Next);
        let after = slots(&agent.sync()?);
        assert!(!before.values().any(|slot| after.get("a/new") == Some(slot)), "{before:?}, {after:?}");
        assert_eq!(after.get("a/server"), before.get("a/server"));
        // It is not isolated as the old one was, and the server allows it nothing.
        assert_eq!(ask(&node, OUTSIDE, "a/new", PATIENCE), PASSES);
        assert_eq!(ask(&node, "a/new", "a/server", SILENCE), SILENT);
        assert_no_remains(&node);
        Ok(agent)
    })
    .unwrap();
    println!("{}", nothing_lost(&node, &tally, "a pod came, another went"));
    agent.stop().unwrap();
}

#[test]
fn after_a_reboot_nothing_is_believed_of_interfaces_that_have_the_indexes_of_others() {
    if !has_both_agents() {
        return;
    }
    let tally = Arc::new(Tally::default());
    let node = node(&tally);
    let present = ["a/server", "a/client", "a/denied", "a/old"];
    let mut before: BTreeMap<String, u32> = BTreeMap::new();
    for version in [Version::This, Version::Next, Version::Next] {
        let agent = start(&node, version);
        let now = slots(&agent.sync().unwrap());
        assert_eq!(now.len(), present.len());
        let inherits = |slot: &u32| before.values().any(|former| former == slot);
        assert!(!now.values().any(inherits), "all are behind other interfaces: {before:?}, {now:?}");
        before = now;
        assert_policies(&node);
        assert_no_remains(&node);
        let probe = Probe::new(&node, "a/old", ("a/server", Transport::Tcp, PROBED), false).unwrap();
        let mut connection = Connection::open(&node, &probe).unwrap();
        assert!(connection.passes(&node, Side::Server, PATIENCE).unwrap());
        agent.kill().unwrap();
        // All pods go, and come back with each other's indexes.
        let mut indexes: Vec<u32> = present.iter().map(|pod| node.interface_index(pod).unwrap()).collect();
        indexes.rotate_left(1);
        present.iter().for_each(|pod| node.unplug(pod).unwrap());
        present.iter().zip(indexes).for_each(|(pod, index)| node.plug(pod, index).unwrap());
    }
}
