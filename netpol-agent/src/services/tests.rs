use std::sync::Arc;

use super::*;
use crate::cluster::model::{ClusterEvent, Object, ObjectKey, Pod, Service, ServicePort, TargetPort};

fn pod(name: &str, address: &str, host_network: bool) -> Pod {
    Pod {
        key: ObjectKey::new("x", name),
        uid: "".into(),
        static_uid: "".into(),
        labels: Arc::default(),
        addresses: vec![address.parse().unwrap()],
        named_ports: Vec::new(),
        host_ports: vec![(Protocol::Udp, 5353)],
        node: "".into(),
        host_network,
        terminal: false,
        workload: None,
    }
}

fn cluster() -> ClusterState {
    let port = |protocol, node_port| ServicePort { protocol, port: 80, node_port, target: TargetPort::Number(80) };
    let service = Service {
        key: ObjectKey::new("x", "web"),
        addresses: vec!["10.96.0.7".parse().unwrap(), "192.0.2.10".parse().unwrap()],
        ports: vec![port(Protocol::Tcp, Some(30_080)), port(Protocol::Sctp, None)],
        selector: None,
    };
    let mut cluster = ClusterState::default();
    for object in [
        Object::Service(service),
        Object::Pod(pod("a", "10.244.1.2", false)),
        Object::Pod(pod("proxy", "192.0.2.11", true)),
        Object::Pod(Pod { terminal: true, host_ports: vec![(Protocol::Tcp, 9)], ..pod("done", "192.0.2.12", true) }),
    ] {
        cluster.apply(ClusterEvent::Apply(object));
    }
    cluster
}

#[test]
fn an_address_has_every_role_that_it_plays() {
    let own: IpAddr = "192.0.2.10".parse().unwrap();
    let roles = address_roles(&cluster(), &BTreeSet::from([own]));
    let expected = [
        ("10.96.0.7", AddressRole::SERVICE),
        ("192.0.2.10", AddressRole::OWN | AddressRole::SERVICE),
        ("192.0.2.11", AddressRole::NODE),
    ];
    assert_eq!(roles, expected.map(|(address, role)| (address.parse().unwrap(), role)).into());
}

#[test]
fn node_ports_are_those_of_services_and_of_pods_with_a_network_of_their_own() {
    let sets = node_ports(&cluster());
    let mut found = Vec::new();
    for (set, bits) in sets.iter().enumerate() {
        found.extend(
            (0..=u16::MAX).filter(|port| bits[usize::from(port / 8)] >> (port % 8) & 1 == 1).map(|port| (set, port)),
        );
    }
    assert_eq!(found, [(0, 30_080), (1, 5353)]);
}
