//! Policy and services: whoever is asked by a virtual address, a node port or a host port, the verdict is about the backend.
//!
//! Each test runs under kube-proxy's rules in every form, in both families and over both transports. Backends are on the
//! client's own node (`near`), on another (`far`), outside the cluster (`away`) or a node itself (`host-near`, `host-far`).

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use netpol_tests::arrivals::Arrivals;
use netpol_tests::cluster::OUTSIDE;
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::services::{NODES, Policed, Services, Way, egress, ingress, policy};

const NEAR_AND_FAR: [&str; 2] = ["near", "far"];
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];
/// The ways through a translation on the client's own node.
const TRANSLATED: [Way; 3] = [Way::ClusterIp, Way::ExternalIp, Way::NodePort(NODES[0])];

netpol_tests::scenes! {
    without_policies_every_way_works_under_the_agents
    egress_is_judged_by_the_backends_labels_and_nothing_reaches_a_denied_one
    the_drop_names_the_backend
    ingress_is_judged_by_the_true_client_even_behind_a_masquerade_of_its_own_node
    both_ends_must_allow
    a_pod_reaches_itself_through_its_service_under_default_deny
    a_udp_service_is_allowed_by_its_pods_and_their_port
    a_block_must_hold_the_backend_and_not_the_virtual_address
    a_nodes_own_processes_and_backends_are_the_nodes
}

/// The questions of a client to backends, by all these ways, in both families and transports.
fn questions(services: &Services, from: &str, backends: &[&str], ways: &[Way]) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (&backend, &way) in backends.iter().flat_map(|backend| ways.iter().map(move |way| (backend, way))) {
        for (transport, ipv6) in TRANSPORTS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
            probes.push(services.probe(from, (backend, way), transport, ipv6).unwrap());
        }
    }
    probes
}

#[track_caller]
fn assert_outcomes(policed: &Policed, probes: &[Probe], limit: Duration, wanted: &Outcome) {
    let outcomes = policed.services.cluster.probe_all(probes, limit).unwrap();
    let odd = probes.iter().zip(&outcomes).filter(|(_, outcome)| *outcome != wanted);
    let odd: Vec<String> = odd.map(|(probe, outcome)| format!("{probe}: {outcome}")).collect();
    assert!(odd.is_empty(), "{} of {} are not {wanted:?}:\n{}", odd.len(), probes.len(), odd.join("\n"));
}

#[track_caller]
fn assert_answered(policed: &Policed, from: &str, backends: &[&str], ways: &[Way]) {
    let probes = questions(&policed.services, from, backends, ways);
    assert_outcomes(policed, &probes, PATIENCE, &Outcome::Answered);
}

/// Nobody answers, and nothing reaches the backends.
#[track_caller]
fn assert_silent(policed: &Policed, from: &str, backends: &[&str], ways: &[Way]) {
    let places = backends.iter().map(|backend| Services::place(backend));
    let mut watched: Vec<(String, Arrivals)> =
        places.map(|place| (place.clone(), policed.services.cluster.watch(&place).unwrap())).collect();
    let probes = questions(&policed.services, from, backends, ways);
    assert_outcomes(policed, &probes, SILENCE, &Outcome::Silence);
    for (place, arrivals) in &mut watched {
        for (transport, port) in [(Transport::Tcp, 8080), (Transport::Udp, 5353)] {
            assert_eq!(arrivals.at_port(transport, port).unwrap(), 0, "{from} -> {place} {port}/{}", transport.name());
        }
    }
}

fn without_policies_every_way_works_under_the_agents(policed: &Policed) {
    for from in ["shop/client", "shop/near", "shop/far-client", NODES[0]] {
        assert_answered(policed, from, &["near", "far", "away", "host-near", "host-far"], &TRANSLATED);
        assert_answered(policed, from, &NEAR_AND_FAR, &[Way::HostPort]);
    }
    assert_answered(policed, OUTSIDE, &NEAR_AND_FAR, &[Way::HostPort, Way::NodePort(NODES[1])]);
}

