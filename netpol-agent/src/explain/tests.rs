use std::net::IpAddr;

use super::*;
use crate::cluster::ClusterState;
use crate::cluster::model::ClusterEvent;
use crate::source::decode_value;
use serde_json::{Value, json};

/// shop/web and shop/api on n1, shop/api isolated for gateways on port http; x/far on n2; node n1; a service of api.
fn cluster() -> ClusterState {
    let pod = |namespace: &str, name: &str, app: &str, (ip, node): (&str, &str)| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": { "app": app } },
            "spec": { "nodeName": node, "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": ip }] },
        })
    };
    let mut host = pod("kube-system", "proxy", "proxy", ("192.0.2.1", "n1"));
    host["spec"]["hostNetwork"] = json!(true);
    let mut done = pod("shop", "done", "api", ("10.244.1.9", "n1"));
    done["status"]["phase"] = json!("Succeeded");
    with(&[
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x", "labels": { "team": "x" } } }),
        pod("shop", "web", "web", ("10.244.1.2", "n1")),
        pod("shop", "api", "api", ("10.244.1.3", "n1")),
        pod("x", "far", "gateway", ("10.244.2.2", "n2")),
        pod("x", "twin", "gateway", ("10.244.2.7", "n2")),
        pod("x", "other-twin", "web", ("10.244.2.7", "n2")),
        host,
        done,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": "api" },
            "spec": {
                "clusterIP": "10.96.0.10", "selector": { "app": "api" },
                "ports": [{ "port": 80, "targetPort": "http", "nodePort": 30080 }],
            },
        }),
        policy(
            "gate",
            json!({ "podSelector": { "matchLabels": { "app": "api" } }, "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "gateway" } } }],
                "ports": [{ "port": "http" }],
            }] }),
        ),
        policy("deny", json!({ "podSelector": {}, "policyTypes": ["Ingress"] })),
    ])
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": name }, "spec": spec,
    })
}

fn with(objects: &[Value]) -> ClusterState {
    let mut cluster = ClusterState::default();
    apply(&mut cluster, objects);
    cluster
}

fn apply(cluster: &mut ClusterState, objects: &[Value]) {
    for item in objects.iter().flat_map(|object| decode_value("test", object).items) {
        let crate::source::Outcome::Taken(object) = item.outcome else { panic!("{item:?}") };
        cluster.apply(ClusterEvent::Apply(object));
    }
}

fn asked(cluster: &ClusterState, source: &str, destination: &str) -> Explanation {
    let nodes = Nodes::of(cluster);
    let facts = Facts { cluster, nodes: &nodes, enforce_own_node: false };
    let question = Question::parse(source, destination, "shop").unwrap();
    let fresh = FreshCompile::new(cluster, cluster.pods().map(|pod| pod.key.clone()));
    let answer = explain(&question, &facts, &fresh.view());
    assert_eq!(answer.disagreements().collect::<Vec<_>>(), [""; 0]);
    answer
}

fn only(answer: &Explanation) -> &FlowReport {
    assert_eq!((answer.flows.len(), &answer.unanswerable), (1, &None), "{answer:?}");
    &answer.flows[0]
}

#[test]
fn a_denied_flow_names_who_isolates_the_nearest_rule_and_the_label_that_differs() {
    let answer = asked(&cluster(), "web", "api:8080");
    let flow = only(&answer);
    assert_eq!(
        (flow.allowed, flow.egress.verdict, flow.ingress.verdict),
        (false, Verdict::NotIsolated, Verdict::Denied)
    );
    assert_eq!(flow.ingress.isolated_by, ["shop/deny", "shop/gate"]);
    let [miss] = flow.ingress.nearest.as_slice() else { panic!("{:?}", flow.ingress) };
    assert_eq!(miss.rule, "NetworkPolicy shop/gate ingress[0]");
    assert_eq!(miss.because, ["from[0]: podSelector wants app=gateway; shop/web has app=web"]);
    let changes: Vec<Value> = flow.ingress.hints.iter().map(|hint| json!(hint.change)).collect();
    assert_eq!(
        changes[..2],
        [
            json!({ "kind": "patchPolicy", "namespace": "shop", "name": "gate", "patch": [{
                "op": "add", "path": "/spec/ingress/0/from/-",
                "value": { "podSelector": { "matchLabels": { "app": "web" } } },
            }] }),
            json!({ "kind": "labelPod", "namespace": "shop", "name": "web", "labels": { "app": "gateway" } }),
        ]
    );
    assert_eq!(changes[2]["manifest"]["metadata"]["name"], "allow-api-from-web");
    assert_eq!(changes[2]["manifest"]["spec"]["podSelector"], json!({ "matchLabels": { "app": "api" } }));
}

