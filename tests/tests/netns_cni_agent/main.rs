//! Pods started by a container runtime through real plugins and ours, with the real agent: policed from the first packet on,
//! nothing left behind, whoever is killed when.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

mod killed;
mod site;

use std::time::Instant;

use netpol_tests::level::{has_agent, is_full};
use netpol_tests::manifests::PodAddresses;
use netpol_tests::servers::Transport;

use self::site::{API, Site, addresses};

/// Pods that come and go in the quick tier, and in the full one.
const PODS: (u32, u32) = (60, 500);

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
