//! Agents that follow an API server, pods that come by way of CNI plugins: the whole of a node but the kubelet itself.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_agent::access;
use netpol_tests::agent::{Agent, Version, cleanup};
use netpol_tests::apiserver::{ApiServer, Kind};
use netpol_tests::cluster::Cluster;
use netpol_tests::cni::CniError;
use netpol_tests::footprint::Footprint;
use netpol_tests::kubelet::{Kubelet, PodSpec, Sandbox, api_server};
use netpol_tests::level::has_agent;
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use serde_json::{Value, json};

const PORT: u16 = 8080;

/// Nobody gets in but clients, to servers, on one port; nobody gets out but to servers.
fn policies(api: &ApiServer) {
    for name in ["shop", "other"] {
        api.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "team": name } } }));
    }
    api.apply(&policy("default-deny", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] })));
    api.apply(&policy("clients-to-servers", &allow("client")));
}

fn policy(name: &str, spec: &Value) -> Value {
    let metadata = json!({ "namespace": "shop", "name": name });
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec })
}

fn allow(role: &str) -> Value {
    json!({
        "podSelector": { "matchLabels": { "role": "server" } },
        "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "role": role } } }],
            "ports": [{ "port": PORT }, { "port": PORT, "protocol": "UDP" }],
        }],
    })
}

/// A cluster with its API server, and kubelets of its nodes.
struct Site {
    api: Arc<ApiServer>,
    kubelets: Vec<Kubelet>,
    cluster: Cluster,
    pods: usize,
}

impl Site {
    fn new(nodes: &[&str]) -> Self {
        let cluster = Cluster::start(nodes, &[]).unwrap();
        let api = Arc::new(api_server(&cluster).unwrap());
        policies(&api);
        let kubelets =
            (1..).zip(nodes).map(|(number, node)| Kubelet::new(&cluster, api.clone(), node, number).unwrap());
        Self { kubelets: kubelets.collect(), api, cluster, pods: 0 }
    }

    fn agent(&self, node: usize) -> Agent {
        Agent::start(&self.cluster, &self.kubelets[node].agent_options().unwrap()).unwrap()
    }

    fn id(&mut self) -> String {
        self.pods += 1;
        format!("sandbox{}", self.pods)
    }

    /// A pod up to where its containers run; its status has no addresses yet.
    fn start(&mut self, node: usize, spec: &PodSpec) -> Sandbox {
        let id = self.id();
        let sandbox = self.kubelets[node].start(&mut self.cluster, spec, &id).unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            self.cluster.serve(&spec.key(), transport, [PORT]).unwrap();
        }
        sandbox
    }

    fn ask(&self, from: &str, to: &str, (transport, ipv6): (Transport, bool), limit: Duration) -> Outcome {
        let probe = Probe::new(&self.cluster, from, (to, transport, PORT), ipv6).unwrap();
        self.cluster.probe(&probe, limit).unwrap()
    }

    /// Every way from one place to another.
    fn reaches(&self, from: &str, to: &str) -> Vec<Outcome> {
        let ways = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|way| [(way, false), (way, true)]);
        ways.map(|(way, ipv6)| self.ask(from, to, (way, ipv6), PATIENCE)).collect()
    }

    fn is_refused(&self, from: &str, to: &str) -> bool {
        let ways = [Transport::Tcp, Transport::Udp].into_iter().flat_map(|way| [(way, false), (way, true)]);
        ways.into_iter().all(|(way, ipv6)| self.ask(from, to, (way, ipv6), SILENCE) == Outcome::Silence)
    }
}

fn server(name: &str) -> PodSpec {
    PodSpec::new("shop", name, ("role", "server"))
}

fn client(name: &str) -> PodSpec {
    PodSpec::new("shop", name, ("role", "client"))
}

fn stranger(name: &str) -> PodSpec {
    PodSpec::new("other", name, ("role", "client"))
}

fn pods_start_by_our_plugin(site: &Site, node: usize) {
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

#[test]
fn verdicts_on_a_node_are_right_from_packet_one_before_any_status_says_an_address() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["worker"]);
    let agent = site.agent(0);
    pods_start_by_our_plugin(&site, 0);
    for round in 0..3 {
        let (to, from, other) = (format!("server{round}"), format!("client{round}"), format!("stranger{round}"));
        site.start(0, &server(&to));
        site.start(0, &client(&from));
        site.start(0, &stranger(&other));
        let key = |namespace: &str, name: &str| format!("{namespace}/{name}");
        // The very first packet of each: a SYN that is lost is not sent again within the time of a silence.
        for (transport, ipv6) in [(Transport::Tcp, false), (Transport::Udp, true)] {
            let outcome =
                site.ask(&key("shop", &from), &key("shop", &to), (transport, ipv6), Duration::from_millis(900));
            assert_eq!(outcome, Outcome::Answered, "round {round}, {transport:?}");
        }
        assert!(site.is_refused(&key("other", &other), &key("shop", &to)));
    }
    agent.stop().unwrap();
}

