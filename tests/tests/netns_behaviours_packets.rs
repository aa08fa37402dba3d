//! The scenarios of `tests/corpora/behaviours.json` about services, self, ICMP, neighbours and fragments, each as a test of
//! its name; and the table that none is missing.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use netpol_tests::arrivals::Arrivals;
use netpol_tests::attack::arena::{Arena, Ground, POLICIES};
use netpol_tests::attack::headers;
use netpol_tests::behaviours::{FAMILIES, Stage};
use netpol_tests::kube_proxy::{Form, Table};
use netpol_tests::level::has_agent;
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport::{self, Tcp, Udp};
use netpol_tests::services::{NODES, Policed, Way, egress, ingress, policy};

const WEB: (Transport, u16) = (Tcp, 80);
const SEALED: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress]}";
/// Pods labelled b of x may reach x/a on port 80, by both protocols.
const WEB_FROM_B: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: \
                          [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}, {port: 80, protocol: UDP}]}]}";

fn stage() -> Option<Stage> {
    has_agent().then(|| Stage::start().unwrap())
}

fn policed() -> Option<Policed> {
    has_agent().then(|| Policed::start(Form::any().unwrap()).unwrap())
}

fn outcomes(policed: &Policed, from: &str, to: (&str, Way), wanted: &Outcome) {
    for ipv6 in FAMILIES {
        for transport in [Tcp, Udp] {
            let probe = policed.services.probe(from, to, transport, ipv6).unwrap();
            let limit = if *wanted == Outcome::Silence { SILENCE } else { PATIENCE };
            assert_eq!(policed.services.cluster.probe(&probe, limit).unwrap(), *wanted, "{probe}");
        }
    }
}

#[test]
fn svc_clusterip_egress() {
    let Some(policed) = policed() else { return };
    policed.put("90.yaml", &egress("client", &["near", "far"])).unwrap();
    for backend in ["near", "far"] {
        outcomes(&policed, "shop/client", (backend, Way::ClusterIp), &Outcome::Answered);
    }
    outcomes(&policed, "shop/client", ("near-db", Way::ClusterIp), &Outcome::Silence);
}

#[test]
fn svc_clusterip_egress_deny() {
    let Some(policed) = policed() else { return };
    policed.put("90.yaml", &egress("client", &["near"])).unwrap();
    // One service, two backends.
    let services = &policed.services;
    let far: Vec<_> = services.table().services.iter().filter(|it| it.name.starts_with("shop/far:")).cloned().collect();
    let mut table = Table { services: services.table().services.clone(), host_ports: Vec::new() };
    for service in table.services.iter_mut().filter(|it| it.name.starts_with("shop/near:")) {
        let same = far.iter().filter(|it| it.transport == service.transport);
        service.endpoints.extend(same.flat_map(|it| it.endpoints.clone()));
    }
    services.cluster.kube_proxy(services.form()).sync(&table).unwrap();
    let mut arrivals: Arrivals = services.cluster.watch("shop/far").unwrap();
    let probe = services.probe("shop/client", ("near", Way::ClusterIp), Tcp, false).unwrap();
    let probes: Vec<Probe> = vec![probe; 40];
    let outcomes = services.cluster.probe_all(&probes, SILENCE * 2).unwrap();
    let answered = outcomes.iter().filter(|it| **it == Outcome::Answered).count();
    let silent = outcomes.iter().filter(|it| **it == Outcome::Silence).count();
    assert!(answered > 0 && silent > 0 && answered + silent == probes.len(), "{outcomes:?}");
    assert_eq!(arrivals.at_port(Tcp, 8080).unwrap(), 0, "a denied backend was reached");
}

/// Our choice: a block is about the backend; one that holds the virtual address alone allows nothing.
#[test]
fn svc_vip_in_ipblock() {
    let Some(policed) = policed() else { return };
    let rules = "[{to: [{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: \"fd00:10:96::/64\"}}]}]";
    policed.put("90.yaml", &policy("client", "egress", rules)).unwrap();
    outcomes(&policed, "shop/client", ("near", Way::ClusterIp), &Outcome::Silence);
    let rules = "[{to: [{ipBlock: {cidr: 10.244.0.0/16}}, {ipBlock: {cidr: \"fd00:10:244::/48\"}}]}]";
    policed.put("90.yaml", &policy("client", "egress", rules)).unwrap();
    outcomes(&policed, "shop/client", ("near", Way::ClusterIp), &Outcome::Answered);
}