#[test]
fn another_port_another_protocol_and_an_unknown_name_are_told_apart() {
    let because = |cluster: &ClusterState, destination: &str| {
        let answer = asked(cluster, "web", destination);
        only(&answer).ingress.nearest[0].because.join("; ")
    };
    let mut cluster = cluster();
    let rule = |ports: Value| {
        policy("gate", json!({ "podSelector": { "matchLabels": { "app": "api" } }, "ingress": [{ "ports": ports }] }))
    };
    apply(&mut cluster, &[rule(json!([{ "port": 80, "endPort": 90 }]))]);
    assert_eq!(because(&cluster, "api:8080"), "ports[0]: takes TCP 80-90, not TCP 8080");
    assert_eq!(because(&cluster, "api:80/UDP"), "ports[0]: takes TCP 80-90, not UDP 80");
    assert!(because(&cluster, "api:icmp").contains("rules without `ports` only"));
    apply(&mut cluster, &[rule(json!([{ "port": "metrics" }]))]);
    assert!(because(&cluster, "api:8080").contains("named port \"metrics\" is unknown on shop/api"));
    apply(&mut cluster, &[rule(json!([{ "port": "http" }]))]);
    assert_eq!(because(&cluster, "api:81"), "ports[0]: named port \"http\" is 8080 on shop/api, not TCP 81");
    assert!(only(&asked(&cluster, "web", "api:http")).allowed);
}

#[test]
fn blocks_and_namespaces_say_what_they_lack() {
    let mut cluster = cluster();
    let from = |peer: Value| {
        policy("gate", json!({ "podSelector": { "matchLabels": { "app": "api" } }, "ingress": [{ "from": [peer] }] }))
    };
    let because = |cluster: &ClusterState, source: &str| {
        let answer = asked(cluster, source, "api:8080");
        only(&answer).ingress.nearest[0].because.join("; ")
    };
    apply(&mut cluster, &[from(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.244.2.0/24"] } }))]);
    assert!(because(&cluster, "x/far").ends_with("cut out of it by except 10.244.2.0/24"));
    assert!(because(&cluster, "203.0.113.9").contains("203.0.113.9 is not in ipBlock 10.0.0.0/8"));
    assert!(only(&asked(&cluster, "web", "api:8080")).allowed);
    apply(&mut cluster, &[from(json!({ "podSelector": {} }))]);
    assert!(because(&cluster, "x/far").contains("x/far is in x"));
    apply(&mut cluster, &[from(json!({ "namespaceSelector": { "matchLabels": { "team": "shop" } } }))]);
    assert!(because(&cluster, "x/far").contains("namespaceSelector wants team=shop; namespace x has team=x"));
    assert!(because(&cluster, "203.0.113.9").contains("selectors match pods only"));
    // Of two pods with one address the selector must match both; the hint goes by address.
    apply(
        &mut cluster,
        &[from(json!({ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "gateway" } } }))],
    );
    assert!(only(&asked(&cluster, "x/far", "api:8080")).allowed);
    let answer = asked(&cluster, "10.244.2.7", "api:8080");
    assert!(
        answer.flows.iter().all(|flow| !flow.allowed) && answer.notes[0].contains("claimed by x/other-twin, x/twin")
    );
    assert!(json!(answer.flows[0].ingress.hints[0].change).to_string().contains("10.244.2.7/32"));
}

#[test]
fn services_are_judged_on_their_backends_by_any_of_their_addresses() {
    let cluster = cluster();
    for destination in ["svc/api", "svc/shop/api:80", "10.96.0.10:80", "node/n1:30080"] {
        let answer = asked(&cluster, "web", destination);
        let flow = only(&answer);
        assert_eq!(
            (flow.destination.pod.as_deref(), flow.traffic.as_str()),
            (Some("shop/api"), "TCP 8080"),
            "{destination}"
        );
        assert_eq!(flow.destination.service.as_deref(), Some("shop/api"));
        assert!(!flow.allowed);
    }
    assert!(only(&asked(&cluster, "api", "svc/api")).allowed, "a pod through its own service");
    let answer = asked(&cluster, "web", "svc/api:81");
    assert_eq!((answer.flows.len(), answer.similar), (0, vec!["svc/shop/api:80/Tcp".to_owned()]));
}

#[test]
fn a_block_that_holds_a_services_address_and_not_its_pods_is_told_of() {
    let to = |cidr: &str| {
        policy(
            "out",
            json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"],
                              "egress": [{ "to": [{ "ipBlock": { "cidr": cidr } }] }] }),
        )
    };
    let mut cluster = cluster();
    apply(&mut cluster, &[to("10.96.0.0/16")]);
    let notes = |cluster: &ClusterState, destination: &str| only(&asked(cluster, "web", destination)).notes.join("; ");
    let said = notes(&cluster, "10.96.0.10:80");
    assert!(
        said.starts_with("ipBlock 10.96.0.0/16 of shop/out holds 10.96.0.10, the address of svc/shop/api: "),
        "{said}"
    );
    assert_eq!(notes(&cluster, "api:8080"), "", "asked without the service");
    apply(&mut cluster, &[to("10.0.0.0/8")]);
    assert_eq!(notes(&cluster, "svc/api"), "", "it holds the pods too");
}