fn egress_is_judged_by_the_backends_labels_and_nothing_reaches_a_denied_one(policed: &Policed) {
    policed.put("90.yaml", &egress("client", &NEAR_AND_FAR)).unwrap();
    assert_answered(policed, "shop/client", &NEAR_AND_FAR, &TRANSLATED);
    assert_answered(policed, "shop/client", &NEAR_AND_FAR, &[Way::Direct]);
    // A host port at the own node is translated there; one at another node is that node's address.
    assert_answered(policed, "shop/client", &["near"], &[Way::HostPort]);
    assert_silent(policed, "shop/client", &["near-db", "far-db", "away", "host-far"], &TRANSLATED);
    assert_silent(policed, "shop/client", &["near-db", "far-db", "away", "host-far"], &[Way::Direct]);
    assert_silent(policed, "shop/client", &["far"], &[Way::HostPort, Way::NodePort(NODES[1])]);

    policed.put("90.yaml", &egress("client", &[])).unwrap();
    assert_silent(policed, "shop/client", &["near", "far", "near-db", "away"], &TRANSLATED);
    assert_silent(policed, "shop/client", &["near"], &[Way::HostPort]);
    // Others are not concerned.
    assert_answered(policed, "shop/other", &["near", "far", "away"], &TRANSLATED);
}

fn the_drop_names_the_backend(policed: &Policed) {
    policed.put("90.yaml", &egress("client", &["near"])).unwrap();
    for (backend, address) in [("near-db", "10.244.1.22"), ("far-db", "10.244.2.22"), ("away", "198.51.100.7")] {
        let probe = policed.services.probe("shop/client", (backend, Way::ClusterIp), Transport::Tcp, false).unwrap();
        let lines = policed.agent(NODES[0]).unwrap().drops();
        let mark = lines.count();
        assert_outcomes(policed, &[probe], SILENCE, &Outcome::Silence);
        let wanted = |line: &str| line.contains("denied-after-translation") && line.contains(address);
        let line = lines.wait_for(mark, Duration::from_secs(3), wanted);
        let line = line.unwrap_or_else(|| panic!("no drop with {address}: {:?}", lines.since(mark)));
        assert!(line.contains("client") && line.contains("8080") && line.contains("client-egress"), "{line}");
        assert!(
            line.contains("to this peer") || line.contains("this peer or this port"),
            "no word on what is missing: {line}"
        );
    }
}

fn ingress_is_judged_by_the_true_client_even_behind_a_masquerade_of_its_own_node(policed: &Policed) {
    policed.put("90.yaml", &ingress("near", &["client", "far-client"])).unwrap();
    policed.put("91.yaml", &ingress("far", &["client"])).unwrap();
    assert_answered(policed, "shop/client", &NEAR_AND_FAR, &[Way::Direct, Way::ClusterIp]);
    assert_answered(policed, "shop/far-client", &["near"], &[Way::Direct, Way::ClusterIp]);
    // Masqueraded as the node: the mark still says who it is.
    assert_answered(policed, "shop/client", &["near"], &[Way::ExternalIp, Way::NodePort(NODES[0]), Way::HostPort]);
    assert_silent(policed, "shop/other", &["near"], &TRANSLATED);
    assert_silent(policed, "shop/other", &["near"], &[Way::Direct, Way::HostPort]);
    assert_silent(policed, "shop/other", &["far"], &[Way::Direct, Way::ClusterIp]);
    // Masqueraded by another node: nobody knows the client any more, and nobody guesses.
    assert_silent(policed, "shop/client", &["far"], &[Way::ExternalIp, Way::NodePort(NODES[0])]);
    assert_silent(policed, "shop/far-client", &["near"], &[Way::NodePort(NODES[1])]);
    assert_silent(policed, OUTSIDE, &["near"], &[Way::Direct, Way::NodePort(NODES[1])]);
}

fn both_ends_must_allow(policed: &Policed) {
    policed.put("90.yaml", &egress("client", &NEAR_AND_FAR)).unwrap();
    policed.put("91.yaml", &ingress("near", &["other"])).unwrap();
    policed.put("92.yaml", &ingress("far", &["client"])).unwrap();
    assert_silent(policed, "shop/client", &["near"], &TRANSLATED);
    assert_answered(policed, "shop/other", &["near"], &TRANSLATED);
    assert_answered(policed, "shop/client", &["far"], &[Way::ClusterIp]);
    assert_silent(policed, "shop/other", &["far"], &[Way::ClusterIp]);
}

