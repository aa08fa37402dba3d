use super::*;
use crate::observe::hubble::json;

/// A denied TCP packet with every field that a filter may ask about.
const FLOW: &str = r#"{
    "uuid": "u-1", "verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "node_name": "node-a.example.com",
    "ethernet": {"source": "02:00:00:00:00:01"}, "traffic_direction": "EGRESS",
    "IP": {"source": "10.0.1.11", "destination": "fd00::2", "ipVersion": "IPv4", "source_xlated": "192.0.2.1"},
    "l4": {"TCP": {"source_port": 40000, "destination_port": 443, "flags": {"SYN": true, "ECE": true}}},
    "event_type": {"type": 1, "sub_type": 133}, "interface": {"index": 7, "name": "veth7"},
    "source": {"identity": 300, "namespace": "shop", "pod_name": "web-0", "cluster_name": "default",
               "labels": ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "k8s:replicas=3", "k8s:empty="],
               "workloads": [{"name": "web", "kind": "StatefulSet"}]},
    "destination": {"identity": 2, "labels": ["reserved:world"]},
    "destination_names": ["api.example.com", "a_b.example.com"],
    "destination_service": {"name": "api", "namespace": "shop"}, "node_labels": ["zone=a"]
}"#;

fn flow() -> Flow {
    let response = format!("{{\"flow\":{FLOW}}}");
    let response: crate::observe::hubble::proto::observer::GetFlowsResponse = json::parse(&response, false).unwrap();
    match response.response_types {
        Some(crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes::Flow(flow)) => flow,
        other => panic!("{other:?}"),
    }
}

fn keeps(filter: &str, flow: &Flow) -> Result<bool, FilterError> {
    let filter: FlowFilter = json::parse(filter, false).unwrap_or_else(|error| panic!("{filter}: {error}"));
    let allowed = Selection::new(std::slice::from_ref(&filter), &[])?.keeps(flow);
    assert_ne!(Selection::new(&[], &[filter])?.keeps(flow), allowed, "a blacklist says the opposite");
    Ok(allowed)
}

const MATCHING: &[&str] = &[
    r"{}",
    r#"{"source_ip":["10.0.1.11"]}"#,
    r#"{"source_ip":["10.0.1.99/24"],"destination_ip":["fd00::/64"]}"#,
    r#"{"source_ip_xlated":["192.0.2.0/31"]}"#,
    r#"{"source_pod":["shop/web"]}"#,
    r#"{"source_pod":["shop/","nobody/x"]}"#,
    r#"{"source_pod":["/web-"]}"#,
    r#"{"source_pod":["/"]}"#,
    r#"{"destination_service":["shop/a"]}"#,
    r#"{"destination_fqdn":["*.Example.com."]}"#,
    r#"{"destination_fqdn":["a_b.example.com"]}"#,
    r#"{"source_label":["app=web,!tier"]}"#,
    r#"{"source_label":["k8s:app in (db, web)"]}"#,
    r#"{"source_label":["any:app"]}"#,
    r#"{"source_label":["app notin (db),tier!=x"]}"#,
    r#"{"source_label":["replicas>2,replicas<4"]}"#,
    r#"{"source_label":["empty="]}"#,
    r#"{"source_label":["empty in (,x)"]}"#,
    r#"{"source_label":["io.kubernetes.pod.namespace == shop"]}"#,
    r#"{"source_label":[""]}"#,
    r#"{"destination_label":["reserved:world"]}"#,
    r#"{"node_labels":["zone in (a)"]}"#,
    r#"{"protocol":["TCP"]}"#,
    r#"{"source_port":["40000"],"destination_port":["443","80"]}"#,
    r#"{"reply":[false]}"#,
    r#"{"source_identity":[300,1]}"#,
    r#"{"tcp_flags":[{"FIN":true},{"SYN":true}]}"#,
    r#"{"tcp_flags":[{}]}"#,
    r#"{"node_name":["node-*"]}"#,
    r#"{"node_name":["default/*"]}"#,
    r#"{"node_name":["/node-a.example.com"]}"#,
    r#"{"node_name":["def*/"]}"#,
    r#"{"ip_version":["IPv4"]}"#,
    r#"{"source_workload":[{"name":"web"}]}"#,
    r#"{"source_workload":[{"kind":"StatefulSet"}]}"#,
    r#"{"source_workload":[{}]}"#,
    r#"{"uuid":["u-1"]}"#,
    r#"{"traffic_direction":["EGRESS"]}"#,
    r#"{"drop_reason_desc":["POLICY_DENIED"]}"#,
    r#"{"interface":[{"name":"veth7"}]}"#,
    r#"{"interface":[{"index":7}]}"#,
    r#"{"source_cluster_name":["default"]}"#,
    r#"{"encrypted":[false]}"#,
    r#"{"event_type":[{"type":1}]}"#,
    r#"{"event_type":[{"type":1,"sub_type":5}]}"#,
    r#"{"event_type":[{"match_sub_type":true,"sub_type":133}]}"#,
    r#"{"event_type":[{"type":5},{"type":1,"match_sub_type":true,"sub_type":133}]}"#,
];

