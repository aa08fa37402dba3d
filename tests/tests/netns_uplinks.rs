//! Devices through which packets leave the node: each gets its hook as it comes, which clears netpol's bits of the mark;
//! where it cannot, what pods send to services is dropped.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use netpol_tests::agent::{Agent, Options, binary};
use netpol_tests::level::has_agent;
use netpol_tests::manifests::PodAddresses;
use netpol_tests::node::{NODE, Node, OUTSIDE};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

const POD: &str = "default/client";
const LIMIT: Duration = Duration::from_secs(10);
/// Netpol's bits: a pod's packet that was judged, and one that is to be.
const MARKED: [u32; 2] = [0xff00_0000, 0x0500_0000];
/// Another's bit (kube-proxy's), which is to stay.
const FOREIGN: u32 = 0x4000;

fn node() -> Node {
    let mut node = Node::start(&[]).unwrap();
    node.add_pod(&PodAddresses::new(POD, &["10.244.1.11".parse().unwrap()])).unwrap();
    node
}

/// Runs a program in the node's namespace and returns what it printed.
fn run(node: &Node, line: &str) -> String {
    let name = node.namespace(NODE).unwrap().name();
    let output = Command::new("ip").args(["netns", "exec", name]).args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn send(node: &Node, to: &str, mark: u32) -> io::Result<usize> {
    let send = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        setsockopt(&socket, sockopt::Mark, &mark)?;
        socket.send_to(b"?", to)
    };
    node.namespace(NODE).unwrap().enter(send).unwrap()
}

fn until(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = agent.status().unwrap();
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {status:#}");
        sleep(Duration::from_millis(10));
    }
}

/// `attached` or `failed`; nothing for a device that is no uplink.
fn state<'a>(status: &'a Value, device: &str) -> Option<&'a str> {
    let uplinks = status["uplinks"].as_array().unwrap();
    uplinks.iter().find(|uplink| uplink["name"] == device).map(|uplink| uplink["state"].as_str().unwrap())
}

/// What a named counter of nftables has seen.
fn packets(node: &Node, counter: &str) -> u64 {
    let shown = run(node, &format!("nft list counter inet test {counter}"));
    shown.split_whitespace().skip_while(|word| *word != "packets").nth(1).unwrap().parse().unwrap()
}

/// A vxlan device and a veth pair whose ends are both here, with neighbours that need no asking.
fn add_devices(node: &Node) {
    run(node, "ip link add flannel.1 type vxlan id 1 local 192.0.2.10 remote 192.0.2.100 dstport 8472 dev eth0");
    run(node, "ip link add loop0 type veth peer name loop1");
    for (device, subnet) in [("flannel.1", 2), ("loop0", 3)] {
        run(node, &format!("ip addr add 10.244.{subnet}.1/24 dev {device}"));
        run(node, &format!("ip link set {device} up"));
        run(node, &format!("ip neigh add 10.244.{subnet}.2 lladdr 02:00:00:00:00:02 dev {device}"));
    }
    run(node, "ip link set loop1 up");
}

#[test]
fn devices_that_come_later_clear_the_mark_and_keep_the_bits_of_others() {
    if !has_agent() {
        return;
    }
    let node = node();
    let agent = Agent::start(&node, &Options::default()).unwrap();
    let status = agent.status().unwrap();
    assert_eq!(state(&status, "eth0"), Some("attached"), "{status:#}");
    assert_eq!([state(&status, "lo"), state(&status, "cni0")], [None; 2], "{status:#}");
    assert_eq!(state(&status, node.pod(POD).unwrap().interface()), None, "{status:#}");
    add_devices(&node);
    until(&agent, "all attached", |status| {
        ["flannel.1", "loop0", "loop1"].iter().all(|device| state(status, device) == Some("attached"))
    });
    run(&node, "nft add table inet test");
    for counter in ["outer", "outer_marked", "looped", "looped_marked"] {
        run(&node, &format!("nft add counter inet test {counter}"));
    }
    run(&node, "nft add chain inet test leaves { type filter hook postrouting priority 300 ; }");
    run(&node, "nft add chain inet test comes { type filter hook ingress device loop1 priority 0 ; }");
    for (chain, counter) in [("leaves udp dport 8472", "outer"), ("comes ip daddr 10.244.3.2", "looped")] {
        run(&node, &format!("nft add rule inet test {chain} meta mark & 0x00ffffff == 0x4000 counter name {counter}"));
        run(
            &node,
            &format!("nft add rule inet test {chain} meta mark & 0xff000000 != 0 counter name {counter}_marked"),
        );
    }
    let send_all = || {
        for mark in MARKED {
            for to in ["10.244.2.2:9", "10.244.3.2:9"] {
                send(&node, to, mark | FOREIGN).unwrap();
            }
        }
        ["outer", "outer_marked", "looped", "looped_marked"].map(|counter| packets(&node, counter))
    };
    assert_eq!(send_all(), [2, 0, 2, 0]);
    let status = agent.status().unwrap();
    assert_eq!(status["backstop"]["dropped"]["packets"], 0, "{status:#}");
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status:#}");
    agent.stop().unwrap();
    assert_eq!(send_all(), [4, 0, 4, 0], "what is enforced stays so without the agent");
    let (binary, bpffs) = (binary().unwrap(), node.run().bpffs());
    run(&node, &format!("{} cleanup --bpffs {}", binary.display(), bpffs.display()));
    assert_eq!(send_all(), [6, 2, 6, 2], "nothing of netpol is left to clear a mark");
    assert!(!run(&node, "nft list tables").contains("netpol"));
    let agent = Agent::start(&node, &Options::default()).unwrap();
    run(&node, "ip link del flannel.1");
    run(&node, "ip link set loop0 master cni0");
    let status = until(&agent, "flannel.1 gone", |status| state(status, "flannel.1").is_none());
    assert_eq!(state(&status, "loop0"), Some("attached"), "a port of a bridge is as good as any");
}

