//! Pods started by a container runtime through real plugins and ours, with the real agent: policed from the first packet on,
//! nothing left behind, whoever is killed when.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netpol_tests::agent::{Agent, Options};
use netpol_tests::cluster::Wired;
use netpol_tests::cni::{CniError, CniNode, Container, Network, Runtime};
use netpol_tests::footprint::{self, Footprint};
use netpol_tests::level::{has_agent, is_full};
use netpol_tests::manifests::PodAddresses;
use netpol_tests::netns::Namespace;
use netpol_tests::node::{NODE, Node};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use serde_json::json;

const NO_DAD: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];
const API: (&str, &str, &str) = ("shop", "api", "u-api");
const LIMIT: Duration = Duration::from_secs(30);
/// Pods that come and go in the quick tier, and in the full one.
const PODS: (u32, u32) = (60, 500);

/// A node with an agent that installs its plugin, and a client and a stranger among its pods.
struct Site {
    agent: Option<Agent>,
    node: Node,
}

impl Site {
    fn new() -> Self {
        let mut node = Node::start(&[]).unwrap();
        for (key, host) in [("shop/client", 111), ("shop/stranger", 112)] {
            node.add_pod(&PodAddresses::new(key, &addresses(host))).unwrap();
            for port in [7000, 7001] {
                node.serve(key, Transport::Tcp, [port]).unwrap();
            }
        }
        CniNode::new(node.run(), node.node(NODE).unwrap().namespace(), "1.0.0").unwrap();
        node.run().put_manifest("0-shop.yaml", MANIFEST).unwrap();
        let mut site = Self { agent: None, node };
        site.start_agent();
        site
    }

    fn start_agent(&mut self) {
        let options = Options { arguments: self.cni().flags().unwrap(), ..Options::default() };
        self.agent = Some(Agent::start(&self.node, &options).unwrap());
        self.wait("the plugin is not installed", || self.network().types().contains(&"netpol-cni"));
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn wait(&self, otherwise: &str, until: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !until() {
            let status =
                self.agent.as_ref().map(|agent| agent.status().map_or_else(|it| it.to_string(), |it| it.to_string()));
            assert!(Instant::now() < deadline, "{otherwise}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn cni(&self) -> CniNode<'_> {
        CniNode::at(self.node.run(), self.node.node(NODE).unwrap().namespace())
    }

    fn runtime(&self) -> Runtime<'_> {
        self.cni().runtime()
    }

    fn network(&self) -> Network {
        self.runtime().network().unwrap()
    }

    /// A namespace for a pod, without interfaces.
    fn sandbox(&self, label: &str) -> Namespace {
        let namespace = Namespace::create(self.node.run(), label).unwrap();
        namespace.set_sysctls(NO_DAD).unwrap();
        namespace
    }

    fn container(&self, sandbox: &Namespace, id: &str, names: (&str, &str, &str)) -> Container {
        self.cni().container(sandbox, id, names)
    }

    /// ADD, after which the pod is one of the node's places.
    fn add(&mut self, id: &str, names: (&str, &str, &str)) -> Container {
        let namespace = self.sandbox(id);
        let container = self.container(&namespace, id, names);
        let result = self.runtime().add(&self.network(), &container).unwrap();
        let ips = result["ips"].as_array().unwrap().iter();
        let addresses: Vec<IpAddr> =
            ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect();
        let interface = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        let key = format!("{}/{}", names.0, names.1);
        self.node.adopt_pod(NODE, &key, Wired { namespace, interface, addresses }).unwrap();
        container
    }

    fn answers(&self, from: &str, to: &str, port: u16) -> [bool; 2] {
        [false, true].map(|ipv6| {
            let probe = Probe::new(&self.node, from, (to, Transport::Tcp, port), ipv6).unwrap();
            // An allowed one is answered at once; silence is waited for.
            let limit = if port == 7000 { PATIENCE } else { SILENCE };
            self.node.probe(&probe, limit).unwrap() == Outcome::Answered
        })
    }

    /// Whatever may be left of pods on the node: all of it as lines, and the entries of each map.
    fn left(&self) -> (Footprint, BTreeMap<String, usize>) {
        let place = self.node.node(NODE).unwrap();
        let state: PathBuf = place.socket().with_extension("attachments");
        let directories = [place.bpffs().to_owned(), state, self.cni().cache_dir(), self.cni().conf_dir()];
        let footprint = Footprint::of(place.namespace(), &directories).unwrap();
        (footprint, footprint::entries(place.bpffs()).unwrap())
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.agent().pid())).unwrap().count()
    }
}