const OTHER: &[&str] = &[
    r#"{"source_ip":["10.0.1.011"]}"#,
    r#"{"destination_ip":["FD00::2"]}"#,
    r#"{"destination_ip":["0.0.0.0/0"]}"#,
    r#"{"source_pod":["web"]}"#,
    r#"{"source_pod":["shop/db"]}"#,
    r#"{"destination_pod":["/"]}"#,
    r#"{"source_service":["/"]}"#,
    r#"{"destination_fqdn":["example.com"]}"#,
    r#"{"destination_fqdn":["a*.example.com.evil"]}"#,
    r#"{"source_label":["reserved:app"]}"#,
    r#"{"source_label":["app=web,tier"]}"#,
    r#"{"source_label":["replicas>3"]}"#,
    r#"{"source_label":["app>1"]}"#,
    r#"{"destination_label":["!world"]}"#,
    r#"{"node_labels":["zone=b"]}"#,
    r#"{"protocol":["udp","icmp","dns","http","kafka"]}"#,
    r#"{"destination_port":["40000"]}"#,
    r#"{"reply":[true]}"#,
    r#"{"destination_identity":[300]}"#,
    r#"{"tcp_flags":[{"SYN":true,"ACK":true}]}"#,
    r#"{"node_name":["node-a"]}"#,
    r#"{"node_name":["other/"]}"#,
    r#"{"ip_version":["IP_NOT_USED","IPv6"]}"#,
    r#"{"destination_workload":[{}]}"#,
    r#"{"source_workload":[{"name":"web","kind":"Deployment"}]}"#,
    r#"{"uuid":["u"]}"#,
    r#"{"traffic_direction":["TRAFFIC_DIRECTION_UNKNOWN"]}"#,
    r#"{"drop_reason_desc":["POLICY_DENY"]}"#,
    r#"{"interface":[{"index":7,"name":"eth0"}]}"#,
    r#"{"source_cluster_name":["def"]}"#,
    r#"{"encrypted":[true]}"#,
    r#"{"event_type":[{"type":4},{"match_sub_type":true,"sub_type":5}]}"#,
    r#"{"http_status_code":["200"]}"#,
    r#"{"http_method":["GET"]}"#,
    r#"{"http_path":["/"]}"#,
    r#"{"http_url":["/"]}"#,
    r#"{"http_header":[{"key":"a","value":"b"}]}"#,
    r#"{"dns_query":["a"]}"#,
    r#"{"trace_id":["1"]}"#,
    r#"{"ip_trace_id":["1"]}"#,
    r#"{"source_pod":["shop/web"],"verdict":["FORWARDED"]}"#,
];

#[test]
fn every_field_of_a_filter_is_asked_as_hubble_asks_it() {
    let flow = flow();
    for filter in MATCHING {
        assert_eq!(keeps(filter, &flow), Ok(true), "{filter}");
    }
    for filter in OTHER {
        match keeps(filter, &flow) {
            Ok(kept) => assert!(!kept, "{filter}"),
            Err(error) => assert!(filter.contains("011"), "{filter}: {error}"),
        }
    }
}

#[test]
fn flows_that_lack_a_field_match_only_what_asks_for_its_lack() {
    let bare = Flow::default();
    for filter in [r#"{"source_label":["!app"]}"#, r#"{"ip_version":["IP_NOT_USED"]}"#, r#"{"encrypted":[false]}"#] {
        assert_eq!(keeps(filter, &bare), Ok(true), "{filter}");
    }
    for filter in [
        r#"{"reply":[false]}"#,
        r#"{"event_type":[{}]}"#,
        r#"{"interface":[{}]}"#,
        r#"{"node_name":["*"]}"#,
        r#"{"source_identity":[0]}"#,
        r#"{"source_pod":["/"]}"#,
        r#"{"drop_reason_desc":["DROP_REASON_UNKNOWN"]}"#,
        r#"{"tcp_flags":[{}]}"#,
        r#"{"source_port":["0"]}"#,
    ] {
        assert_eq!(keeps(filter, &bare), Ok(false), "{filter}");
    }
    let mut no_flags = flow();
    if let Some(super::super::proto::flow::layer4::Protocol::Tcp(tcp)) = no_flags.l4.as_mut().unwrap().protocol.as_mut()
    {
        tcp.flags = None;
    }
    assert_eq!(keeps(r#"{"tcp_flags":[{}]}"#, &no_flags), Ok(false));
}

#[test]
fn what_is_no_value_of_its_field_is_refused() {
    for filter in [
        r#"{"source_ip":["x"]}"#,
        r#"{"source_ip":["10.0.0.0/33"]}"#,
        r#"{"source_pod":[""]}"#,
        r#"{"destination_port":["+80"]}"#,
        r#"{"destination_port":["65536"]}"#,
        r#"{"protocol":["quic"]}"#,
        r#"{"source_fqdn":["a..", "b"]}"#,
        r#"{"source_fqdn":["a b"]}"#,
        r#"{"node_name":[""]}"#,
        r#"{"node_name":["a/b/c"]}"#,
        r#"{"source_cluster_name":[""]}"#,
        r#"{"source_label":["a in ()"]}"#,
        r#"{"source_label":["a in (b"]}"#,
        r#"{"source_label":["a=b,"]}"#,
        r#"{"source_label":["!a=b"]}"#,
        r#"{"source_label":["a/b/c"]}"#,
        r#"{"source_label":["-a"]}"#,
        r#"{"source_label":["a>b"]}"#,
        r#"{"experimental":{"cel_expression":["true"]}}"#,
    ] {
        let parsed: FlowFilter = json::parse(filter, false).unwrap();
        let parsed = std::slice::from_ref(&parsed);
        assert!(Selection::new(parsed, &[]).is_err() && Selection::new(&[], parsed).is_err(), "{filter}");
    }
    let long = format!(r#"{{"source_label":["a={}"]}}"#, "x".repeat(64));
    assert!(keeps(&long, &Flow::default()).is_err());
}
