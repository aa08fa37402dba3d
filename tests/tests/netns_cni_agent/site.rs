//! A node whose runtime has our plugin in its chain, an agent, a client and a stranger.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netpol_tests::agent::{Agent, Options};
use netpol_tests::cluster::Wired;
use netpol_tests::cni::{CniNode, Container, Network, Runtime};
use netpol_tests::footprint::{self, Footprint};
use netpol_tests::manifests::PodAddresses;
use netpol_tests::netns::Namespace;
use netpol_tests::node::{NODE, Node};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;

const NO_DAD: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];
pub(super) const API: (&str, &str, &str) = ("shop", "api", "u-api");
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// A node with an agent that installs its plugin, and a client and a stranger among its pods.
pub(super) struct Site {
    pub(super) agent: Option<Agent>,
    pub(super) node: Node,
}

impl Site {
    pub(super) fn new() -> Self {
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

    pub(super) fn start_agent(&mut self) {
        let options = Options { arguments: self.cni().flags().unwrap(), ..Options::default() };
        self.agent = Some(Agent::start(&self.node, &options).unwrap());
        self.wait("the plugin is not installed", || self.network().types().contains(&"netpol-cni"));
    }

    pub(super) fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    pub(super) fn wait(&self, otherwise: &str, until: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !until() {
            let status =
                self.agent.as_ref().map(|agent| agent.status().map_or_else(|it| it.to_string(), |it| it.to_string()));
            assert!(Instant::now() < deadline, "{otherwise}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn cni(&self) -> CniNode<'_> {
        CniNode::at(self.node.run(), self.node.node(NODE).unwrap().namespace())
    }

    pub(super) fn runtime(&self) -> Runtime<'_> {
        self.cni().runtime()
    }

    pub(super) fn network(&self) -> Network {
        self.runtime().network().unwrap()
    }

    /// A namespace for a pod, without interfaces.
    pub(super) fn sandbox(&self, label: &str) -> Namespace {
        let namespace = Namespace::create(self.node.run(), label).unwrap();
        namespace.set_sysctls(NO_DAD).unwrap();
        namespace
    }

    pub(super) fn container(&self, sandbox: &Namespace, id: &str, names: (&str, &str, &str)) -> Container {
        self.cni().container(sandbox, id, names)
    }

    /// ADD, after which the pod is one of the node's places.
    pub(super) fn add(&mut self, id: &str, names: (&str, &str, &str)) -> Container {
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

    pub(super) fn answers(&self, from: &str, to: &str, port: u16) -> [bool; 2] {
        [false, true].map(|ipv6| {
            let probe = Probe::new(&self.node, from, (to, Transport::Tcp, port), ipv6).unwrap();
            // An allowed one is answered at once; silence is waited for.
            let limit = if port == 7000 { PATIENCE } else { SILENCE };
            self.node.probe(&probe, limit).unwrap() == Outcome::Answered
        })
    }

    /// Whatever may be left of pods on the node: all of it as lines, and the entries of each map.
    pub(super) fn left(&self) -> (Footprint, BTreeMap<String, usize>) {
        let place = self.node.node(NODE).unwrap();
        let state: PathBuf = place.socket().with_extension("attachments");
        let directories = [place.bpffs().to_owned(), state, self.cni().cache_dir(), self.cni().conf_dir()];
        let footprint = Footprint::of(place.namespace(), &directories).unwrap();
        (footprint, footprint::entries(place.bpffs()).unwrap())
    }

    pub(super) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.agent().pid())).unwrap().count()
    }
}

pub(super) fn addresses(host: u16) -> [IpAddr; 2] {
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

/// What the plugins before ours do; returns their result.
pub(super) fn attach_without_us(site: &Site, container: &Container) -> serde_json::Value {
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
