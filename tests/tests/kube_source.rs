//! The source of the API server against the double: after each fault it has what the server has, and meanwhile nothing is
//! taken back that the server still has.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use netpol_agent::cluster::ClusterState;
use netpol_agent::cluster::model::{ClusterEvent, Object, ObjectKey, ObjectRef};
use netpol_agent::source::decode_value;
use netpol_agent::source::kube::{KubeOptions, KubeSource, Timing};
use netpol_tests::apiserver::{ApiServer, Faults, Kind, Refusal, Spoil};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

/// Longest that anything may take here.
const LONG: Duration = Duration::from_secs(20);

fn impatient() -> Timing {
    Timing {
        backoff_first: Duration::from_millis(10),
        backoff_longest: Duration::from_millis(100),
        answer: Duration::from_millis(400),
        silence: Duration::from_millis(400),
        streaming: Duration::from_millis(300),
        hold: Duration::from_millis(500),
        watch: Duration::from_secs(60),
    }
}

fn namespace(name: &str, env: &str) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": { "env": env } } })
}

fn pod(name: &str, app: &str, host: u8) -> Value {
    let ip = format!("10.0.0.{host}");
    json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "x", "labels": { "app": app }, "managedFields": [{ "manager": "kubelet" }] },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i", "ports": [{ "name": "web", "containerPort": 80 }] }] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [] },
    })
}

fn policy(name: &str, app: &str) -> Value {
    json!({
        "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "x" },
        "spec": { "podSelector": {}, "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": app } } }] }] },
    })
}

fn service(name: &str, host: u8) -> Value {
    json!({
        "kind": "Service",
        "metadata": { "name": name, "namespace": "x" },
        "spec": { "clusterIP": format!("10.96.0.{host}"), "ports": [{ "port": 80, "targetPort": 80 }] },
    })
}

/// The double, a source that follows it, and what was taken so far.
struct Scene {
    server: ApiServer,
    source: KubeSource,
    state: ClusterState,
    /// What must not go, and must not be anything but this.
    guarded: Vec<Object>,
    batches: Vec<Vec<ClusterEvent>>,
    kubeconfig: tempfile::Path,
}

/// A file that goes with its test.
mod tempfile {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub(super) struct Path(pub(super) PathBuf);

    impl Path {
        pub(super) fn with(text: &str) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("netpol-kube-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for Path {
        fn drop(&mut self) {
            drop(std::fs::remove_file(&self.0));
        }
    }
}

fn decoded(value: &Value) -> Option<Object> {
    decode_value("api-server", value).objects().next().cloned()
}

impl Scene {
    /// A server with a few objects and `faults`.
    fn server(faults: impl FnOnce(&mut Faults)) -> ApiServer {
        let server = ApiServer::start().unwrap();
        server.faults(|all| all.bookmark_every = Duration::from_millis(100));
        server.faults(faults);
        for object in [
            namespace("x", "dev"),
            namespace("y", "prod"),
            pod("a", "one", 1),
            pod("b", "two", 2),
            policy("p", "one"),
            policy("q", "two"),
            service("s", 1),
        ] {
            server.apply(&object);
        }
        server
    }

    async fn on(server: ApiServer, timing: Timing) -> Self {
        let kubeconfig = tempfile::Path::with(&server.kubeconfig(None));
        let options = KubeOptions { kubeconfig: Some(kubeconfig.0.clone()), timing };
        let source = KubeSource::connect(&options).await.unwrap();
        Self { server, source, state: ClusterState::default(), guarded: Vec::new(), batches: Vec::new(), kubeconfig }
    }

    /// The scene once all is known.
    async fn new(faults: impl FnOnce(&mut Faults)) -> Self {
        let mut scene = Self::on(Self::server(faults), impatient()).await;
        scene.converge().await;
        scene
    }

    fn wanted(&self) -> ClusterState {
        let mut wanted = ClusterState::default();
        let all = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service];
        for object in all.into_iter().flat_map(|kind| self.server.objects(kind)).filter_map(|value| decoded(&value)) {
            wanted.apply(ClusterEvent::Apply(object));
        }
        wanted
    }

