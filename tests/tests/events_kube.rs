//! Events on policies that are not enforced as written, and on pods whose packets are dropped, against the double of the
//! API server.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};

use netpol_agent::cluster::model::{Pod, PodKey};
use netpol_agent::flow::{End, Flow, Headers, Match, Who};
use netpol_agent::observe::events_kube::{PolicyEvents, Trouble, Troubles};
use netpol_agent::observe::events_pod::PodEvents;
use netpol_agent::problem::{Problem, Severity};
use netpol_agent::source::kube::{KubeOptions, KubeSource};
use netpol_common::abi::{Direction, Reason};
use netpol_tests::apiserver::{ApiServer, Kind, Refusal};
use serde_json::{Value, json};

fn troubles(policy: &str, message: &str) -> Troubles {
    let problem = Problem {
        severity: Severity::Refused,
        origin: "api-server".to_owned(),
        object: format!("NetworkPolicy {policy}"),
        field: "spec.ingress[0].from[0]".to_owned(),
        message: message.to_owned(),
        effect: "this peer matches nobody".to_owned(),
    };
    [(policy.to_owned(), Trouble { problems: vec![problem], is_local: true })].into()
}

/// The next event that is posted.
async fn posted(server: &ApiServer) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut posted = server.take_posted();
        assert!(posted.len() < 2, "more than one: {posted:?}");
        if let Some(event) = posted.pop() {
            return event;
        }
        assert!(Instant::now() < deadline, "no event in ten seconds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authors_are_told_once_and_when_it_is_over_whatever_the_api_server_does_meanwhile() {
    let server = ApiServer::start().unwrap();
    server.apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                         "metadata": {"name": "x", "namespace": "shop"}, "spec": {"podSelector": {}}}));
    let uid = server.objects(Kind::NetworkPolicy)[0]["metadata"]["uid"].clone();
    let directory = std::env::temp_dir().join(format!("netpol-events-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).unwrap();
    let options = KubeOptions { kubeconfig: Some(kubeconfig), ..KubeOptions::default() };
    let source = KubeSource::connect(&options).await.unwrap();
    let events = PolicyEvents::start(source.client(), "alpha");

    events.tell(troubles("shop/x", "unknown field"));
    let event = posted(&server).await;
    for (field, expected) in [
        ("/type", json!("Warning")),
        ("/reason", json!("NotEnforcedAsWritten")),
        ("/note", json!("spec.ingress[0].from[0]: unknown field; effect: this peer matches nobody")),
        ("/reportingController", json!("netpol-agent")),
        ("/reportingInstance", json!("alpha")),
        ("/regarding/kind", json!("NetworkPolicy")),
        ("/regarding/name", json!("x")),
        ("/regarding/uid", uid),
        ("/metadata/namespace", json!("shop")),
    ] {
        assert_eq!(event.pointer(field), Some(&expected), "{field} of {event}");
    }
    // The same again is no news; another problem is, though its first note is only seconds old, and a refusal delays it.
    events.tell(troubles("shop/x", "unknown field"));
    let refusals = [503, 429].map(|status| Refusal { status, retry_after: None });
    server.faults(|faults| faults.refuse.extend(refusals));
    events.tell(troubles("shop/x", "another"));
    let event = posted(&server).await;
    assert!(event["note"].as_str().unwrap().contains("another"), "{event}");
    // Nobody can be told of a policy that is gone; the others are.
    let mut both = troubles("shop/gone", "whatever");
    both.extend(troubles("shop/x", "a third"));
    events.tell(both);
    let event = posted(&server).await;
    assert!(event["note"].as_str().unwrap().contains("a third"), "{event}");
    events.tell(Troubles::new());
    let event = posted(&server).await;
    assert_eq!((&event["type"], &event["reason"]), (&json!("Normal"), &json!("EnforcedAsWritten")));
    std::fs::remove_dir_all(&directory).unwrap();
}

fn pod(name: &str) -> Pod {
    Pod {
        key: PodKey::new("shop", name),
        uid: format!("uid-of-{name}").as_str().into(),
        static_uid: "".into(),
        labels: std::sync::Arc::default(),
        addresses: Vec::new(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "alpha".into(),
        host_network: false,
        terminal: false,
        workload: None,
    }
}

fn denied(reason: Reason) -> Flow {
    let end = |ip: &str, pod: Option<PodKey>| End {
        ip: Some(ip.parse().unwrap()),
        port: Some(80),
        pod,
        who: Who::default(),
        service: None,
    };
    Flow {
        time: std::time::SystemTime::UNIX_EPOCH,
        pod: None,
        direction: Direction::Ingress,
        reason,
        drop_reason: reason.hubble(),
        source: end("10.0.1.11", Some(PodKey::new("shop", "web"))),
        destination: end("10.0.1.12", None),
        protocol: "TCP".to_owned(),
        summary: String::new(),
        policies: vec![PodKey::new("shop", "deny")],
        isolated_for: None,
        hint: String::new(),
        length: 60,
        suppressed: 0,
        ifindex: 1,
        allowed_by: Vec::new(),
        matched: Match::None,
        headers: Headers::default(),
        slot: 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_told_of_drops_now_and_then_and_a_storm_is_few_events() {
    let server = ApiServer::start().unwrap();
    let directory = std::env::temp_dir().join(format!("netpol-pod-events-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(None)).unwrap();
    let options = KubeOptions { kubeconfig: Some(kubeconfig), ..KubeOptions::default() };
    let source = KubeSource::connect(&options).await.unwrap();
    let mut events = PodEvents::start(source.client(), "alpha");

    let api = pod("api");
    // What is not policy's, pods are not told of.
    events.flow(&denied(Reason::Malformed), &api);
    for _ in 0..1000 {
        events.flow(&denied(Reason::PolicyDenied), &api);
    }
    let event = posted(&server).await;
    let note =
        "Incoming packet dropped (policy-denied) from shop/web (10.0.1.11) TCP/80; isolated for ingress by shop/deny";
    for (field, expected) in [
        ("/type", "Warning"),
        ("/reason", "PacketDrop"),
        ("/note", note),
        ("/reportingController", "netpol-agent"),
        ("/reportingInstance", "alpha"),
        ("/regarding/kind", "Pod"),
        ("/regarding/namespace", "shop"),
        ("/regarding/name", "api"),
        ("/regarding/uid", "uid-of-api"),
        ("/metadata/namespace", "shop"),
    ] {
        assert_eq!(event.pointer(field), Some(&json!(expected)), "{field} of {event}");
    }
    // A storm over many pods: as many as are allowed at once, and then none.
    for number in 0..1000 {
        events.flow(&denied(Reason::PolicyDenied), &pod(&format!("p{number}")));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut all = Vec::new();
    while all.len() < 19 {
        all.extend(server.take_posted());
        assert!(Instant::now() < deadline, "{} events in ten seconds", all.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(all.len(), 19, "20 at once, with the first");
    drop(events);
    let asked = server.take_requests();
    assert_eq!(asked.iter().filter(|line| line.starts_with("POST")).count(), 20, "{asked:?}");
    std::fs::remove_dir_all(&directory).unwrap();
}
