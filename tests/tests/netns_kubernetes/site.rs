//! Nodes with kubelets, an API server beside them, and pods that play clients and servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_tests::agent::Agent;
use netpol_tests::apiserver::ApiServer;
use netpol_tests::cluster::Cluster;
use netpol_tests::kubelet::{Kubelet, PodSpec, Sandbox, api_server};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use serde_json::{Value, json};

/// Longest that an agent may take to start, or to see the cluster, on a busy machine.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) const PORT: u16 = 8080;

/// Nobody gets in but clients, to servers, on one port; nobody gets out but to servers.
pub(super) fn policies(api: &ApiServer) {
    for name in ["shop", "other"] {
        api.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "team": name } } }));
    }
    api.apply(&policy("default-deny", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] })));
    api.apply(&policy("clients-to-servers", &allow("client")));
}

pub(super) fn policy(name: &str, spec: &Value) -> Value {
    let metadata = json!({ "namespace": "shop", "name": name });
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec })
}

pub(super) fn allow(role: &str) -> Value {
    json!({
        "podSelector": { "matchLabels": { "role": "server" } },
        "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "role": role } } }],
            "ports": [{ "port": PORT }, { "port": PORT, "protocol": "UDP" }],
        }],
    })
}

/// A cluster with its API server, and kubelets of its nodes.
pub(super) struct Site {
    pub(super) api: Arc<ApiServer>,
    pub(super) kubelets: Vec<Kubelet>,
    pub(super) cluster: Cluster,
    pods: usize,
}

impl Site {
    pub(super) fn new(nodes: &[&str]) -> Self {
        let cluster = Cluster::start(nodes, &[]).unwrap();
        let api = Arc::new(api_server(&cluster).unwrap());
        policies(&api);
        let kubelets =
            (1..).zip(nodes).map(|(number, node)| Kubelet::new(&cluster, api.clone(), node, number).unwrap());
        Self { kubelets: kubelets.collect(), api, cluster, pods: 0 }
    }

    pub(super) fn agent(&self, node: usize) -> Agent {
        Agent::start(&self.cluster, &self.kubelets[node].agent_options().unwrap()).unwrap()
    }

    pub(super) fn id(&mut self) -> String {
        self.pods += 1;
        format!("sandbox{}", self.pods)
    }

    /// A pod up to where its containers run; its status has no addresses yet.
    pub(super) fn start(&mut self, node: usize, spec: &PodSpec) -> Sandbox {
        let id = self.id();
        let sandbox = self.kubelets[node].start(&mut self.cluster, spec, &id).unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            self.cluster.serve(&spec.key(), transport, [PORT]).unwrap();
        }
        sandbox
    }

    pub(super) fn ask(&self, from: &str, to: &str, (transport, ipv6): (Transport, bool), limit: Duration) -> Outcome {
        let probe = Probe::new(&self.cluster, from, (to, transport, PORT), ipv6).unwrap();
        self.cluster.probe(&probe, limit).unwrap()
    }

    /// Every way from one place to another.
    pub(super) fn reaches(&self, from: &str, to: &str) -> Vec<Outcome> {
        let ways = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|way| [(way, false), (way, true)]);
        ways.map(|(way, ipv6)| self.ask(from, to, (way, ipv6), PATIENCE)).collect()
    }

    pub(super) fn is_refused(&self, from: &str, to: &str) -> bool {
        let ways = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|way| [(way, false), (way, true)]);
        ways.into_iter().all(|(way, ipv6)| self.ask(from, to, (way, ipv6), SILENCE) == Outcome::Silence)
    }
}

pub(super) fn server(name: &str) -> PodSpec {
    PodSpec::new("shop", name, ("role", "server"))
}

pub(super) fn client(name: &str) -> PodSpec {
    PodSpec::new("shop", name, ("role", "client"))
}

pub(super) fn stranger(name: &str) -> PodSpec {
    PodSpec::new("other", name, ("role", "client"))
}

pub(super) fn pods_start_by_our_plugin(site: &Site, node: usize) {
    let limit = Instant::now() + Duration::from_secs(10);
    let kubelet = &site.kubelets[node];
    loop {
        let network = kubelet.cni(&site.cluster).unwrap().runtime().network().unwrap();
        if network.types().last() == Some(&"netpol-cni") {
            return;
        }
        assert!(Instant::now() < limit, "the plugin is not in the chain: {:?}", network.types());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Site {
    /// A pod that came around our plugin, up to where its containers run.
    pub(super) fn start_around(&mut self, node: usize, spec: &PodSpec) {
        let id = self.id();
        self.kubelets[node].start_around(&mut self.cluster, spec, &id).unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            self.cluster.serve(&spec.key(), transport, [PORT]).unwrap();
        }
    }

    /// An agent that finds the API server away; it serves its socket.
    pub(super) fn agent_without_api(&self, node: usize) -> Agent {
        let agent = Agent::spawn(&self.cluster, &self.kubelets[node].agent_options().unwrap()).unwrap();
        self.wait("the agent does not serve its socket without an API server", || agent.status().is_ok());
        agent
    }

    pub(super) fn wait(&self, otherwise: &str, until: impl Fn() -> bool) {
        let limit = Instant::now() + LONG;
        while !until() {
            assert!(Instant::now() < limit, "{otherwise}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