/// Our choice: judged after translation, as any outside address.
#[test]
fn svc_external_vip_egress() {
    let Some(policed) = policed() else { return };
    let rules = "[{to: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: \"2001:db8:100::/64\"}}]}]";
    policed.put("90.yaml", &policy("client", "egress", rules)).unwrap();
    outcomes(&policed, "shop/client", ("away", Way::ClusterIp), &Outcome::Answered);
    policed.put("90.yaml", &egress("client", &["near"])).unwrap();
    outcomes(&policed, "shop/client", ("away", Way::ClusterIp), &Outcome::Silence);
}

/// Our choice: where another node has masqueraded the client nobody guesses who it was; the pod's own node is not asked.
#[test]
fn node_nodeport_snat() {
    let Some(policed) = policed() else { return };
    policed.put("90.yaml", &ingress("near", &["client"])).unwrap();
    outcomes(&policed, "shop/client", ("near", Way::NodePort(NODES[0])), &Outcome::Answered);
    outcomes(&policed, "shop/far-client", ("near", Way::NodePort(NODES[1])), &Outcome::Silence);
}

/// Our choice: a pod always reaches itself through its service.
#[test]
fn self_service_hairpin() {
    let Some(policed) = policed() else { return };
    policed.put("90.yaml", &egress("near", &[])).unwrap();
    policed.put("91.yaml", &ingress("near", &[])).unwrap();
    outcomes(&policed, "shop/near", ("near", Way::ClusterIp), &Outcome::Answered);
    outcomes(&policed, "shop/client", ("near", Way::ClusterIp), &Outcome::Silence);
}

#[test]
fn self_pod_ip() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", SEALED).unwrap();
    stage.reaches("x/a", "x/a", WEB).unwrap();
    let inside = stage.cluster.namespace("x/a").unwrap();
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let server = inside.enter(|| TcpListener::bind((loopback, 8088))).unwrap().unwrap();
        inside.enter(|| TcpStream::connect_timeout(&(loopback, 8088).into(), PATIENCE)).unwrap().unwrap();
        server.accept().unwrap();
    }
    stage.is_denied("x/b", "x/a", WEB).unwrap();
}

/// `ping -c 1`: true if it was answered.
fn ping(stage: &Stage, from: &str, to: &str, ipv6: bool) -> bool {
    let address = stage.cluster.address(to, ipv6).unwrap().to_string();
    let mut command = std::process::Command::new("ping");
    command.args(["-c", "1", "-W", "1", &address]).stdout(std::process::Stdio::null());
    stage.cluster.namespace(from).unwrap().enter(|| command.status()).unwrap().unwrap().success()
}

/// Our choice: judged by the peer, as any protocol without ports; a rule with ports does not allow it.
#[test]
fn icmp_echo() {
    let Some(stage) = stage() else { return };
    for ipv6 in FAMILIES {
        assert!(ping(&stage, "x/b", "x/a", ipv6), "without policy, IPv6 {ipv6}");
    }
    stage.policy("p", "x", WEB_FROM_B).unwrap();
    for ipv6 in FAMILIES {
        assert!(!ping(&stage, "x/b", "x/a", ipv6), "a rule with ports, IPv6 {ipv6}");
    }
    let without_ports = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: \
                         [{podSelector: {matchLabels: {pod: b}}}]}]}";
    stage.policy("p", "x", without_ports).unwrap();
    for ipv6 in FAMILIES {
        assert!(ping(&stage, "x/b", "x/a", ipv6), "a rule without ports, IPv6 {ipv6}");
        assert!(!ping(&stage, "y/b", "x/a", ipv6), "not this peer, IPv6 {ipv6}");
    }
}

/// Port unreachable, both ways between isolated pods; path MTU errors have their test among the legal traffic.
#[test]
fn icmp_errors() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", WEB_FROM_B).unwrap();
    stage.policy("q", "x", "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Ingress]}").unwrap();
    for ipv6 in FAMILIES {
        // Allowed, and nobody listens there.
        let probe = stage.probe("x/b", "x/a", (Udp, 80), ipv6).unwrap();
        let outcome = stage.cluster.probe(&probe, PATIENCE).unwrap();
        assert!(matches!(&outcome, Outcome::Other(what) if what.contains("refused")), "{probe}: {outcome}");
    }
}