fn addresses(host: u16) -> [IpAddr; 2] {
    [format!("10.244.1.{host}").parse().unwrap(), format!("fd00:10:244:1::{host}").parse().unwrap()]
}

/// `api` has no address here: only the CNI plugin knows it. It may talk with `client` on port 7000, in both directions, and
/// with nobody else.
const MANIFEST: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, uid: u-client, labels: {app: client}}
status: {phase: Running, podIPs: [{ip: 10.244.1.111}, {ip: 'fd00:10:244:1::111'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: shop, uid: u-stranger, labels: {app: stranger}}
status: {phase: Running, podIPs: [{ip: 10.244.1.112}, {ip: 'fd00:10:244:1::112'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, uid: u-api, labels: {app: api}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 7000}]
  egress:
  - to: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 7000}]
";

#[test]
fn a_pod_is_policed_from_its_first_packet_on_at_the_address_that_only_the_plugin_knows() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new();
    for round in 0..3 {
        let id = format!("c{round}");
        let container = site.add(&id, API);
        // Nothing is waited for between the ADD and these.
        assert_eq!(site.answers("shop/api", "shop/client", 7000), [true; 2], "egress that is allowed");
        assert_eq!(site.answers("shop/api", "shop/client", 7001), [false; 2], "egress to another port");
        assert_eq!(site.answers("shop/api", "shop/stranger", 7001), [false; 2], "egress to another pod");
        site.node.serve("shop/api", Transport::Tcp, [7000, 7001]).unwrap();
        assert_eq!(site.answers("shop/client", "shop/api", 7000), [true; 2], "ingress that is allowed");
        assert_eq!(site.answers("shop/client", "shop/api", 7001), [false; 2], "ingress to another port");
        assert_eq!(site.answers("shop/stranger", "shop/api", 7001), [false; 2], "ingress from another pod");
        site.runtime().check(&site.network(), &container).unwrap();
        site.runtime().del(&site.network(), &container).unwrap();
        site.node.hand_back_pod("shop/api").unwrap().namespace.remove().unwrap();
    }
}

