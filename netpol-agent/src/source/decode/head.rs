//! metadata -> name, namespace, labels, uid, version.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

use super::Identity;
use super::kinds::Kind;
use super::names::{is_dns_label, is_dns_subdomain, is_label_key, is_label_value};
use super::owner::Owner;
use super::report::{Report, child, quote, show, suggestion, typed};
use crate::cluster::model::{Labels, ObjectKey, ObjectRef, ObjectVersion};

const READ: [&str; 4] = ["name", "namespace", "labels", "uid"];
/// What the kubelet annotates mirror pods with: the UID that it gave the static pod itself.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// What policy depends on in an object's metadata. A namespace's key is its name, twice.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) key: ObjectKey,
    pub(super) labels: Labels,
    pub(super) uid: String,
    pub(super) static_uid: String,
    /// If the API server has been there.
    pub(super) version: Option<ObjectVersion>,
    /// What made it: its controller.
    pub(super) owner: Option<Owner>,
    /// Whether the labels (and all else) are as written.
    pub(super) sound: bool,
}

impl Head {
    pub(super) fn reference(&self, kind: Kind) -> ObjectRef {
        match kind {
            Kind::Namespace => ObjectRef::Namespace(self.key.name.clone()),
            Kind::Pod => ObjectRef::Pod(self.key.clone()),
            Kind::NetworkPolicy => ObjectRef::NetworkPolicy(self.key.clone()),
            Kind::Service => ObjectRef::Service(self.key.clone()),
        }
    }
}

/// Reads the metadata of `object`; what goes wrong before the name is known has `effect`.
pub(super) fn head(
    report: &mut Report,
    kind: Kind,
    object: &Map<String, Value>,
    effect: &str,
) -> Result<Head, Identity> {
    let Some(Value::Object(meta)) = object.get("metadata") else {
        report.refuse("metadata", "missing, or not a mapping; add metadata.name", effect);
        return Err(Identity::Unknown);
    };
    let name = name(report, kind, meta, effect)?;
    report.name(format!("{} {name}", kind.name()));
    let namespace = namespace(report, kind, meta, effect)?.unwrap_or_else(|| name.clone());
    let sound = unknown_fields(report, kind, meta, effect)?;
    let key = ObjectKey::new(&namespace, &name);
    let (uid, static_uid) = (String::new(), String::new());
    let mut head = Head { key, labels: Labels::new(), uid, static_uid, version: None, owner: None, sound };
    report.name(head.reference(kind).to_string());
    // Labels of policies and services are nobody's business.
    let labels_count = matches!(kind, Kind::Pod | Kind::Namespace);
    match typed::<ObjectMeta>("metadata", object.get("metadata").unwrap_or(&Value::Null)) {
        Ok(read) => {
            head.uid = read.value.uid.unwrap_or_default();
            head.owner = Owner::of(read.value.generate_name, read.value.owner_references);
            head.static_uid = read.value.annotations.and_then(|mut all| all.remove(CONFIG_HASH)).unwrap_or_default();
            let uid = Some(head.uid.as_str()).filter(|uid| !uid.is_empty());
            head.version = uid.zip(read.value.generation).map(|(uid, generation)| {
                let uid = uid.into();
                ObjectVersion { uid, generation }
            });
            if labels_count {
                labels(report, read.value.labels.unwrap_or_default(), &mut head, effect);
            }
        }
        Err(wrong) if labels_count => {
            head.sound = false;
            report.refuse(&wrong.path, wrong.message, effect);
        }
        Err(wrong) => report.note(&wrong.path, wrong.message, "none: this field does not matter to traffic"),
    }
    Ok(head)
}

fn name(report: &mut Report, kind: Kind, meta: &Map<String, Value>, effect: &str) -> Result<String, Identity> {
    const PATH: &str = "metadata.name";
    let valid: fn(&str) -> bool = match kind {
        Kind::Pod | Kind::NetworkPolicy => is_dns_subdomain,
        Kind::Namespace | Kind::Service => is_dns_label,
    };
    let message = match meta.get("name") {
        Some(Value::String(name)) if valid(name) => return Ok(name.clone()),
        // No selector looks at the name of a pod or a policy: better a policy in force under a name no API server takes.
        Some(Value::String(name)) if kind != Kind::Namespace && is_plain(name) => {
            let message = format!("{} is no Kubernetes name; use lower-case letters, digits and '-'", quote(name));
            report.note(PATH, message, "none: it is taken under this name");
            return Ok(name.clone());
        }
        Some(Value::String(name)) => format!("bad name {}; use lower-case letters, digits and '-'", quote(name)),
        None | Some(Value::Null) => "missing; every object needs a name".to_owned(),
        Some(other) => format!("{} is not a string; quote it", show(other)),
    };
    report.refuse(PATH, message, effect);
    Err(Identity::Unknown)
}

fn is_plain(name: &str) -> bool {
    (1..=253).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// The namespace, `None` for a kind that has none.
fn namespace(
    report: &mut Report,
    kind: Kind,
    meta: &Map<String, Value>,
    effect: &str,
) -> Result<Option<String>, Identity> {
    const PATH: &str = "metadata.namespace";
    let message = match meta.get("namespace") {
        _ if kind == Kind::Namespace => return Ok(None),
        None | Some(Value::Null) => return Ok(Some("default".to_owned())),
        Some(Value::String(name)) if name.is_empty() => return Ok(Some("default".to_owned())),
        Some(Value::String(name)) if is_dns_label(name) => return Ok(Some(name.clone())),
        Some(Value::String(name)) => format!("bad namespace {}; use lower-case letters, digits and '-'", quote(name)),
        Some(other) => format!("{} is not a string; quote it", show(other)),
    };
    report.refuse(PATH, message, effect);
    Err(Identity::Unknown)
}

/// A field that metadata does not have may be a slip of one that counts: `ns` for namespace, `lables` for labels. Says
/// whether the labels can be trusted.
fn unknown_fields(report: &mut Report, kind: Kind, meta: &Map<String, Value>, effect: &str) -> Result<bool, Identity> {
    let namespace_in_doubt = kind != Kind::Namespace && !meta.contains_key("namespace");
    let labels_count = matches!(kind, Kind::Pod | Kind::Namespace);
    let mut found = false;
    // Only the names count here: a value of a wrong type is told later, and must not hide them.
    let names = meta.keys().map(|key| (key.clone(), Value::Null)).collect();
    let unknown =
        typed::<ObjectMeta>("metadata", &Value::Object(names)).map_or_else(|_| Vec::new(), |read| read.unknown);
    for key in meta.keys().filter(|key| unknown.contains(&child("metadata", key))) {
        found = true;
        let (path, message) = (child("metadata", key), format!("unknown field{}", suggestion(key, &READ)));
        if namespace_in_doubt || labels_count {
            report.refuse(&path, message, effect);
        } else {
            report.note(&path, message, "none: it is ignored");
        }
    }
    if found && namespace_in_doubt { Err(Identity::Unknown) } else { Ok(!(found && labels_count)) }
}

fn labels(report: &mut Report, labels: BTreeMap<String, String>, head: &mut Head, effect: &str) {
    for (key, value) in labels {
        let path = child("metadata.labels", &key);
        if !is_label_key(&key) {
            head.sound = false;
            report.refuse(&path, format!("bad label key {}", quote(&key)), effect);
        } else if !is_label_value(&value) {
            head.sound = false;
            report.refuse(&path, format!("bad label value {}", quote(&value)), effect);
        } else {
            head.labels.insert(key.into(), value.into());
        }
    }
}