fn a_pod_reaches_itself_through_its_service_under_default_deny(policed: &Policed) {
    policed.put("90.yaml", &egress("near", &[])).unwrap();
    policed.put("91.yaml", &ingress("near", &[])).unwrap();
    assert_answered(policed, "shop/near", &["near"], &TRANSLATED);
    assert_answered(policed, "shop/near", &["near"], &[Way::HostPort]);
    assert_silent(policed, "shop/near", &["near-db", "far"], &TRANSLATED);
    assert_silent(policed, "shop/client", &["near"], &TRANSLATED);
}

fn a_udp_service_is_allowed_by_its_pods_and_their_port(policed: &Policed) {
    let rules = "[{to: [{podSelector: {matchLabels: {app: far}}}], ports: [{protocol: UDP, port: 5353}]}]";
    policed.put("90.yaml", &policy("client", "egress", rules)).unwrap();
    for way in TRANSLATED {
        let probes = questions(&policed.services, "shop/client", &["far"], &[way]);
        let (dns, web): (Vec<Probe>, Vec<Probe>) = probes.into_iter().partition(|it| it.transport == Transport::Udp);
        assert_outcomes(policed, &dns, PATIENCE, &Outcome::Answered);
        assert_outcomes(policed, &web, SILENCE, &Outcome::Silence);
    }
    // A rule with the service's own port allows nothing: policy is about pods.
    let rules = "[{to: [{podSelector: {matchLabels: {app: far}}}], ports: [{protocol: UDP, port: 53}]}]";
    policed.put("90.yaml", &policy("client", "egress", rules)).unwrap();
    assert_silent(policed, "shop/client", &["far"], &[Way::ClusterIp]);
}

fn a_block_must_hold_the_backend_and_not_the_virtual_address(policed: &Policed) {
    let block = |blocks: [&str; 2]| {
        let [v4, v6] = blocks;
        let rules = format!("[{{to: [{{ipBlock: {{cidr: {v4}}}}}, {{ipBlock: {{cidr: \"{v6}\"}}}}]}}]");
        policy("client", "egress", &rules)
    };
    policed.put("90.yaml", &block(["198.51.100.0/24", "2001:db8:100::/64"])).unwrap();
    assert_answered(policed, "shop/client", &["away"], &TRANSLATED);
    policed.services.cluster.kube_proxy(policed.services.form()).masquerading().sync(policed.services.table()).unwrap();
    assert_answered(policed, "shop/client", &["away"], &TRANSLATED);
    assert_silent(policed, "shop/client", &["near", "far"], &TRANSLATED);
    policed.put("90.yaml", &block(["10.96.0.0/16", "fd00:10:96::/64"])).unwrap();
    assert_silent(policed, "shop/client", &["away", "near", "far"], &[Way::ClusterIp]);
    policed.put("90.yaml", &block(["192.0.2.11/32", "2001:db8::11/128"])).unwrap();
    assert_answered(policed, "shop/client", &["host-far"], &[Way::Direct, Way::ClusterIp]);
}

fn a_nodes_own_processes_and_backends_are_the_nodes(policed: &Policed) {
    policed.put("90.yaml", &ingress("near", &[])).unwrap();
    policed.put("91.yaml", &ingress("far", &[])).unwrap();
    policed.put("92.yaml", &egress("client", &[])).unwrap();
    // The node reaches its own pods, also through their services; the other node's are not its own.
    assert_answered(policed, NODES[0], &["near"], &TRANSLATED);
    assert_answered(policed, NODES[0], &["near"], &[Way::Direct, Way::HostPort]);
    assert_silent(policed, NODES[0], &["far"], &[Way::Direct, Way::ClusterIp]);
    // A pod reaches its own node, also through a service, and no other node.
    assert_answered(policed, "shop/client", &["host-near"], &[Way::Direct, Way::ClusterIp, Way::ExternalIp]);
    assert_silent(policed, "shop/client", &["host-far"], &[Way::Direct, Way::ClusterIp, Way::ExternalIp]);
}
