//! Two nodes without an agent: Flannel's VXLAN joins them, and services work as kube-proxy has them.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use netpol_tests::cluster::{Cluster, OUTSIDE, Plan};
use netpol_tests::kube_proxy::{Form, Table};
use netpol_tests::level::has_kernel;
use netpol_tests::manifests::PodAddresses;
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::services::{NODES, Services, Way};

fn plan(number: u8) -> Plan {
    Plan::of(number).unwrap()
}

#[test]
fn everybody_reaches_everybody_across_nodes() {
    if !has_kernel() {
        return;
    }
    let mut cluster = Cluster::start(&NODES, &[]).unwrap();
    for (number, node) in (1..).zip(NODES) {
        for host in [11, 12] {
            let pod = PodAddresses::new(&format!("a/pod-{number}-{host}"), &plan(number).pod(host));
            cluster.add_pod(node, &pod).unwrap();
        }
    }
    let places = ["a/pod-1-11", "a/pod-1-12", "a/pod-2-11", "a/pod-2-12", NODES[0], NODES[1], OUTSIDE];
    let mut probes = Vec::new();
    for to in places {
        for transport in [Transport::Tcp, Transport::Udp] {
            cluster.serve(to, transport, [7000]).unwrap();
            for from in places.iter().filter(|from| **from != to) {
                for ipv6 in [false, true] {
                    probes.push(Probe::new(&cluster, from, (to, transport, 7000), ipv6).unwrap());
                }
            }
        }
    }
    let outcomes = cluster.probe_all(&probes, PATIENCE).unwrap();
    for (probe, outcome) in probes.iter().zip(outcomes) {
        assert_eq!(outcome, Outcome::Answered, "{probe}");
    }
}

/// Everybody who could want a backend, and every way to it.
fn questions(services: &Services) -> Vec<Probe> {
    let clients = ["shop/client", "shop/far-client", "shop/near", NODES[0], OUTSIDE];
    let mut probes = Vec::new();
    for backend in ["near", "far", "away", "host-near", "host-far"] {
        let everywhere = [Way::ClusterIp, Way::ExternalIp, Way::NodePort(NODES[0]), Way::NodePort(NODES[1])];
        for way in everywhere.into_iter().chain((backend == "near" || backend == "far").then_some(Way::HostPort)) {
            for from in clients {
                // Nobody routes virtual addresses from outside.
                if from == OUTSIDE && !matches!(way, Way::NodePort(_) | Way::HostPort) {
                    continue;
                }
                for (transport, ipv6) in families() {
                    probes.push(services.probe(from, (backend, way), transport, ipv6).unwrap());
                }
            }
        }
    }
    probes
}

fn families() -> impl Iterator<Item = (Transport, bool)> {
    [Transport::Tcp, Transport::Udp].into_iter().flat_map(|transport| [(transport, false), (transport, true)])
}

/// Questions that were not answered.
fn unanswered(services: &Services, limit: Duration) -> Vec<String> {
    let probes = questions(services);
    let outcomes = services.cluster.probe_all(&probes, limit).unwrap();
    let odd = probes.iter().zip(&outcomes).filter(|(_, outcome)| **outcome != Outcome::Answered);
    odd.map(|(probe, outcome)| format!("{probe}: {outcome}")).collect()
}

#[test]
fn every_way_to_every_backend_works_in_every_form_with_flannels_masquerade_and_without() {
    if !has_kernel() {
        return;
    }
    for form in Form::ALL {
        let services = Services::build(form).unwrap();
        assert_eq!(unanswered(&services, PATIENCE), [""; 0], "{form:?}");
        services.cluster.kube_proxy(form).masquerading().sync(services.table()).unwrap();
        assert_eq!(unanswered(&services, PATIENCE), [""; 0], "{form:?}, masquerading");
        services.cluster.kube_proxy(form).sync(&Table::default()).unwrap();
        // Known flows go on by themselves; these clients are new ones.
        assert_ne!(unanswered(&services, SILENCE), [""; 0], "{form:?}: without services nothing is translated");
    }
}
