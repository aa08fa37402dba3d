//! Objects that hang together, that are newer than the agent, and a single one past the watch.

use std::collections::BTreeSet;
use std::time::Instant;

use netpol_agent::cluster::model::ObjectKey;
use netpol_agent::source::kube::KubeSource;
use netpol_tests::apiserver::Kind;
use serde_json::json;

use super::scene::{LONG, Scene, namespace, pod, policy, run, service};

#[test]
fn a_pod_waits_for_its_namespace_and_a_namespace_for_its_pods() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        scene.server.faults(|faults| faults.forbidden = BTreeSet::from(["namespaces".to_owned()]));
        scene.server.break_connections();
        scene.until("namespaces are not heard of", |scene| scene.source.health().kinds[1].error.is_some()).await;
        let in_z = |name: &str, app: &str| {
            let mut pod = pod(name, app, 40);
            pod["metadata"]["namespace"] = "z".into();
            pod
        };
        scene.server.apply(&namespace("z", "prod"));
        scene.server.apply(&in_z("early", "one"));
        // A marker that comes after it in the same watch.
        scene.server.apply(&pod("marker", "one", 41));
        let has =
            |scene: &Scene, namespace: &str, name: &str| scene.state.pod(&ObjectKey::new(namespace, name)).is_some();
        scene.until("the marker", |scene| has(scene, "x", "marker")).await;
        assert!(!has(&scene, "z", "early"), "no selector knows the labels of its namespace");
        scene.server.faults(|faults| faults.forbidden.clear());
        scene.converge().await;
        assert!(has(&scene, "z", "early"));
        // The other way round: the namespace goes, and its pods were not heard to go.
        scene.server.faults(|faults| faults.forbidden = BTreeSet::from(["pods".to_owned()]));
        scene.server.break_connections();
        scene.until("pods are not heard of", |scene| scene.source.health().kinds[2].error.is_some()).await;
        scene.server.delete(Kind::Pod, "z", "early");
        scene.server.delete(Kind::Namespace, "", "z");
        scene.server.apply(&namespace("marker", "dev"));
        scene.until("the marker", |scene| scene.state.namespace_labels("marker").is_some()).await;
        let env = scene.state.namespace_labels("z").unwrap().get("env").cloned();
        assert_eq!(env.as_deref(), Some("prod"), "it still has a pod that is not known to be gone");
        scene.server.faults(|faults| faults.forbidden.clear());
        scene.converge().await;
    });
}

#[test]
fn fields_of_a_newer_api_server_harm_pods_and_services_and_narrow_policies() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        let mut newer = pod("newer", "one", 50);
        newer["spec"]["hostNetworks"] = json!(["a slip of hostNetwork in a file"]);
        newer["spec"]["containers"][0]["hostPorts"] = json!([{ "x": 1 }]);
        newer["status"]["podIPss"] = json!([]);
        newer["metadata"]["lables"] = json!({});
        newer["metadata"]["annotations"] = json!({ "kubernetes.io/config.hash": "0123", "other": "x" });
        let mut newer_service = service("newer", 50);
        newer_service["spec"]["clusterIPPs"] = json!(true);
        let mut newer_policy = policy("newer", "one");
        newer_policy["spec"]["ingress"][0]["except"] = json!([]);
        for object in [&newer, &newer_service, &newer_policy] {
            scene.server.apply(object);
        }
        let known = |scene: &Scene| {
            scene.state.pod(&ObjectKey::new("x", "newer")).is_some()
                && scene.state.services().any(|service| &*service.key.name == "newer")
                && scene.state.policies().any(|policy| &*policy.key.name == "newer")
        };
        scene.until("all are known", known).await;
        let pod = scene.state.pod(&ObjectKey::new("x", "newer")).unwrap();
        assert_eq!((pod.host_network, &*pod.static_uid), (false, "0123"));
        let problems = scene.source.take().problems;
        assert!(problems.iter().all(|problem| problem.object == "NetworkPolicy x/newer"), "{problems:#?}");
        assert!(problems.iter().any(|problem| problem.field.contains("except")), "{problems:#?}");
        scene.server.delete(Kind::NetworkPolicy, "x", "newer");
        scene.until("its problems go with it", |scene| scene.state.policies().count() == 2).await;
        assert!(scene.source.take().problems.is_empty());
    });
}

#[test]
fn a_single_pod_is_got_past_what_is_followed() {
    run(async {
        let scene = Scene::new(|_| {}).await;
        let got = KubeSource::pod(scene.source.client(), &ObjectKey::new("x", "a")).await.unwrap().unwrap();
        assert_eq!(Some(&got), scene.state.pod(&ObjectKey::new("x", "a")).map(|pod| &**pod));
        assert_eq!(KubeSource::pod(scene.source.client(), &ObjectKey::new("x", "none")).await.unwrap(), None);
        scene.server.set_away(true);
        // Connections that are open already last for a moment.
        let deadline = Instant::now() + LONG;
        while KubeSource::pod(scene.source.client(), &ObjectKey::new("x", "a")).await.is_ok() {
            assert!(Instant::now() < deadline, "nobody is there");
        }
    });
}
