//! Faults and changes by chance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netpol_agent::cluster::model::{ClusterEvent, Object, ObjectRef};
use netpol_tests::apiserver::{ApiServer, Faults, Kind, Refusal, Spoil};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use super::scene::{Scene, decoded, impatient, namespace, pod, policy, run, service};

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
