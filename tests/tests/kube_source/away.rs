//! An API server that is away, or refuses: what is in force stays, and health says why.

use std::collections::BTreeSet;

use netpol_agent::cluster::ClusterState;
use netpol_agent::source::kube::{KubeOptions, KubeSource};

use super::scene::{Scene, impatient, pod, run, tempfile};

#[test]
fn an_api_server_that_is_away_changes_nothing_but_health() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        let batches = scene.batches.len();
        scene.guard();
        scene.server.set_away(true);
        let lasting = |scene: &Scene| scene.source.health().kinds.iter().all(|kind| kind.failures >= 4);
        scene.until("tries again", lasting).await;
        let health = scene.source.health();
        assert!(health.synced && health.kinds.iter().all(|kind| kind.stale_since.is_some()), "{health:#?}");
        assert!(health.kinds.iter().all(|kind| kind.error.as_ref().is_some_and(|error| error.contains("reached"))));
        let problems = scene.source.take().problems;
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(problems[0].effect.contains("stays in force"), "{problems:#?}");
        assert_eq!(scene.batches.len(), batches);
        scene.server.set_away(false);
        scene.until("is up to date", |scene| !scene.source.health().is_stale()).await;
        assert!(scene.source.take().problems.is_empty());
    });
}

#[test]
fn a_start_without_an_api_server_waits_for_it() {
    run(async {
        let server = Scene::server(|_| {});
        server.set_away(true);
        let mut scene = Scene::on(server, impatient()).await;
        scene.until("it fails", |scene| scene.source.health().kinds.iter().all(|kind| kind.failures >= 3)).await;
        let problems = scene.source.take().problems;
        assert!(problems.iter().all(|problem| problem.effect.contains("nothing is known")), "{problems:#?}");
        assert!(!scene.source.is_synced() && scene.batches.is_empty());
        scene.server.set_away(false);
        scene.converge().await;
    });
}

#[test]
fn a_missing_right_is_named_and_the_rest_goes_on() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        scene.guard();
        scene.server.faults(|faults| faults.forbidden = BTreeSet::from(["networkpolicies".to_owned()]));
        scene.server.break_connections();
        let failing = |scene: &Scene| scene.source.health().kinds[0].error.is_some();
        scene
            .until("the right is missed", |scene| {
                failing(scene)
                    && scene.source.health().kinds[0].error.as_ref().is_some_and(|error| error.contains("403"))
            })
            .await;
        let problems = scene.source.take().problems;
        let text = problems.iter().map(ToString::to_string).collect::<String>();
        for word in ["networkpolicies", "networking.k8s.io", "list", "watch", "ClusterRole", "stays in force"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        scene.guarded.clear();
        scene.server.apply(&pod("a", "still", 1));
        scene.converge().await;
        scene.server.faults(|faults| faults.forbidden.clear());
        scene.until("it is allowed", |scene| !failing(scene)).await;
    });
}

#[test]
fn a_token_that_is_no_longer_taken_is_read_again() {
    run(async {
        let token = tempfile::Path::with("first");
        let server = Scene::server(|faults| faults.token = Some("first".to_owned()));
        let kubeconfig = tempfile::Path::with(&server.kubeconfig(Some(&token.0)));
        let options = KubeOptions { kubeconfig: Some(kubeconfig.0.clone()), timing: impatient() };
        let source = KubeSource::connect(&options).await.unwrap();
        let (state, guarded, batches) = (ClusterState::default(), Vec::new(), Vec::new());
        let mut scene = Scene { server, source, state, guarded, batches, kubeconfig };
        scene.converge().await;
        scene.guard();
        scene.server.faults(|faults| faults.token = Some("second".to_owned()));
        scene.server.break_connections();
        scene
            .until("credentials are refused", |scene| {
                scene
                    .source
                    .health()
                    .kinds
                    .iter()
                    .any(|kind| kind.error.as_ref().is_some_and(|error| error.contains("401")))
            })
            .await;
        std::fs::write(&token.0, "second").unwrap();
        scene.until("they are read again", |scene| !scene.source.health().is_stale()).await;
        scene.server.apply(&pod("late", "one", 30));
        scene.converge().await;
        assert!(scene.kubeconfig.0.exists());
    });
}
