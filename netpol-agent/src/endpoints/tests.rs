//! Which pod is behind which interface, and what becomes of slots.

use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::{Endpoint, EndpointFlags, Mac};

use super::{Endpoints, Left};
use crate::cluster::model::{Pod, PodKey};
use crate::node::view::{NodeView, PodInterface};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

fn pod(name: &str, addresses: &[&str]) -> Arc<Pod> {
    Arc::new(Pod {
        key: PodKey::new("x", name),
        uid: "".into(),
        static_uid: "".into(),
        labels: Arc::default(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "".into(),
        host_network: false,
        terminal: false,
        workload: None,
    })
}

fn interface(ifindex: u32, addresses: &[&str]) -> PodInterface {
    PodInterface {
        ifindex,
        name: format!("veth{ifindex}"),
        mac: Some(MAC),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

fn view(interfaces: &[PodInterface]) -> NodeView {
    let interfaces = interfaces.iter().map(|interface| (interface.ifindex, interface.clone())).collect();
    NodeView { interfaces, ..NodeView::default() }
}

/// Follows a node with these interfaces and a cluster of these pods.
fn follow(endpoints: &mut Endpoints, interfaces: &[PodInterface], pods: &[Arc<Pod>]) -> usize {
    let at = |address: IpAddr| pods.iter().find(|pod| pod.addresses.contains(&address)).cloned();
    endpoints.follow(&view(interfaces), at).len()
}

fn endpoint(endpoints: &Endpoints, ifindex: u32) -> Endpoint {
    endpoints.iter().find(|local| local.ifindex == ifindex).unwrap().endpoint
}

fn owners(endpoints: &Endpoints) -> Vec<(u16, String)> {
    endpoints.slots().into_iter().map(|(slot, pod)| (slot, pod.to_string())).collect()
}

#[test]
fn a_pod_is_found_by_one_address_and_has_all_that_it_declares() {
    let mut endpoints = Endpoints::new(10, true);
    follow(&mut endpoints, &[interface(7, &["10.0.0.1"])], &[pod("a", &["10.0.0.1", "fd00::1"])]);
    let found = endpoint(&endpoints, 7);
    assert_eq!(found.flags, EndpointFlags::HAS_V4 | EndpointFlags::HAS_V6);
    assert_eq!((found.slot, found.mac), (1, Mac::from_octets(MAC)));
    assert_eq!(IpAddr::V4(found.ipv4.into()), IpAddr::from([10, 0, 0, 1]));
    assert_eq!(IpAddr::V6(found.ipv6.into()), "fd00::1".parse::<IpAddr>().unwrap());
    assert_eq!(owners(&endpoints), [(1, "x/a".to_owned())]);
}

#[test]
fn an_interface_is_held_until_pod_and_mac_are_known() {
    let mut endpoints = Endpoints::new(10, true);
    follow(&mut endpoints, &[interface(7, &[])], &[]);
    assert_eq!(endpoint(&endpoints, 7), Endpoint { slot: 1, flags: EndpointFlags::PENDING, ..Endpoint::default() });
    let nameless = PodInterface { mac: None, ..interface(7, &["10.0.0.1"]) };
    follow(&mut endpoints, &[nameless], &[pod("a", &["10.0.0.1"])]);
    assert_eq!(endpoint(&endpoints, 7).flags, EndpointFlags::PENDING);
    assert!(endpoints.slots().is_empty());
    let mut passing = Endpoints::new(10, false);
    follow(&mut passing, &[interface(7, &[])], &[]);
    assert_eq!(endpoint(&passing, 7).flags, EndpointFlags::PASS_THROUGH);
}

#[test]
fn an_interface_with_two_pods_behind_it_is_nobodys() {
    let mut endpoints = Endpoints::new(10, true);
    let pods = [pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"])];
    follow(&mut endpoints, &[interface(7, &["10.0.0.1", "10.0.0.2"])], &pods);
    assert_eq!(endpoint(&endpoints, 7).flags, EndpointFlags::PENDING);
    let problem = endpoints.problems()[0].to_string();
    assert!(problem.contains("x/a and x/b") && problem.contains("denied"), "{problem}");
}

#[test]
fn a_pod_is_behind_one_interface_only_and_what_was_found_goes_first() {
    let mut endpoints = Endpoints::new(10, true);
    let pods = [pod("a", &["10.0.0.1"])];
    follow(&mut endpoints, &[interface(7, &["10.0.0.1"])], &pods);
    // The pod is back under another interface; of the old one only the memory speaks.
    follow(&mut endpoints, &[interface(7, &[]), interface(9, &["10.0.0.1"])], &pods);
    assert_eq!(owners(&endpoints), [(2, "x/a".to_owned())]);
    assert_eq!(endpoints.problems().len(), 1);
}

#[test]
fn a_freed_slot_comes_again_only_after_all_others() {
    let mut endpoints = Endpoints::new(4, true);
    let pods = [pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"])];
    follow(&mut endpoints, &[interface(7, &["10.0.0.1"])], &pods);
    for (ifindex, slot) in [(8, 2), (9, 3), (10, 1)] {
        assert_eq!(follow(&mut endpoints, &[interface(ifindex, &["10.0.0.2"])], &pods), 1);
        assert_eq!(owners(&endpoints), [(slot, "x/b".to_owned())]);
    }
}

#[test]
fn more_interfaces_than_slots_are_said() {
    let mut endpoints = Endpoints::new(2, true);
    follow(&mut endpoints, &[interface(7, &[]), interface(8, &[])], &[]);
    assert!(endpoints.problems()[0].to_string().contains("all 1 slots are taken"));
    // It is listed all the same, so that its hooks deny; and has the slot as soon as that is free.
    assert_eq!((endpoint(&endpoints, 7).slot, endpoint(&endpoints, 8)), (1, Endpoint::default()));
    follow(&mut endpoints, &[interface(8, &[])], &[]);
    assert_eq!((endpoint(&endpoints, 8).slot, endpoints.problems().len()), (1, 0));
    assert!(endpoint(&endpoints, 8).has(EndpointFlags::PENDING));
}

#[test]
fn what_an_earlier_agent_left_stays_until_the_pod_is_found_again() {
    let mut before = Endpoints::new(10, true);
    let pods = [pod("a", &["10.0.0.1", "fd00::1"])];
    follow(&mut before, &[interface(6, &[]), interface(7, &["10.0.0.1"])], &pods);
    let left = endpoint(&before, 7);
    let mut after = Endpoints::new(10, true);
    after.adopt([Left { ifindex: 7, endpoint: left }], []);
    // Neither MAC nor address was heard of yet, and then not even the pod.
    let silent = PodInterface { mac: None, ..interface(7, &[]) };
    follow(&mut after, std::slice::from_ref(&silent), &pods);
    assert_eq!((endpoint(&after, 7), owners(&after)), (left, vec![(left.slot, "x/a".to_owned())]));
    follow(&mut after, &[silent], &[]);
    assert_eq!((endpoint(&after, 7), owners(&after)), (left, Vec::new()));
}

#[test]
fn slots_that_an_earlier_agent_used_come_again_last() {
    for (used, first) in [(vec![5], 6), (vec![9], 1), (vec![], 4)] {
        let mut endpoints = Endpoints::new(10, true);
        let left = Endpoint { slot: 3, ..Endpoint::default() };
        endpoints.adopt([Left { ifindex: 7, endpoint: left }], used);
        follow(&mut endpoints, &[interface(7, &[]), interface(8, &[])], &[]);
        assert_eq!((endpoint(&endpoints, 7).slot, endpoint(&endpoints, 8).slot), (3, first));
    }
}