#[test]
fn a_device_that_cannot_have_the_hook_lets_nothing_deferred_out_until_it_can() {
    if !has_agent() {
        return;
    }
    let node = node();
    add_devices(&node);
    // In the way of the qdisc that the hook's filter would be put on.
    run(&node, "tc qdisc add dev loop0 ingress");
    let options = Options { arguments: ["--attach", "clsact"].map(str::to_owned).to_vec(), ..Options::default() };
    let agent = Agent::start(&node, &options).unwrap();
    let status = agent.status().unwrap();
    assert_eq!(
        (state(&status, "loop0"), state(&status, "flannel.1")),
        (Some("failed"), Some("attached")),
        "{status:#}"
    );
    let problem = &status["problems"][0];
    assert_eq!(problem["object"], "device loop0", "{status:#}");
    assert!(problem["effect"].as_str().unwrap().contains("dropped"), "{status:#}");
    let [judged, deferred] = MARKED;
    send(&node, "10.244.3.2:9", deferred).unwrap_err();
    send(&node, "10.244.3.2:9", judged).unwrap();
    send(&node, "10.244.3.2:9", 0).unwrap();
    send(&node, "10.244.2.2:9", deferred).unwrap();
    assert_eq!(agent.status().unwrap()["backstop"]["dropped"]["packets"], 1);
    // Stopping the agent opens nothing.
    agent.stop().unwrap();
    send(&node, "10.244.3.2:9", deferred).unwrap_err();
    let agent = Agent::start(&node, &options).unwrap();
    send(&node, "10.244.3.2:9", deferred).unwrap_err();
    run(&node, "tc qdisc del dev loop0 ingress");
    let status = until(&agent, "loop0 attached", |status| state(status, "loop0") == Some("attached"));
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status:#}");
    send(&node, "10.244.3.2:9", deferred).unwrap();
    assert_eq!(status["backstop"]["dropped"]["packets"], 3, "{status:#}");
    run(&node, "nft flush ruleset");
    until(&agent, "the table is made again", |status| status["backstop"]["state"] == "in-force");
}

/// A pod, two services that kube-proxy would translate to ports of a host outside, and a policy that allows one of them.
const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: default}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default},
 spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{port: 80}, {port: 81}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 192.0.2.100/32}}], ports: [{port: 8080}]}]
"#;

#[test]
fn egress_to_a_service_is_judged_at_the_uplink_on_the_backend() {
    if !has_agent() {
        return;
    }
    let node = node();
    node.serve(OUTSIDE, Transport::Tcp, [8080, 8081]).unwrap();
    fs::write(node.run().manifests().join("all.yaml"), MANIFESTS).unwrap();
    run(&node, "nft add table ip proxy");
    run(&node, "nft add chain ip proxy translate { type nat hook prerouting priority dstnat ; }");
    for (port, backend) in [(80, 8080), (81, 8081)] {
        let to = format!("ip daddr 10.96.0.10 tcp dport {port} dnat to 192.0.2.100:{backend}");
        run(&node, &format!("nft add rule ip proxy translate {to}"));
    }
    let probe = |port: u16, limit| {
        let at = format!("10.96.0.10:{port}").parse().unwrap();
        let probe = Probe { from: POD.to_owned(), to: OUTSIDE.to_owned(), at, transport: Transport::Tcp };
        node.probe(&probe, limit).unwrap()
    };
    assert_eq!([probe(80, PATIENCE), probe(81, PATIENCE)], [Outcome::Answered, Outcome::Answered], "without netpol");
    let agent = Agent::start(&node, &Options::default()).unwrap();
    let status = agent.status().unwrap();
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status:#}");
    assert_eq!(probe(80, PATIENCE), Outcome::Answered);
    assert_eq!(probe(81, SILENCE), Outcome::Silence);
    let counters = agent.counters().unwrap();
    let count = |reason: &str| {
        let found = counters.iter().filter(|it| it.reason == reason && it.direction == "egress");
        found.map(|counter| counter.packets).sum::<u64>()
    };
    assert!(count("allowed-after-translation") > 0 && count("denied-after-translation") > 0, "{counters:?}");
    let figures = agent.request(&serde_json::json!({ "request": "counters" }), LIMIT).unwrap();
    let total = &figures["translation"]["total"];
    assert_eq!(total["judged"], count("allowed-after-translation") + count("denied-after-translation"), "{total}");
    assert_eq!(total["deferred"], count("deferred"), "{total}");
    assert_eq!(total["unjudged"], 0, "{total}");
    assert_eq!(figures["translation"]["pods"][0]["pod"], POD, "{figures:#}");
}