#[test]
fn a_remote_peer_counts_soon_after_its_address_is_visible() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["near", "far"]);
    let (near, far) = (site.agent(0), site.agent(1));
    pods_start_by_our_plugin(&site, 0);
    let to = site.start(1, &server("server"));
    site.kubelets[1].report(&to);
    let mut taken = Vec::new();
    for round in 0..20 {
        let spec = client(&format!("client{round}"));
        let sandbox = site.start(0, &spec);
        assert_eq!(
            site.ask(&spec.key(), "shop/server", (Transport::Udp, false), SILENCE),
            Outcome::Silence,
            "not known there yet"
        );
        let visible = Instant::now();
        site.kubelets[0].report(&sandbox);
        while site.ask(&spec.key(), "shop/server", (Transport::Udp, false), Duration::from_millis(5))
            != Outcome::Answered
        {
            assert!(visible.elapsed() < PATIENCE, "{} never counts", spec.key());
        }
        taken.push(visible.elapsed());
    }
    taken.sort();
    println!("from podIPs visible to allowed on the other node: {taken:?}");
    let worst = taken.last().unwrap();
    assert!(*worst < Duration::from_millis(100), "{taken:?}");
    near.stop().unwrap();
    far.stop().unwrap();
}

#[test]
fn enforcement_goes_on_without_the_api_server_and_new_pods_wait_for_it() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["worker"]);
    let agent = site.agent(0);
    pods_start_by_our_plugin(&site, 0);
    for spec in [server("server"), client("client"), stranger("stranger")] {
        let sandbox = site.start(0, &spec);
        site.kubelets[0].report(&sandbox);
    }
    let is_as_before = |site: &Site| {
        assert_eq!(site.reaches("shop/client", "shop/server"), vec![Outcome::Answered; 4]);
        assert!(site.is_refused("other/stranger", "shop/server"));
    };
    is_as_before(&site);
    site.api.set_away(true);
    is_as_before(&site);
    // Another agent finds the API server away: what is pinned goes on, and nobody new comes in.
    agent.kill().unwrap();
    let agent = Agent::spawn(&site.cluster, &site.kubelets[0].agent_options().unwrap()).unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    while agent.status().is_err() {
        assert!(Instant::now() < limit, "the agent does not serve its socket without an API server");
        is_as_before(&site);
    }
    is_as_before(&site);
    let spec = client("late");
    let uid = site.kubelets[0].create(&spec);
    let id = site.id();
    let (namespace, mut sandbox) = site.kubelets[0].sandbox(&site.cluster, &spec, (&id, &uid)).unwrap();
    let error = site.kubelets[0].attach(&site.cluster, &mut sandbox).unwrap_err();
    let error = error.downcast_ref::<CniError>().unwrap();
    assert_eq!((error.plugin.as_str(), error.code), ("netpol-cni", 11), "{error}");
    assert!(error.message.contains("whole cluster"), "{error}");
    site.kubelets[0].detach(&site.cluster, &sandbox).unwrap();
    namespace.remove().unwrap();
    is_as_before(&site);
    // It comes back with another cluster than it had.
    site.api.delete(Kind::NetworkPolicy, "shop", "clients-to-servers");
    site.api.apply(&policy("new-clients", &allow("new-client")));
    site.api.compact();
    site.api.set_away(false);
    let limit = Instant::now() + Duration::from_secs(60);
    while !site.is_refused("shop/client", "shop/server") {
        assert!(Instant::now() < limit, "the new policies never count");
        assert!(site.is_refused("other/stranger", "shop/server"));
    }
    site.start(0, &PodSpec::new("shop", "new", ("role", "new-client")));
    assert_eq!(site.reaches("shop/new", "shop/server"), vec![Outcome::Answered; 4]);
    agent.stop().unwrap();
    // What the agents asked of the API server is what the chart's role grants them.
    let asked = site.api.take_requests();
    assert!(asked.iter().any(|line| line.contains("watch=")), "{asked:?}");
    assert_eq!(access::unlisted(access::AGENT, &asked), [""; 0]);
}