#[test]
fn pods_that_come_and_go_leave_nothing_behind() {
    if !has_agent() {
        return;
    }
    let site = Site::new();
    let (runtime, network) = (site.runtime(), site.network());
    let sandbox = site.sandbox("sandbox");
    let cycle = |number: u32| {
        let container = site.container(&sandbox, &format!("cycle{number}"), API);
        runtime.add(&network, &container).unwrap();
        runtime.del(&network, &container).unwrap();
    };
    // The first makes what stays: lock files, chains.
    cycle(0);
    let settle = || {
        site.wait("the pod's interface is still known", || site.agent().sync().is_ok_and(|it| it.endpoints.len() == 2))
    };
    settle();
    let (before, entries_before) = site.left();
    let descriptors_before = site.descriptors();
    let pods = if is_full() { PODS.1 } else { PODS.0 };
    let started = Instant::now();
    for number in 1..=pods {
        cycle(number);
    }
    println!("{pods} pods came and went in {:?}", started.elapsed());
    settle();
    site.wait("something is left", || {
        let (after, entries) = site.left();
        let more: Vec<_> =
            entries.iter().filter(|(map, count)| entries_before.get(*map).is_none_or(|it| it < count)).collect();
        let is_clean = after.since(&before).is_empty() && more.is_empty() && site.descriptors() <= descriptors_before;
        if !is_clean {
            println!("{:#?} {more:?} {} descriptors", after.since(&before), site.descriptors());
        }
        is_clean
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
fn whoever_is_killed_at_any_step_nothing_is_wrong_and_nothing_is_left() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new();
    let network = site.network();
    let sandbox = site.sandbox("sandbox");
    let warm = site.container(&sandbox, "warm", API);
    site.runtime().add(&network, &warm).unwrap();
    site.runtime().del(&network, &warm).unwrap();
    site.wait("the interface is still known", || site.agent().sync().is_ok_and(|it| it.endpoints.len() == 2));
    let (before, entries_before) = site.left();
    // The agent knows no such pod, so that it waits in the middle of the ADD.
    let unknown = site.container(&sandbox, "k1", ("shop", "unknown", "u-unknown"));
    let is_told = |site: &Site| {
        let state = site.node.node(NODE).unwrap().socket().with_extension("attachments");
        std::fs::read_dir(state).unwrap().count() > 0
    };
    for whom in ["plugin", "agent"] {
        let previous = attach_without_us(&site, &unknown);
        let runtime = site.runtime();
        let call = runtime.prepare("ADD", &network, "netpol-cni", (Some(&unknown), &previous)).unwrap();
        let mut running = call.start(Some(site.node.node(NODE).unwrap().namespace())).unwrap();
        running.feed().unwrap();
        site.wait("the agent was not told", || is_told(&site));
        if whom == "plugin" {
            running.kill().unwrap();
            runtime.del(&network, &unknown).unwrap();
        } else {
            site.agent.take().unwrap().kill().unwrap();
            let finished = running.finish().unwrap();
            assert_eq!(finished.json().unwrap()["code"], 11, "{finished:?}");
            // The kubelet's clean-up and its next try find no agent.
            site.runtime().del(&network, &unknown).unwrap();
            let refusal = site.runtime().add(&network, &unknown).unwrap_err().downcast::<CniError>().unwrap();
            assert_eq!(refusal.code, 11, "{refusal}");
            site.runtime().del(&network, &unknown).unwrap();
            site.start_agent();
            // Its record has nobody to end it but time, or the runtime's word of what is still there.
            let gc = json!({ "cni": "gc", "valid": [] });
            site.agent().request(&gc, LIMIT).unwrap();
        }
        site.wait("something is left", || {
            let (after, entries) = site.left();
            let is_clean = after.since(&before).is_empty() && entries == entries_before;
            if !is_clean {
                println!("{whom}: {:#?} {entries:?} {entries_before:?}", after.since(&before));
            }
            is_clean
        });
    }
    // A pod that was there when the agent was killed is policed all the while and after.
    let container = site.add("k2", API);
    site.node.serve("shop/api", Transport::Tcp, [7000, 7001]).unwrap();
    site.agent.take().unwrap().kill().unwrap();
    let assert_policed = |site: &Site| {
        assert_eq!(site.answers("shop/client", "shop/api", 7000), [true; 2]);
        assert_eq!(site.answers("shop/stranger", "shop/api", 7001), [false; 2]);
    };
    assert_policed(&site);
    site.start_agent();
    assert_policed(&site);
    site.runtime().check(&network, &container).unwrap();
    // It goes while the agent is away.
    site.agent.take().unwrap().kill().unwrap();
    site.runtime().del(&network, &container).unwrap();
    site.node.hand_back_pod("shop/api").unwrap().namespace.remove().unwrap();
    site.start_agent();
    let state = site.agent().sync().unwrap();
    assert_eq!(state.endpoints.len(), 2, "{state:?}");
}

/// What the plugins before ours do; returns their result.
fn attach_without_us(site: &Site, container: &Container) -> serde_json::Value {
    let runtime = site.runtime();
    let network = site.network();
    let mut result = serde_json::Value::Null;
    for plugin in ["bridge", "portmap"] {
        let call = runtime.prepare("ADD", &network, plugin, (Some(container), &result)).unwrap();
        let finished = call.run(Some(runtime.namespace)).unwrap();
        assert!(finished.status.success(), "{finished:?}");
        result = finished.json().unwrap();
    }
    result
}

#[test]
fn a_veth_that_comes_around_the_plugin_is_held_and_told() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new();
    site.node.add_pod(&PodAddresses::new("shop/around", &addresses(113))).unwrap();
    site.node.serve("shop/around", Transport::Tcp, [7001]).unwrap();
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: around, namespace: shop, uid: u-around}\nstatus: {phase: Running, podIPs: [{ip: 10.244.1.113}, {ip: 'fd00:10:244:1::113'}]}\n";
    site.node.run().put_manifest("1-around.yaml", manifest).unwrap();
    let interface = site.node.pod("shop/around").unwrap().interface().to_owned();
    let is_told = || {
        let status = site.agent().status().unwrap();
        status["problems"].as_array().unwrap().iter().any(|it| it.to_string().contains(&interface))
    };
    site.wait("nobody told of the interface", is_told);
    assert_eq!(site.answers("shop/around", "shop/stranger", 7001), [false; 2]);
    assert_eq!(site.answers("shop/stranger", "shop/around", 7001), [false; 2]);
}
