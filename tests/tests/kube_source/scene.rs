//! The double, a source that follows it, and what must hold after every event.

use std::future::Future;
use std::time::{Duration, Instant};

use netpol_agent::cluster::ClusterState;
use netpol_agent::cluster::model::{ClusterEvent, Object, ObjectRef};
use netpol_agent::source::decode_value;
use netpol_agent::source::kube::{KubeOptions, KubeSource, Timing};
use netpol_tests::apiserver::{ApiServer, Faults, Kind};
use serde_json::{Value, json};

/// Longest that anything may take here.
pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn impatient() -> Timing {
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

pub(super) fn namespace(name: &str, env: &str) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": { "env": env } } })
}

pub(super) fn pod(name: &str, app: &str, host: u8) -> Value {
    let ip = format!("10.0.0.{host}");
    json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "x", "labels": { "app": app }, "managedFields": [{ "manager": "kubelet" }] },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i", "ports": [{ "name": "web", "containerPort": 80 }] }] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [] },
    })
}

pub(super) fn policy(name: &str, app: &str) -> Value {
    json!({
        "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "x" },
        "spec": { "podSelector": {}, "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": app } } }] }] },
    })
}

pub(super) fn service(name: &str, host: u8) -> Value {
    json!({
        "kind": "Service",
        "metadata": { "name": name, "namespace": "x" },
        "spec": { "clusterIP": format!("10.96.0.{host}"), "ports": [{ "port": 80, "targetPort": 80 }] },
    })
}

/// The double, a source that follows it, and what was taken so far.
pub(super) struct Scene {
    pub(super) server: ApiServer,
    pub(super) source: KubeSource,
    pub(super) state: ClusterState,
    /// What must not go, and must not be anything but this.
    pub(super) guarded: Vec<Object>,
    pub(super) batches: Vec<Vec<ClusterEvent>>,
    pub(super) kubeconfig: tempfile::Path,
}

/// A file that goes with its test.
pub(super) mod tempfile {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub(in super::super) struct Path(pub(in super::super) PathBuf);

    impl Path {
        pub(in super::super) fn with(text: &str) -> Self {
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

pub(super) fn decoded(value: &Value) -> Option<Object> {
    decode_value("api-server", value).objects().next().cloned()
}

impl Scene {
    /// A server with a few objects and `faults`.
    pub(super) fn server(faults: impl FnOnce(&mut Faults)) -> ApiServer {
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

    pub(super) async fn on(server: ApiServer, timing: Timing) -> Self {
        let kubeconfig = tempfile::Path::with(&server.kubeconfig(None));
        let options = KubeOptions { kubeconfig: Some(kubeconfig.0.clone()), timing };
        let source = KubeSource::connect(&options).await.unwrap();
        Self { server, source, state: ClusterState::default(), guarded: Vec::new(), batches: Vec::new(), kubeconfig }
    }

    /// The scene once all is known.
    pub(super) async fn new(faults: impl FnOnce(&mut Faults)) -> Self {
        let mut scene = Self::on(Self::server(faults), impatient()).await;
        scene.converge().await;
        scene
    }

    pub(super) fn wanted(&self) -> ClusterState {
        let mut wanted = ClusterState::default();
        let all = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service];
        for object in all.into_iter().flat_map(|kind| self.server.objects(kind)).filter_map(|value| decoded(&value)) {
            wanted.apply(ClusterEvent::Apply(object));
        }
        wanted
    }

    /// Everything there is now must stay as it is until something else is said.
    pub(super) fn guard(&mut self) {
        let all = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service];
        let objects = all.into_iter().flat_map(|kind| self.server.objects(kind));
        self.guarded = objects.filter_map(|value| decoded(&value)).collect();
    }

    pub(super) fn take(&mut self) {
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
    pub(super) async fn converge(&mut self) {
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

    pub(super) async fn next(&mut self, most: Duration) {
        if tokio::time::timeout(most, self.source.changed()).await.is_ok() {
            self.take();
        }
    }

    /// Takes changes until `is` holds.
    pub(super) async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !is(self) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.source.health());
            self.next(Duration::from_millis(10)).await;
        }
    }

    /// One change of each kind: what is added, changed and deleted.
    pub(super) fn change(&mut self) {
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
pub(super) fn assert_ordered(events: &[ClusterEvent]) {
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

/// Something, and what it is called.
pub(super) type Named<T> = (&'static str, T);

pub(super) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}
