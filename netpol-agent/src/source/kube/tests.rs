//! The ledger: what is given out when. And what objects on the wire become.

use serde_json::{Value, json};

use super::ledger::Ledger;
use super::resource::Resource;
use super::wire::{Cut, Page};
use crate::cluster::model::{ClusterEvent, Object, ObjectKey, ObjectRef};
use crate::problem::Severity;

fn object(resource: Resource, name: &str, version: u32) -> Value {
    let mut object = json!({
        "metadata": { "namespace": "x", "name": name, "uid": name, "resourceVersion": version.to_string() },
    });
    if resource != Resource::Namespace {
        object["spec"] = json!({});
    }
    object
}

fn listed(ledger: &mut Ledger, resource: Resource, name: &str, version: u32) {
    let cut = Cut::read(resource, &object(resource, name, version).to_string()).unwrap();
    let (key, number, known) = (cut.key.clone(), ledger.version(&cut), ledger.knows(resource, &cut));
    ledger.listed(resource, (key, number), (!known).then(|| cut.decode(resource)));
}

fn changed(ledger: &mut Ledger, resource: Resource, name: &str, version: u32) {
    let cut = Cut::read(resource, &object(resource, name, version).to_string()).unwrap();
    let (key, number) = (cut.key.clone(), ledger.version(&cut));
    ledger.changed(resource, (key, number), cut.decode(resource));
}

fn list(ledger: &mut Ledger, resource: Resource, names: &[&str]) {
    ledger.begin(resource);
    for name in names {
        listed(ledger, resource, name, 1);
    }
    ledger.complete(resource);
}

/// `+Pod x/a`, `-Pod x/a`.
fn taken(ledger: &mut Ledger) -> Vec<String> {
    let show = |event: &ClusterEvent| match event {
        ClusterEvent::Apply(object) => format!("+{}", object.reference()),
        ClusterEvent::Delete(reference) => format!("-{reference}"),
    };
    ledger.take().iter().map(show).collect()
}

fn synced() -> Ledger {
    let mut ledger = Ledger::default();
    list(&mut ledger, Resource::Pod, &["a", "b"]);
    list(&mut ledger, Resource::NetworkPolicy, &["p"]);
    list(&mut ledger, Resource::Service, &[]);
    assert_eq!(taken(&mut ledger), [""; 0], "namespaces are missing");
    list(&mut ledger, Resource::Namespace, &["x"]);
    assert_eq!(taken(&mut ledger), ["+NetworkPolicy x/p", "+Namespace x", "+Pod x/a", "+Pod x/b"]);
    ledger
}