    /// Everything there is now must stay as it is until something else is said.
    fn guard(&mut self) {
        let all = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service];
        let objects = all.into_iter().flat_map(|kind| self.server.objects(kind));
        self.guarded = objects.filter_map(|value| decoded(&value)).collect();
    }

    fn take(&mut self) {
        let events = self.source.take().events;
        for event in &events {
            for guarded in &self.guarded {
                match event {
                    ClusterEvent::Apply(object) if object.reference() == guarded.reference() => {
                        assert_eq!(object, guarded, "it is not so at the server");
                    }
                    ClusterEvent::Delete(reference) => {
                        assert_ne!(*reference, guarded.reference(), "it is still at the server");
                    }
                    ClusterEvent::Apply(_) => {}
                }
            }
            self.state.apply(event.clone());
        }
        if !events.is_empty() {
            assert_ordered(&events);
            self.batches.push(events);
        }
    }

    /// Takes changes until all is as the server has it.
    async fn converge(&mut self) {
        let deadline = Instant::now() + LONG;
        while !self.source.is_synced() || self.state != self.wanted() {
            assert!(
                Instant::now() < deadline,
                "it does not converge: {:#?}\nrequests {:#?}\nhas {:#?}\nwants {:#?}",
                self.source.health(),
                self.server.take_requests(),
                self.state,
                self.wanted()
            );
            self.next(Duration::from_millis(50)).await;
        }
    }

    async fn next(&mut self, most: Duration) {
        if tokio::time::timeout(most, self.source.changed()).await.is_ok() {
            self.take();
        }
    }

    /// Takes changes until `is` holds.
    async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !is(self) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.source.health());
            self.next(Duration::from_millis(10)).await;
        }
    }

    /// One change of each kind: what is added, changed and deleted.
    fn change(&mut self) {
        self.guarded.clear();
        self.server.apply(&pod("a", "changed", 1));
        self.server.apply(&pod("new", "one", 9));
        self.server.delete(Kind::Pod, "x", "b");
        self.server.apply(&policy("p", "changed"));
        self.server.delete(Kind::NetworkPolicy, "x", "q");
        self.server.apply(&namespace("x", "changed"));
        self.server.delete(Kind::Namespace, "", "y");
        self.server.apply(&service("s", 7));
    }
}

/// As `Changes::events` promises.
fn assert_ordered(events: &[ClusterEvent]) {
    let ranks: Vec<u8> = events
        .iter()
        .map(|event| match event {
            ClusterEvent::Apply(Object::NetworkPolicy(_)) => 0,
            ClusterEvent::Apply(Object::Namespace(_)) => 1,
            ClusterEvent::Apply(Object::Pod(_)) => 2,
            ClusterEvent::Apply(Object::Service(_)) => 3,
            ClusterEvent::Delete(ObjectRef::Pod(_)) => 4,
            ClusterEvent::Delete(ObjectRef::Service(_)) => 5,
            ClusterEvent::Delete(ObjectRef::Namespace(_)) => 6,
            ClusterEvent::Delete(ObjectRef::NetworkPolicy(_)) => 7,
        })
        .collect();
    assert!(ranks.is_sorted(), "{events:#?}");
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

#[test]
fn everything_comes_as_one_batch_and_changes_follow() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        assert_eq!(scene.batches.len(), 1, "{:#?}", scene.batches);
        assert!(scene.server.take_requests().iter().all(|request| request.contains("sendInitialEvents=true")));
        assert!(!scene.source.health().is_stale());
        scene.change();
        scene.converge().await;
        assert!(scene.server.take_requests().is_empty(), "following needs no request");
    });
}