#[test]
fn nodes_host_network_and_completed_pods_are_what_they_are() {
    let cluster = cluster();
    let exempt = |source: &str, destination: &str| {
        let answer = asked(&cluster, source, destination);
        let flow = only(&answer).clone();
        (flow.allowed, flow.ingress.reason + &flow.egress.reason)
    };
    let (allowed, why) = exempt("node/n1", "api:8080");
    assert!(allowed && why.contains("own node always reaches it"), "{why}");
    let (allowed, why) = exempt("kube-system/proxy", "api:8080");
    assert!(allowed && why.contains("hostNetwork"), "{why}");
    let (allowed, why) = exempt("web", "done:8080");
    assert!(allowed && why.contains("completed"), "{why}");
    let (allowed, why) = exempt("web", "web:1");
    assert!(allowed && why.contains("always reaches itself"), "{why}");
    // The node of somebody else is an address like any other.
    assert!(!exempt("192.0.2.77", "api:8080").0);
    let missing = asked(&cluster, "shop/wep", "api:8080");
    assert_eq!(
        (missing.unanswerable.as_deref(), &missing.similar[..]),
        (Some("there is no pod shop/wep"), &["shop/api", "shop/done", "shop/web"].map(String::from)[..])
    );
}

#[test]
fn a_judge_that_says_otherwise_is_told_loudly() {
    struct Contrary;
    impl Compiled for Contrary {
        fn opinion(&self, _side: Side<'_>) -> Option<Opinion> {
            Some(Opinion { isolated_by: None, allowed_by: Vec::new(), passes: true, enforced: true })
        }
    }
    let cluster = cluster();
    let nodes = Nodes::default();
    let facts = Facts { cluster: &cluster, nodes: &nodes, enforce_own_node: false };
    let answer = explain(&Question::parse("web", "api:8080", "shop").unwrap(), &facts, &Contrary);
    let told: Vec<&str> = answer.disagreements().collect();
    assert!(told.len() == 1 && told[0].contains("the maps of this node lets it through"), "{told:?}");
    assert!(!answer.allowed());
    let _: IpAddr = cluster.pods().next().unwrap().addresses[0];
}
