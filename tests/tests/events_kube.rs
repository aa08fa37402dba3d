//! Events on policies that are not enforced as written, against the double of the API server.

use std::time::{Duration, Instant};

use netpol_agent::observe::events_kube::{PolicyEvents, Trouble, Troubles};
use netpol_agent::problem::{Problem, Severity};
use netpol_agent::source::kube::{KubeOptions, KubeSource};
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