/// Something, and what it is called.
type Named<T> = (&'static str, T);

/// Each way in which the beginning can go wrong.
fn broken_starts() -> Vec<Named<fn(&mut Faults)>> {
    vec![
        ("no streaming lists", |faults| faults.no_streaming = true),
        ("sendInitialEvents is not known", |faults| faults.ignore_streaming = true),
        ("internal errors", |faults| faults.refuse = vec![Refusal { status: 500, retry_after: None }; 6]),
        ("overload", |faults| faults.refuse = vec![Refusal { status: 429, retry_after: Some(1) }]),
        ("lists cut in the middle", |faults| faults.spoil = (1..40).map(|n| Spoil::CutAfter(n * 37)).collect()),
        ("lists that stall", |faults| faults.spoil = (0..5).map(|n| Spoil::StallAfter(n * 100)).collect()),
        ("bytes that trickle", |faults| {
            faults.spoil_all = Some(Spoil::Trickle { bytes: 40, pause: Duration::from_millis(1) });
        }),
        ("compressed lists", |faults| (faults.no_streaming, faults.gzip_from) = (true, 0)),
        ("compressed lists cut in the middle", |faults| {
            (faults.no_streaming, faults.gzip_from) = (true, 0);
            faults.spoil = (1..20).map(|n| Spoil::CutAfter(n * 23)).collect();
        }),
    ]
}

#[test]
fn a_start_that_goes_wrong_gives_nothing_until_everything_is_known() {
    run(async {
        for (what, faults) in broken_starts() {
            println!("{what}");
            let mut scene = Scene::on(Scene::server(faults), impatient()).await;
            let deadline = Instant::now() + LONG;
            while !scene.source.is_synced() {
                assert!(Instant::now() < deadline, "{what}: {:#?}", scene.source.health());
                scene.take();
                assert!(scene.batches.is_empty(), "{what}: {:#?}", scene.batches);
                scene.next(Duration::from_millis(20)).await;
            }
            scene.converge().await;
            scene.change();
            scene.converge().await;
        }
    });
}

#[test]
fn pages_of_a_list_are_put_together_and_an_expired_token_starts_it_again() {
    run(async {
        for expired in [false, true] {
            let server = Scene::server(|faults| (faults.no_streaming, faults.expired_continue) = (true, expired));
            for number in 0..1200 {
                server.apply(&pod(&format!("pod-{number:04}"), "many", 3));
            }
            let mut scene = Scene::on(server, impatient()).await;
            scene.converge().await;
            let requests = scene.server.take_requests();
            let pages =
                requests.iter().filter(|request| request.contains("/pods?") && request.contains("limit=")).count();
            // 500, 500, 202; or 500, expired, 1000, expired, 2000.
            assert_eq!(pages, if expired { 5 } else { 3 }, "{requests:#?}");
            assert_eq!(scene.batches.len(), 1);
        }
    });
}

/// Each way in which following can go wrong, with what is changed meanwhile.
fn breaks() -> Vec<Named<fn(&ApiServer)>> {
    vec![
        ("connections break in the middle of an object", ApiServer::break_connections),
        ("gone, said by an event", |server| {
            server.compact();
            server.break_connections();
        }),
        ("gone, said by the status", |server| {
            server.faults(|faults| faults.gone_as_status = true);
            server.compact();
            server.break_connections();
        }),
        ("gone, and no streaming", |server| {
            server.faults(|faults| faults.no_streaming = true);
            server.compact();
            server.break_connections();
        }),
        ("garbage", |server| server.faults(|faults| faults.garbage = 6)),
        ("errors in the stream", |server| server.faults(|faults| faults.errors = vec![500, 410, 504, 429, 410, 500])),
        ("watches that stall", |server| {
            server.faults(|faults| faults.spoil = vec![Spoil::StallAfter(90); 8]);
            server.break_connections();
        }),
        ("watches that are cut again and again", |server| {
            server.faults(|faults| faults.spoil = (0..16).map(|n| Spoil::CutAfter(n * 61)).collect());
            server.break_connections();
        }),
        ("a relist that is cut again and again", |server| {
            server.faults(|faults| faults.spoil = (0..24).map(|n| Spoil::CutAfter(n * 61)).collect());
            server.compact();
            server.break_connections();
        }),
        ("a relist that stalls", |server| {
            server.faults(|faults| faults.spoil = vec![Spoil::StallAfter(200); 8]);
            server.compact();
            server.break_connections();
        }),
        ("overload", |server| {
            server.faults(|faults| faults.refuse = vec![Refusal { status: 429, retry_after: Some(1) }; 5]);
            server.break_connections();
        }),
        ("internal errors", |server| {
            server.faults(|faults| faults.refuse = vec![Refusal { status: 500, retry_after: None }; 20]);
            server.break_connections();
        }),
    ]
}

#[test]
fn after_each_fault_all_is_as_the_server_has_it_and_meanwhile_nothing_is_taken_back() {
    run(async {
        for (what, fault) in breaks() {
            println!("{what}");
            let mut scene = Scene::new(|_| {}).await;
            scene.guard();
            fault(&scene.server);
            // What comes is heard through the fault; what is there stays.
            scene.server.apply(&pod("later", "one", 20));
            scene.server.apply(&policy("later", "one"));
            scene.server.apply(&namespace("later", "dev"));
            scene.server.apply(&service("later", 20));
            scene.converge().await;
            scene.change();
            scene.converge().await;
        }
    });
}

#[test]
fn what_was_deleted_while_nobody_watched_goes_with_the_next_whole_list() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        scene.server.set_away(true);
        scene.change();
        scene.server.compact();
        scene.until("it is stale", |scene| scene.source.health().is_stale()).await;
        let before = scene.batches.len();
        scene.server.set_away(false);
        scene.converge().await;
        // Kinds that are listed at the same time move together.
        assert_eq!(scene.batches.len(), before + 1, "{:#?}", scene.batches);
    });
}

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

#[test]
fn a_silent_watch_is_opened_again_and_bookmarks_keep_one_alive() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        drop(scene.server.take_requests());
        tokio::time::sleep(impatient().silence * 2).await;
        assert_eq!(scene.server.take_requests(), [""; 0], "bookmarks came");
        // Without them: the connection is there, and nobody speaks.
        scene.server.faults(|faults| faults.bookmark_every = Duration::from_secs(3600));
        scene.server.break_connections();
        scene.until("opened again", |scene| scene.server.watches() == 4 && !scene.source.health().is_stale()).await;
        drop(scene.server.take_requests());
        let silent = |scene: &Scene| {
            let health = scene.source.health();
            health.kinds.iter().any(|kind| kind.error.as_ref().is_some_and(|error| error.contains("nothing came")))
        };
        scene.until("it is noticed", silent).await;
        scene.guard();
        scene.server.apply(&pod("late", "one", 30));
        scene.converge().await;
    });
}

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