#[test]
fn after_a_reboot_without_the_api_server_no_pod_runs_unpoliced() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["worker"]);
    let agent = site.agent(0);
    pods_start_by_our_plugin(&site, 0);
    let sandbox = site.start(0, &server("server"));
    site.kubelets[0].report(&sandbox);
    // What a reboot leaves: files outside /run, so the CNI configuration, and what the API server has of the pod.
    agent.kill().unwrap();
    site.api.set_away(true);
    site.kubelets[0].detach(&site.cluster, &sandbox).unwrap();
    site.cluster.hand_back_pod("shop/server").unwrap().namespace.remove().unwrap();
    cleanup(site.cluster.node("worker").unwrap(), Version::This, &[]).unwrap();
    pods_start_by_our_plugin(&site, 0);
    let refused = |site: &mut Site, because: &str| {
        let spec = server("server");
        let id = site.id();
        let (namespace, mut sandbox) = site.kubelets[0].sandbox(&site.cluster, &spec, (&id, "")).unwrap();
        let error = site.kubelets[0].attach(&site.cluster, &mut sandbox).unwrap_err();
        let error = error.downcast_ref::<CniError>().unwrap();
        assert!(error.code == 11 && error.message.contains(because), "{error}");
        site.kubelets[0].detach(&site.cluster, &sandbox).unwrap();
        namespace.remove().unwrap();
    };
    refused(&mut site, "netpol-agent is not there");
    let agent = Agent::spawn(&site.cluster, &site.kubelets[0].agent_options().unwrap()).unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    while agent.status().is_err() {
        assert!(Instant::now() < limit, "the agent does not serve its socket without an API server");
        std::thread::sleep(Duration::from_millis(50));
    }
    refused(&mut site, "whole cluster");
    site.api.set_away(false);
    let limit = Instant::now() + Duration::from_secs(60);
    while agent.status().unwrap()["source"]["synced"] != true {
        assert!(Instant::now() < limit, "the agent never sees the cluster: {}", agent.status().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    site.start(0, &server("server"));
    site.start(0, &client("client"));
    site.start(0, &stranger("stranger"));
    assert_eq!(site.reaches("shop/client", "shop/server"), vec![Outcome::Answered; 4]);
    assert!(site.is_refused("other/stranger", "shop/server"));
    agent.stop().unwrap();
}

impl Site {
    /// All that netpol could leave on the node.
    fn footprint(&self) -> Footprint {
        let place = self.cluster.node("worker").unwrap();
        let cni = self.kubelets[0].cni(&self.cluster).unwrap();
        let state = place.socket().with_extension("attachments");
        let places = [cni.conf_dir(), cni.bin_dir(), place.bpffs().to_owned(), place.socket().to_owned(), state];
        Footprint::of(place.namespace(), &places).unwrap()
    }
}

#[test]
fn a_node_that_netpol_was_taken_off_is_as_it_was() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["worker"]);
    // What the other plugins leave of a first pod is theirs.
    let first = site.start(0, &server("first"));
    site.kubelets[0].end(&mut site.cluster, &first).unwrap();
    let before = site.footprint();
    for is_killed in [false, true] {
        let agent = site.agent(0);
        pods_start_by_our_plugin(&site, 0);
        let sandbox = site.start(0, &server("server"));
        assert_ne!(site.footprint(), before);
        if is_killed {
            agent.kill().unwrap();
            cleanup_of(&site);
        } else {
            for _twice in 0..2 {
                let answer = agent.request(&json!({ "request": "retire" }), PATIENCE).unwrap();
                assert_eq!(answer["retired"], true, "{answer}");
            }
            // It idles: nothing comes back, and whoever asks is told so.
            let error = agent.request(&json!({ "request": "status" }), PATIENCE).unwrap_err().to_string();
            assert!(error.contains("retired"), "{error}");
            agent.stop().unwrap();
        }
        // A pod that runs on is open now, and its end needs nobody.
        site.kubelets[0].end(&mut site.cluster, &sandbox).unwrap();
        assert_eq!(site.footprint().since(&before), Vec::<String>::new(), "killed first: {is_killed}");
    }
    // Twice is as good as once.
    cleanup_of(&site);
    assert_eq!(site.footprint().since(&before), Vec::<String>::new());
}

fn cleanup_of(site: &Site) {
    let cni = site.kubelets[0].cni(&site.cluster).unwrap();
    let places = ["--cni-conf-dir".into(), cni.conf_dir(), "--cni-bin-dir".into(), cni.bin_dir()];
    cleanup(site.cluster.node("worker").unwrap(), Version::This, &places).unwrap();
}
