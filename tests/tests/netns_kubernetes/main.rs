//! Agents that follow an API server, pods that come by way of CNI plugins: the whole of a node but the kubelet itself.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

mod restart;
mod site;

use std::time::{Duration, Instant};

use netpol_agent::access;
use netpol_tests::agent::{Agent, Version, cleanup};
use netpol_tests::apiserver::Kind;
use netpol_tests::cni::CniError;
use netpol_tests::footprint::Footprint;
use netpol_tests::kubelet::PodSpec;
use netpol_tests::level::{has_agent, is_full};
use netpol_tests::probe::{Outcome, PATIENCE, SILENCE};
use netpol_tests::servers::Transport;
use serde_json::json;

use self::site::{Site, allow, client, pods_start_by_our_plugin, policy, server, stranger};

/// Peers whose delay is measured in the quick tier, and in the full one: enough for a 99th percentile.
const SAMPLES: (usize, usize) = (20, 200);

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
    for round in 0..if is_full() { SAMPLES.1 } else { SAMPLES.0 } {
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
        site.kubelets[0].end(&mut site.cluster, &sandbox).unwrap();
    }
    taken.sort();
    let (median, worst) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    // Of twenty none may be late; of two hundred, two.
    let p99 = taken[(taken.len() * 99).div_ceil(100) - 1];
    println!(
        "{} peers, from podIPs visible to allowed on the other node: median {median:?}, p99 {p99:?}, worst {worst:?}",
        taken.len()
    );
    assert!(p99 < Duration::from_millis(100), "{taken:?}");
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
