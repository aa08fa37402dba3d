//! Answers about a small cluster, read from manifests as the agent reads them.

use serde_json::{Value, json};

use super::*;
use crate::cluster::model::ClusterEvent;
use crate::source::decode_value;

fn state() -> ClusterState {
    let pod = |namespace: &str, name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
               "status": {"podIPs": [{"ip": address}]}})
    };
    let policy = |namespace: &str, name: &str, spec: Value| {
        let metadata = json!({"namespace": namespace, "name": name, "uid": format!("uid-{name}"), "generation": 3});
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    };
    let objects = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}},
        pod("shop", "db", "10.0.0.1"),
        pod("shop", "api", "10.0.0.2"),
        pod("test", "api", "10.0.0.3"),
        policy("shop", "db-access", json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"port": 5432}, {"port": 80, "endPort": 90, "protocol": "UDP"}]},
                {"from": [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"protocol": "SCTP"}, {"port": "http"}]},
                {},
            ]})),
        policy("shop", "default-deny", json!({"podSelector": {}})),
        policy("test", "elsewhere", json!({"podSelector": {}})),
    ]);
    let mut state = ClusterState::default();
    for value in objects.as_array().unwrap() {
        for object in decode_value("test", value).objects() {
            state.apply(ClusterEvent::Apply(object.clone()));
        }
    }
    state
}

fn endpoints() -> Vec<EndpointReport> {
    let of =
        |pod: &str, state: &str| EndpointReport { pod: pod.into(), state: state.into(), ..EndpointReport::default() };
    vec![of("shop/db", "enforced"), of("shop/api", "failed"), of("", "pending"), of("test/api", "enforced")]
}

fn problem(object: &str) -> Problem {
    let (origin, field, message, effect) = ("api-server".into(), "spec".into(), "wrong".into(), "none".into());
    Problem { severity: Severity::Refused, origin, object: object.into(), field, message, effect }
}

#[test]
fn a_policy_is_said_as_it_is_enforced() {
    let problems =
        [problem("NetworkPolicy shop/other, NetworkPolicy shop/db-access"), problem("NetworkPolicy shop/db-access-2")];
    let report = policy(&state(), &PolicyKey::new("shop", "db-access"), &endpoints(), &problems).unwrap();
    assert_eq!(report.selects, "app=db");
    assert_eq!(report.summary.policy_types, ["Ingress", "Egress"]);
    assert_eq!(report.summary.version, Some(VersionReport { uid: "uid-db-access".into(), generation: 3 }));
    assert_eq!(report.summary.pods, [SelectedPod { name: "db".into(), state: "enforced".into() }]);
    assert_eq!(report.summary.problems, problems[..1]);
    assert_eq!(report.egress, Some(vec![]));
    let [first, second, third] = report.ingress.unwrap().try_into().unwrap();
    let peer = |who: &str, pods, addresses| PeerReport { who: who.into(), pods, addresses };
    assert_eq!(first.peers, Some(vec![peer("pods app=api in namespace shop", Some(1), Some(1))]));
    assert_eq!(first.ports, Some(vec!["TCP 5432".into(), "UDP 80-90".into()]));
    let second_peers = [
        peer("all pods in all namespaces", Some(3), Some(3)),
        peer("ipBlock 10.0.0.0/8 except 10.1.0.0/16", None, None),
    ];
    assert_eq!(second.peers.unwrap(), second_peers);
    assert_eq!(second.ports, Some(vec!["SCTP (all ports)".into(), "TCP http".into()]));
    assert_eq!(third, RuleReport::default());
}

#[test]
fn a_list_has_every_policy_and_only_pods_of_its_namespace() {
    let list = policies(&state(), &endpoints(), &[]);
    let names: Vec<_> = list.iter().map(|it| (it.namespace.as_str(), it.name.as_str(), it.pods.len())).collect();
    assert_eq!(names, [("shop", "db-access", 1), ("shop", "default-deny", 2), ("test", "elsewhere", 1)]);
}

#[test]
fn names_that_may_have_been_meant_are_offered() {
    let similar = |namespace: &str, name: &str| similar(&state(), &PolicyKey::new(namespace, name));
    assert_eq!(similar("shop", "db-acess"), ["shop/db-access"]);
    assert_eq!(similar("shop", "elsewhere"), ["test/elsewhere"]);
    assert_eq!(similar("shop", "deny"), ["shop/default-deny"]);
    assert_eq!(similar("shop", "zzz"), [""; 0]);
}

#[test]
fn pods_and_problems_are_counted() {
    assert_eq!(pod_counts(&endpoints()), PodCounts { enforced: 2, pending: 1, failed: 1 });
    let note = Problem { severity: Severity::Note, ..problem("x") };
    assert_eq!(problem_counts(&[problem("x"), note]), ProblemCounts { refused: 1, notes: 1 });
}

#[test]
fn a_policy_is_in_trouble_if_it_is_known_and_not_as_written() {
    let note = Problem { severity: Severity::Note, ..problem("NetworkPolicy shop/default-deny") };
    let problems = [problem("NetworkPolicy shop/db-access"), problem("NetworkPolicy shop/unknown"), note];
    let of = |endpoints: &[EndpointReport]| {
        let troubles = troubles(&state(), endpoints, &problems);
        troubles.into_iter().map(|(policy, trouble)| (policy, trouble.is_local)).collect::<Vec<_>>()
    };
    assert_eq!(of(&endpoints()), [("shop/db-access".to_owned(), true)]);
    assert_eq!(of(&[]), [("shop/db-access".to_owned(), false)]);
}