fn neighbours_are_found(ipv6: bool) {
    let Some(stage) = stage() else { return };
    stage.policy("deny", "x", "{podSelector: {}, policyTypes: [Ingress, Egress]}").unwrap();
    stage.policy("in", "x", WEB_FROM_B).unwrap();
    let out = "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}";
    stage.policy("out", "x", out).unwrap();
    for _ in 0..3 {
        ["x/a", "x/b", "n1"].iter().for_each(|place| stage.forget_neighbours(place).unwrap());
        let probe = stage.probe("x/b", "x/a", WEB, ipv6).unwrap();
        assert_eq!(stage.cluster.probe(&probe, PATIENCE).unwrap(), Outcome::Answered, "{probe}");
        let probe = stage.probe("n1", "x/a", WEB, ipv6).unwrap();
        assert_eq!(stage.cluster.probe(&probe, PATIENCE).unwrap(), Outcome::Answered, "{probe}");
    }
}

#[test]
fn icmp6_nd() {
    neighbours_are_found(true);
}

#[test]
fn l2_arp_dhcp() {
    neighbours_are_found(false);
}

#[test]
fn frag_ipv4_ipv6() {
    let Some(stage) = stage() else { return };
    let spec = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}], \
                ports: [{port: 5000, protocol: UDP}]}]}";
    stage.policy("p", "x", spec).unwrap();
    let datagram = vec![7; 6000];
    let mut buffer = vec![0; 8000];
    for ipv6 in FAMILIES {
        let [open, shut] = [5000, 5001].map(|port| stage.udp("x/a", port, ipv6).unwrap());
        open.set_read_timeout(Some(PATIENCE)).unwrap();
        for from in ["x/b", "y/b"] {
            let client = stage.udp(from, 0, ipv6).unwrap();
            let ahead = || stage.counted("x/a", "ingress", "fragment-ahead").unwrap();
            let before = ahead();
            let mut arrivals = stage.cluster.watch("x/a").unwrap();
            client.send_to(&datagram, shut.local_addr().unwrap()).unwrap();
            assert!(shut.recv_from(&mut buffer).is_err(), "{from}, IPv6 {ipv6}: denied, and it came whole");
            // What overtook the first one passed, and is of no use without it; nothing else did.
            let parts = arrivals.later_fragments(Udp).unwrap();
            assert_eq!(u64::try_from(parts).unwrap(), ahead() - before, "{from}, IPv6 {ipv6}: denied, and parts came");
            client.send_to(&datagram, open.local_addr().unwrap()).unwrap();
            let (length, _) = open.recv_from(&mut buffer).unwrap();
            assert!(buffer[..length] == datagram, "{from}, IPv6 {ipv6}");
        }
    }
}

#[test]
fn ext_ipv6_extension_headers() {
    if has_agent() {
        let mut arena = Arena::start(Ground::default(), POLICIES).unwrap();
        let failures = arena.failures(&headers::attacks(arena.cast())).unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

#[test]
fn dual_both_families() {
    let Some(stage) = stage() else { return };
    stage.policy("p", "x", WEB_FROM_B).unwrap();
    stage.reaches("x/b", "x/a", WEB).unwrap();
    stage.is_denied("y/b", "x/a", WEB).unwrap();
    let spec = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}";
    stage.policy("p", "x", spec).unwrap();
    for (ipv6, wanted) in [(false, Outcome::Answered), (true, Outcome::Silence)] {
        let probe = stage.probe("x/b", "x/a", WEB, ipv6).unwrap();
        assert_eq!(stage.cluster.probe(&probe, if ipv6 { SILENCE } else { PATIENCE }).unwrap(), wanted, "{probe}");
    }
}

#[test]
fn every_scenario_has_a_test_of_its_name() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpora/behaviours.json");
    let corpus: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(corpus).unwrap()).unwrap();
    let sources = [include_str!("netns_behaviours.rs"), include_str!("netns_behaviours_packets.rs")].concat();
    let ids: Vec<&str> = corpus["cases"].as_array().unwrap().iter().map(|case| case["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 35);
    let has_test = |id: &str| sources.contains(&format!("#[test]\nfn {}() {{", id.replace(['/', '-'], "_")));
    let missing: Vec<&str> = ids.iter().copied().filter(|id| !has_test(id)).collect();
    assert_eq!(missing, [""; 0], "scenarios without a test");
}
