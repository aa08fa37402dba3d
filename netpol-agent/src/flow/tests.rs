//! Who is behind an address, while things come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use netpol_common::abi::{Direction, Reason};

use super::decode::RawEvent;
use super::departed::Departed;
use super::enrich::{Clock, Surroundings, enrich};
use super::{Flow, Who};
use crate::cluster::ClusterState;
use crate::cluster::model::{ClusterEvent, Object, ObjectKey, ObjectRef, Pod, Service};
use crate::policy::Provenance;

fn pod(namespace: &str, name: &str, address: &str) -> Pod {
    Pod {
        key: ObjectKey::new(namespace, name),
        uid: "".into(),
        static_uid: "".into(),
        labels: Arc::default(),
        addresses: vec![address.parse().unwrap()],
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "here".into(),
        host_network: false,
        terminal: false,
        workload: None,
    }
}

/// An event from one IPv4 address to another.
fn event(source: [u8; 4], destination: [u8; 4]) -> RawEvent {
    let wide = |[a, b, c, d]: [u8; 4]| [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    RawEvent {
        time: 0,
        source: wide(source),
        destination: wide(destination),
        identity: 0,
        ifindex: 1,
        length: 60,
        suppressed: 0,
        revision: 1,
        slot: 0,
        policy: 0,
        source_port: 40_000,
        destination_port: 80,
        ether_type: 0x0800,
        direction: Direction::Ingress,
        reason: Reason::PolicyDenied,
        protocol: 6,
        tcp_flags: 2,
        icmp_type: 0,
        icmp_code: 0,
        source_mac: [0; 6],
        destination_mac: [0; 6],
    }
}

#[derive(Default)]
struct World {
    cluster: ClusterState,
    departed: Departed,
    own: BTreeSet<IpAddr>,
}

impl World {
    fn put(&mut self, object: Object) {
        self.cluster.apply(ClusterEvent::Apply(object));
    }

    fn from(&self, source: [u8; 4]) -> Flow {
        let around = Surroundings {
            clock: Clock { zero: SystemTime::UNIX_EPOCH },
            cluster: &self.cluster,
            departed: &self.departed,
            provenance: &Provenance::default(),
            node: "here",
            own_addresses: &self.own,
        };
        enrich(&event(source, [192, 0, 2, 1]), around)
    }

    fn who(&self, address: [u8; 4]) -> Who {
        self.from(address).source.who
    }
}

#[test]
fn pods_services_nodes_and_the_world_are_told_apart() {
    let mut world = World::default();
    world.put(Object::Pod(pod("a", "web", "10.0.0.1")));
    world.put(Object::Pod(Pod { host_network: true, ..pod("x", "proxy", "10.9.0.1") }));
    world.put(Object::Pod(Pod { host_network: true, node: "there".into(), ..pod("x", "proxy-2", "10.9.0.2") }));
    let labels = Arc::new([("component".into(), "kube-apiserver".into())].into_iter().collect());
    let server = Pod { host_network: true, node: "control".into(), labels, ..pod("kube-system", "api", "10.9.0.3") };
    world.put(Object::Pod(server));
    let front = Service {
        key: ObjectKey::new("a", "web"),
        addresses: vec!["10.96.0.1".parse().unwrap()],
        ports: Vec::new(),
        selector: None,
    };
    world.put(Object::Service(front));
    world.own.insert("10.0.0.254".parse().unwrap());
    assert!(matches!(world.who([10, 0, 0, 1]), Who::Pod(pod) if *pod.key.name == *"web"));
    assert_eq!(world.who([10, 9, 0, 1]), Who::Host);
    assert_eq!(world.who([10, 0, 0, 254]), Who::Host);
    assert_eq!(world.who([10, 9, 0, 2]), Who::RemoteNode("there".into()));
    assert_eq!(world.who([10, 9, 0, 3]), Who::KubeApiServer);
    assert_eq!(world.who([198, 51, 100, 7]), Who::World);
    let flow = world.from([10, 96, 0, 1]);
    assert_eq!((flow.source.who, flow.source.service), (Who::Service, Some(ObjectKey::new("a", "web"))));
    world.cluster.apply(ClusterEvent::Delete(ObjectRef::Service(ObjectKey::new("a", "web"))));
    assert_eq!(world.who([10, 96, 0, 1]), Who::World);
    world.put(Object::Pod(pod("b", "double", "10.0.0.1")));
    assert_eq!(world.who([10, 0, 0, 1]), Who::Unknown, "two pods claim it: neither is named");
}

#[test]
fn a_pod_that_is_gone_keeps_its_name_until_another_has_its_address_or_time_is_up() {
    let mut world = World::default();
    let gone = Arc::new(pod("a", "job", "10.0.0.1"));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    world.departed.add(&gone, now);
    assert_eq!(world.who([10, 0, 0, 1]), Who::Pod(gone.clone()));
    world.put(Object::Pod(pod("a", "next", "10.0.0.1")));
    assert!(matches!(world.who([10, 0, 0, 1]), Who::Pod(pod) if *pod.key.name == *"next"));
    world.cluster.apply(ClusterEvent::Delete(ObjectRef::Pod(ObjectKey::new("a", "next"))));
    let next = Arc::new(pod("a", "next", "10.0.0.1"));
    world.departed.add(&next, now + Duration::from_secs(200));
    world.departed.expire(now + Duration::from_secs(301));
    assert_eq!(world.who([10, 0, 0, 1]), Who::Pod(next), "the younger one stays when the older is forgotten");
    world.departed.expire(now + Duration::from_secs(501));
    assert_eq!(world.who([10, 0, 0, 1]), Who::World);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut departed = Departed::default();
    for number in 0..10_000_u32 {
        let pod = pod("a", &format!("p{number}"), &std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string());
        departed.add(&Arc::new(pod), SystemTime::UNIX_EPOCH);
    }
    assert!(
        departed.at("10.0.0.1".parse().unwrap()).is_none() && departed.named(&ObjectKey::new("a", "p9999")).is_some()
    );
}
