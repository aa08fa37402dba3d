//! Two nodes without an agent: Flannel's VXLAN joins them, and services work as kube-proxy has them.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use netpol_tests::cluster::{Cluster, OUTSIDE, Plan};
use netpol_tests::level::has_kernel;
use netpol_tests::manifests::PodAddresses;
use netpol_tests::probe::{Outcome, PATIENCE, Probe};
use netpol_tests::servers::Transport;

const NODES: [&str; 2] = ["node-1", "node-2"];

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