#[test]
fn an_answer_without_items_is_no_empty_list() {
    let items =
        |text: &str| serde_json::from_str::<Page<'_>>(text).map(|page| page.items.map_or(0, |items| items.len()));
    let metadata = r#""metadata":{"resourceVersion":"5"}"#;
    assert_eq!(items(&format!(r#"{{{metadata},"items":[{{}}]}}"#)).unwrap(), 1);
    assert_eq!(items(&format!(r#"{{{metadata},"items":null}}"#)).unwrap(), 0, "as Go writes a slice nobody made");
    let error = items(&format!("{{{metadata}}}")).unwrap_err().to_string();
    assert!(error.contains("missing field `items`"), "{error}");
}

#[test]
fn a_list_counts_when_it_is_whole_and_then_what_it_lacks_is_gone() {
    let mut ledger = synced();
    ledger.begin(Resource::Pod);
    listed(&mut ledger, Resource::Pod, "a", 1);
    listed(&mut ledger, Resource::Pod, "c", 1);
    assert_eq!(taken(&mut ledger), [""; 0]);
    ledger.abandon(Resource::Pod);
    ledger.complete(Resource::Pod);
    assert_eq!(taken(&mut ledger), [""; 0], "it broke off");
    list(&mut ledger, Resource::Pod, &["a", "c"]);
    assert_eq!(taken(&mut ledger), ["+Pod x/c", "-Pod x/b"], "a is as it was");
}

#[test]
fn what_changed_while_nobody_looked_is_given_out_once() {
    let mut ledger = synced();
    ledger.begin(Resource::Pod);
    listed(&mut ledger, Resource::Pod, "a", 2);
    listed(&mut ledger, Resource::Pod, "b", 1);
    ledger.complete(Resource::Pod);
    assert_eq!(taken(&mut ledger), ["+Pod x/a"]);
    list(&mut ledger, Resource::NetworkPolicy, &["p"]);
    assert_eq!(taken(&mut ledger), [""; 0]);
}

#[test]
fn a_policy_comes_before_a_pod_and_goes_after_it() {
    let mut ledger = synced();
    changed(&mut ledger, Resource::Pod, "c", 1);
    changed(&mut ledger, Resource::NetworkPolicy, "q", 1);
    let key = ObjectKey::new("x", "p");
    ledger.gone(Resource::NetworkPolicy, &key);
    ledger.gone(Resource::Pod, &ObjectKey::new("x", "a"));
    assert_eq!(taken(&mut ledger), ["+NetworkPolicy x/q", "+Pod x/c", "-Pod x/a", "-NetworkPolicy x/p"]);
}

#[test]
fn nothing_is_in_a_namespace_that_is_not_known() {
    let mut ledger = synced();
    let key = ObjectKey::new("x", "x");
    ledger.gone(Resource::Namespace, &key);
    assert_eq!(taken(&mut ledger), [""; 0], "it has pods");
    for name in ["a", "b"] {
        ledger.gone(Resource::Pod, &ObjectKey::new("x", name));
    }
    assert_eq!(taken(&mut ledger), ["-Pod x/a", "-Pod x/b", "-Namespace x"]);
    changed(&mut ledger, Resource::Pod, "c", 1);
    assert_eq!(taken(&mut ledger), [""; 0], "its namespace is not known");
    changed(&mut ledger, Resource::Namespace, "x", 2);
    assert_eq!(taken(&mut ledger), ["+Namespace x", "+Pod x/c"]);
}

#[test]
fn an_object_of_the_wrong_type_is_told_and_a_pod_is_then_not_known() {
    let mut ledger = synced();
    let mut wrong = object(Resource::Pod, "a", 7);
    wrong["spec"]["hostNetwork"] = "yes".into();
    let cut = Cut::read(Resource::Pod, &wrong.to_string()).unwrap();
    let (key, version) = (cut.key.clone(), ledger.version(&cut));
    ledger.changed(Resource::Pod, (key, version), cut.decode(Resource::Pod));
    assert_eq!(taken(&mut ledger), ["-Pod x/a"]);
    assert!(ledger.problems().any(|problem| problem.object == "Pod x/a" && problem.severity == Severity::Refused));
    changed(&mut ledger, Resource::Pod, "a", 8);
    assert_eq!(taken(&mut ledger), ["+Pod x/a"]);
    assert_eq!(ledger.problems().count(), 0);
}

#[test]
fn pods_share_what_they_have_in_common() {
    let mut ledger = synced();
    let labelled = |name: &str| {
        let mut pod = object(Resource::Pod, name, 3);
        pod["metadata"]["labels"] = json!({ "app": "web", "tier": "front" });
        pod["spec"]["nodeName"] = "node".into();
        pod
    };
    for name in ["a", "b"] {
        let cut = Cut::read(Resource::Pod, &labelled(name).to_string()).unwrap();
        let (key, version) = (cut.key.clone(), ledger.version(&cut));
        ledger.changed(Resource::Pod, (key, version), cut.decode(Resource::Pod));
    }
    let events = ledger.take();
    let [ClusterEvent::Apply(Object::Pod(a)), ClusterEvent::Apply(Object::Pod(b))] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert!(std::sync::Arc::ptr_eq(&a.labels, &b.labels));
    assert!(std::sync::Arc::ptr_eq(&a.node, &b.node));
    assert!(std::sync::Arc::ptr_eq(&a.key.namespace, &b.key.namespace));
    assert_eq!(Object::Pod(a.clone()).reference(), ObjectRef::Pod(a.key.clone()));
}
