//! What comes out for a service, without a kernel to load it.

use serde_json::json;

use super::*;

fn table() -> Table {
    let objects = [
        json!({"kind": "Pod", "metadata": {"namespace": "a", "name": "web", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "web", "ports": [
                {"name": "http", "containerPort": 8080, "hostPort": 9090}]}]},
            "status": {"podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00:10:244:1::5"}]}}),
        json!({"kind": "Service", "metadata": {"namespace": "a", "name": "web"},
            "spec": {"clusterIPs": ["10.96.0.1", "fd00:96::1"], "externalIPs": ["203.0.113.1"], "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": "http", "nodePort": 30080}]}}),
        json!({"kind": "Service", "metadata": {"namespace": "a", "name": "far"},
            "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 53, "protocol": "UDP"}]}}),
        json!({"kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "a", "name": "far-1", "labels": {"kubernetes.io/service-name": "far"}},
            "ports": [{"name": "", "protocol": "UDP", "port": 5353}],
            "endpoints": [{"addresses": ["198.51.100.7"]}, {"addresses": ["198.51.100.8"]}]}),
    ];
    Table::read(&objects).unwrap()
}

#[test]
fn endpoints_come_from_selectors_with_named_ports_and_from_slices() {
    let table = table();
    let endpoints: Vec<Vec<String>> =
        table.services.iter().map(|it| it.endpoints.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(endpoints, [["10.244.1.5:8080", "[fd00:10:244:1::5]:8080"], ["198.51.100.7:5353", "198.51.100.8:5353"]]);
    let host: Vec<(&str, u16)> = table.host_ports.iter().map(|it| (it.node.as_str(), it.port)).collect();
    assert_eq!(host, [("n1", 9090)]);
}

#[test]
fn a_family_and_a_node_get_their_own_part_only() {
    let table = table();
    for form in Form::ALL {
        for (node, ipv6, wanted, unwanted) in [
            ("n1", false, vec!["10.96.0.1", "203.0.113.1", "30080", "9090", "5353"], vec!["fd00:96::1"]),
            ("n1", true, vec!["fd00:96::1", "[fd00:10:244:1::5]:8080", "9090"], vec!["10.96.0.1", "5353"]),
            ("n2", false, vec!["10.96.0.1"], vec!["9090"]),
        ] {
            let view = View { table: &table, node, plan: Plan::FIRST, ipv6, flannel: false, cluster_cidr: true };
            let rules = if form == Form::Iptables { iptables::rules(&view) } else { nftables::rules(&view) };
            assert!(wanted.iter().all(|it| rules.contains(it)), "{form:?} {node} {ipv6}: {wanted:?}\n{rules}");
            assert!(!unwanted.iter().any(|it| rules.contains(it)), "{form:?} {node} {ipv6}: {unwanted:?}\n{rules}");
        }
    }
}
