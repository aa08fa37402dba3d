//! How a cluster came to be: objects created in any order, then edits, among them those that a watch really delivers:
//! a pod that takes over an address before the old owner's deletion is seen, an object replaced without a deletion.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::pods::{self, PodDraft, Sharing};
use super::{NAMESPACES, Scene, namespace, policies};
use crate::judge::{Change, Name, Objects, name_of};

/// Something that happens.
#[derive(Clone, Debug)]
enum Edit {
    /// A pod of this number appears; an existing one of that number is deleted first, or (as after a relist) just replaced.
    Pod {
        number: u8,
        draft: PodDraft,
        delete_first: bool,
    },
    /// A new pod gets the address of an existing one; its deletion is seen only afterwards.
    TakeOver {
        from: Index,
        number: u8,
        draft: PodDraft,
    },
    RelabelPod {
        which: Index,
        labels: Value,
    },
    Phase {
        which: Index,
        phase: &'static str,
    },
    Terminate {
        which: Index,
    },
    DeletePod {
        which: Index,
    },
    Namespace(Value),
    Policy {
        number: u8,
        namespace: &'static str,
        spec: Value,
    },
    DeletePolicy {
        which: Index,
    },
}

/// A cluster's history.
#[derive(Clone, Debug)]
pub struct History {
    /// What happened, in batches that a judge takes in one by one.
    pub batches: Vec<Vec<Change>>,
    /// What it led to.
    pub last: Scene,
}

impl History {
    /// A cluster that is there all at once.
    #[must_use]
    pub fn at_once(scene: Scene) -> Self {
        Self { batches: vec![scene.objects.creation()], last: scene }
    }
}

/// Histories of a random cluster and up to a dozen edits.
pub fn history() -> impl Strategy<Value = History> {
    let shuffled = super::scene(Sharing::Never).prop_flat_map(|scene| {
        let order = Just(scene.objects.creation()).prop_shuffle();
        (Just(scene), order)
    });
    (shuffled, vec(edit(), 0..=12)).prop_map(|((mut scene, creation), edits)| {
        let mut batches = vec![creation];
        for edit in &edits {
            let batch = edit.changes(&scene.objects);
            batch.iter().for_each(|change| scene.objects.change(change));
            batches.push(batch);
        }
        History { batches, last: scene }
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let draft = || pods::pod(Sharing::Never);
    let which = any::<Index>;
    prop_oneof![
        3 => (0..8_u8, draft(), any::<bool>())
            .prop_map(|(number, draft, delete_first)| Edit::Pod { number, draft, delete_first }),
        2 => (which(), 8..10_u8, draft()).prop_map(|(from, number, draft)| Edit::TakeOver { from, number, draft }),
        4 => (which(), pods::pod_labels()).prop_map(|(which, labels)| Edit::RelabelPod { which, labels }),
        1 => (which(), select(&["Succeeded", "Failed"][..])).prop_map(|(which, phase)| Edit::Phase { which, phase }),
        1 => which().prop_map(|which| Edit::Terminate { which }),
        2 => which().prop_map(|which| Edit::DeletePod { which }),
        3 => select(&NAMESPACES[..]).prop_flat_map(namespace).prop_map(Edit::Namespace),
        5 => (0..6_u8, policies::policy())
            .prop_map(|(number, (namespace, spec))| Edit::Policy { number, namespace, spec }),
        2 => which().prop_map(|which| Edit::DeletePolicy { which }),
    ]
}

impl Edit {
    /// The changes that a watch would deliver. An edit of something that is not there does nothing.
    fn changes(&self, objects: &Objects) -> Vec<Change> {
        match self {
            Self::Pod { number, draft, delete_first } => {
                let mut changes = removal(objects, "Pod", &format!("p{number}"));
                let mut without = objects.clone();
                changes.iter().for_each(|change| without.change(change));
                let placed = draft.place(&format!("p{number}"), &without);
                // An object of another namespace is another object: it cannot be replaced by this one.
                changes.retain(|change| *delete_first || !is_deletion_of(change, &name_of(&placed)));
                changes.push(Change::Apply(placed));
                changes
            }
            Self::TakeOver { from, number, draft } => {
                let Some((old, pod)) = nth(objects, "Pod", *from) else { return Vec::new() };
                // Only an address that the old pod gives up with its deletion can be taken over.
                let keeps_none = pods::is_completed(&pod) || pod.pointer("/spec/hostNetwork").is_some();
                let addresses = pods::listed_addresses(&pod, "podIPs", "ip");
                let mut changes = removal(objects, "Pod", &format!("p{number}"));
                if keeps_none || changes.iter().any(|change| is_deletion_of(change, &old)) {
                    return Vec::new();
                }
                changes.push(Change::Apply(draft.at(&format!("p{number}"), &addresses)));
                changes.push(Change::Delete { kind: "Pod".to_owned(), name: old });
                changes
            }
            Self::RelabelPod { which, labels } => edited(objects, *which, &["metadata", "labels"], labels.clone()),
            Self::Phase { which, phase } => edited(objects, *which, &["status", "phase"], json!(phase)),
            Self::Terminate { which } => {
                edited(objects, *which, &["metadata", "deletionTimestamp"], json!("2026-01-01T00:00:00Z"))
            }
            Self::DeletePod { which } => deleted(objects, "Pod", *which),
            Self::Namespace(namespace) => vec![Change::Apply(namespace.clone())],
            Self::Policy { number, namespace, spec } => {
                let name = format!("np{number}");
                let mut changes = removal(objects, "NetworkPolicy", &name);
                let object = policies::policy_object(namespace, &name, spec);
                changes.retain(|change| !is_deletion_of(change, &name_of(&object)));
                changes.push(Change::Apply(object));
                changes
            }
            Self::DeletePolicy { which } => deleted(objects, "NetworkPolicy", *which),
        }
    }
}

fn is_deletion_of(change: &Change, wanted: &Name) -> bool {
    matches!(change, Change::Delete { name, .. } if name == wanted)
}

/// Deletions of the objects with this name, whatever their namespace.
fn removal(objects: &Objects, kind: &str, name: &str) -> Vec<Change> {
    let found = objects.of(kind).filter(|((_, found), _)| found == name);
    found.map(|(name, _)| Change::Delete { kind: kind.to_owned(), name: name.clone() }).collect()
}

fn nth(objects: &Objects, kind: &str, which: Index) -> Option<(Name, Value)> {
    let all: Vec<(&Name, &Value)> = objects.of(kind).collect();
    let (name, object) = *all.get(which.index(all.len().max(1)))?;
    Some((name.clone(), object.clone()))
}

fn deleted(objects: &Objects, kind: &str, which: Index) -> Vec<Change> {
    let found = nth(objects, kind, which);
    found.map(|(name, _)| Change::Delete { kind: kind.to_owned(), name }).into_iter().collect()
}

/// A pod with one field changed. A completed pod stays completed.
fn edited(objects: &Objects, which: Index, [part, field]: &[&str; 2], value: Value) -> Vec<Change> {
    let Some((_, mut pod)) = nth(objects, "Pod", which) else { return Vec::new() };
    if let Some(part) = pod.get_mut(*part).and_then(Value::as_object_mut) {
        part.insert((*field).to_owned(), value);
    }
    vec![Change::Apply(pod)]
}
