//! Selector clauses and what events change.

use std::net::IpAddr;
use std::sync::Arc;

use super::model::{ClusterEvent, Labels, Namespace, Object, ObjectKey, ObjectRef, Pod, Requirement, Selector};
use super::state::{Change, ClusterState, NAMESPACE_NAME_LABEL};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
}

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        key: ObjectKey::new("x", name),
        uid: "".into(),
        static_uid: "".into(),
        labels: Arc::new(labels(&[("app", name)])),
        addresses: vec![address.parse().unwrap()],
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "".into(),
        host_network: false,
        terminal: false,
        workload: None,
    }
}

fn put(pod: Pod) -> ClusterEvent {
    ClusterEvent::Apply(Object::Pod(pod))
}

fn claimants(state: &ClusterState, address: &str) -> Vec<String> {
    state.claimants(address.parse::<IpAddr>().unwrap()).map(ToString::to_string).collect()
}

#[test]
fn each_selector_operator_matches_what_the_api_says() {
    let one = |requirement| Selector { requirements: vec![requirement] };
    let values = |list: &[&str]| list.iter().map(|v| Arc::from(*v)).collect::<Vec<Arc<str>>>();
    let (absent, empty, a, b) = (labels(&[]), labels(&[("k", "")]), labels(&[("k", "a")]), labels(&[("k", "b")]));
    let table = [
        (one(Requirement::In("k".into(), values(&["a"]))), [false, false, true, false]),
        (one(Requirement::In("k".into(), values(&[""]))), [false, true, false, false]),
        (one(Requirement::In("k".into(), values(&["a", "b"]))), [false, false, true, true]),
        (one(Requirement::NotIn("k".into(), values(&["a"]))), [true, true, false, true]),
        (one(Requirement::Exists("k".into())), [false, true, true, true]),
        (one(Requirement::DoesNotExist("k".into())), [true, false, false, false]),
        (Selector::default(), [true; 4]),
        (Selector::unusable(), [false; 4]),
    ];
    for (selector, expected) in table {
        assert_eq!([&absent, &empty, &a, &b].map(|labels| selector.matches(labels)), expected, "{selector:?}");
    }
}

#[test]
fn all_requirements_of_a_selector_are_anded() {
    let selector =
        Selector { requirements: vec![Requirement::Exists("a".into()), Requirement::DoesNotExist("b".into())] };
    assert!(selector.matches(&labels(&[("a", "1")])));
    assert!(!selector.matches(&labels(&[("a", "1"), ("b", "1")])));
}

#[test]
fn an_update_that_changes_nothing_says_so() {
    let mut state = ClusterState::default();
    assert!(matches!(state.apply(put(pod("a", "10.0.0.1"))), Change::Pod { before: None, after: Some(_), .. }));
    assert_eq!(state.apply(put(pod("a", "10.0.0.1"))), Change::Nothing);
    assert_eq!(state.apply(ClusterEvent::Delete(ObjectRef::Pod(ObjectKey::new("x", "b")))), Change::Nothing);
}

#[test]
fn a_namespace_that_nobody_declared_has_its_name_as_label_and_goes_with_its_last_object() {
    let mut state = ClusterState::default();
    state.apply(put(pod("a", "10.0.0.1")));
    assert_eq!(state.namespace_labels("x"), Some(&labels(&[(NAMESPACE_NAME_LABEL, "x")])));
    state.apply(ClusterEvent::Delete(ObjectRef::Pod(ObjectKey::new("x", "a"))));
    assert_eq!(state.namespace_labels("x"), None);
}

#[test]
fn the_name_label_of_a_namespace_cannot_be_changed_and_deleting_the_object_keeps_its_pods() {
    let mut state = ClusterState::default();
    state.apply(put(pod("a", "10.0.0.1")));
    let declared = Namespace { name: "x".into(), labels: labels(&[("t", "1"), (NAMESPACE_NAME_LABEL, "other")]) };
    assert_eq!(state.apply(ClusterEvent::Apply(Object::Namespace(declared))), Change::Namespace("x".into()));
    assert_eq!(state.namespace_labels("x"), Some(&labels(&[("t", "1"), (NAMESPACE_NAME_LABEL, "x")])));
    state.apply(ClusterEvent::Delete(ObjectRef::Namespace("x".into())));
    assert_eq!(state.namespace_labels("x"), Some(&labels(&[(NAMESPACE_NAME_LABEL, "x")])));
    assert_eq!(state.pods_in("x").count(), 1);
}

#[test]
fn only_live_pods_claim_addresses_and_a_late_delete_leaves_the_new_owner() {
    let mut state = ClusterState::default();
    state.apply(put(pod("job", "10.0.0.1")));
    state.apply(put(Pod { terminal: true, ..pod("job", "10.0.0.1") }));
    assert!(claimants(&state, "10.0.0.1").is_empty());
    state.apply(put(pod("new", "10.0.0.1")));
    state.apply(put(Pod { host_network: true, ..pod("host", "10.0.0.1") }));
    state.apply(ClusterEvent::Delete(ObjectRef::Pod(ObjectKey::new("x", "job"))));
    assert_eq!(claimants(&state, "10.0.0.1"), ["x/new"]);
    assert_eq!(state.contested().count(), 0);
}

#[test]
fn two_live_pods_with_one_address_contest_it_until_one_goes() {
    let mut state = ClusterState::default();
    state.apply(put(pod("a", "10.0.0.1")));
    state.apply(put(pod("b", "10.0.0.1")));
    assert_eq!(state.contested().count(), 1);
    state.apply(put(pod("b", "10.0.0.2")));
    assert_eq!(state.contested().count(), 0);
    assert_eq!(claimants(&state, "10.0.0.1"), ["x/a"]);
}