#[derive(Clone, Debug)]
enum Step {
    Apply(u8, u8),
    Delete(u8),
    Break,
    Compact,
    Fault(u8),
    Pause(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..16, 0_u8..5).prop_map(|(object, version)| Step::Apply(object, version)),
        3 => (0_u8..16).prop_map(Step::Delete),
        2 => Just(Step::Break),
        1 => Just(Step::Compact),
        3 => (0_u8..9).prop_map(Step::Fault),
        2 => (0_u8..30).prop_map(Step::Pause),
    ];
    prop::collection::vec(step, 5..40)
}

/// Objects 0..16: four of each kind. Namespaces are never deleted before what is in them.
fn numbered(number: u8, version: u8) -> Value {
    let name = format!("object-{}", number / 4);
    let app = format!("version-{version}");
    match number % 4 {
        0 => pod(&name, &app, 100 + number),
        1 => policy(&name, &app),
        2 => service(&name, 100 + version),
        _ => namespace(&name, &app),
    }
}

fn fault(server: &ApiServer, number: u8) {
    server.faults(|faults| match number {
        0 => faults.spoil.push(Spoil::CutAfter(150)),
        1 => faults.spoil.extend([Spoil::CutAfter(700); 4]),
        2 => faults.spoil.push(Spoil::StallAfter(300)),
        3 => faults.garbage += 1,
        4 => faults.errors.push(410),
        5 => faults.errors.push(500),
        6 => faults.refuse.push(Refusal { status: 503, retry_after: None }),
        7 => faults.no_streaming = !faults.no_streaming,
        _ => faults.gone_as_status = !faults.gone_as_status,
    });
}

/// Every version of every object that the server ever had, and whether it ever was without it.
#[derive(Default)]
struct Past {
    versions: BTreeMap<ObjectRef, Vec<Object>>,
    missed: BTreeSet<ObjectRef>,
}

impl Past {
    fn apply(&mut self, server: &ApiServer, value: &Value) {
        server.apply(value);
        let all = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service];
        for object in all.into_iter().flat_map(|kind| server.objects(kind)).filter_map(|value| decoded(&value)) {
            let versions = self.versions.entry(object.reference()).or_default();
            if versions.last() != Some(&object) {
                versions.push(object);
            }
        }
    }

    /// What is taken is what the server had, never something older than what was taken before.
    fn check(&self, event: &ClusterEvent, at: &mut BTreeMap<ObjectRef, usize>) {
        match event {
            ClusterEvent::Apply(object) => {
                let versions = &self.versions[&object.reference()];
                let from = at.get(&object.reference()).copied().unwrap_or_default();
                let found = versions.iter().enumerate().skip(from).find(|(_, version)| *version == object);
                let Some((place, _)) = found else { panic!("{object:#?} is older than what was taken, or never was") };
                at.insert(object.reference(), place);
            }
            ClusterEvent::Delete(reference) => {
                assert!(self.missed.contains(reference), "{reference} was never deleted");
            }
        }
    }
}

#[test]
fn whatever_happens_nothing_goes_back_and_in_the_end_all_is_as_the_server_has_it() {
    let cases = 24;
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 30, ..Config::default() };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            run(async {
                let mut past = Past::default();
                let server = Scene::server(|_| {});
                past.apply(&server, &namespace("x", "dev"));
                let mut scene = Scene::on(server, impatient()).await;
                let mut at = BTreeMap::new();
                for step in &steps {
                    match step {
                        Step::Apply(number, version) => past.apply(&scene.server, &numbered(*number, *version)),
                        Step::Delete(number) => {
                            let object = numbered(*number, 0);
                            let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap();
                            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                            if scene.server.delete(kind, namespace, object["metadata"]["name"].as_str().unwrap()) {
                                past.missed.insert(decoded_reference(&object));
                            }
                        }
                        Step::Break => scene.server.break_connections(),
                        Step::Compact => scene.server.compact(),
                        Step::Fault(number) => fault(&scene.server, *number),
                        Step::Pause(time) => scene.next(Duration::from_millis(u64::from(*time))).await,
                    }
                }
                scene.server.faults(|faults| {
                    let every = faults.bookmark_every;
                    *faults = Faults { bookmark_every: every, ..Faults::default() };
                });
                scene.converge().await;
                for event in scene.batches.iter().flatten() {
                    past.check(event, &mut at);
                }
            });
            Ok(())
        })
        .unwrap();
}

fn decoded_reference(value: &Value) -> ObjectRef {
    let mut value = value.clone();
    value["apiVersion"] = if value["kind"] == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" }.into();
    decoded(&value).unwrap().reference()
}
