//! One Kubernetes object as a JSON value -> objects of the cluster model, and what is wrong with it.
//!
//! Comes in: a value as the API or a manifest has it, without defaults filled in. Goes out: [`Decoded`], one [`Item`] an
//! object. Pure; knows nothing of files or of what was read before. The rule: what cannot be understood never widens
//! access. Whether a narrowed object or its last good version is put in force is the caller's decision
//! ([`Outcome::Narrowed`]).
//!
//! The Kubernetes types come from `k8s-openapi`, read piece by piece so that one wrong field spoils as little as
//! possible and is named by its exact path.

mod head;
mod kinds;
mod names;
mod owner;
mod peer;
mod pod;
mod policy;
mod port;
mod report;
mod rule;
mod section;
mod selector;
mod service;

use std::sync::Arc;

use kube::core::TypeMeta;
use serde_json::{Map, Value};

use self::head::{Head, head};
use self::kinds::{Class, Kind, OURS, classify};
use self::report::{Report, quote, show, suggestion};
pub(super) use self::report::{child, index, one_line};
use crate::cluster::model::{Object, ObjectRef};
use crate::problem::Problem;

/// What was read from one value: an object, or the items of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The objects in their order; kinds that policy does not depend on are there as [`Outcome::Skipped`].
    pub items: Vec<Item>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which object this is, as far as that can be read.
    pub identity: Identity,
    /// What became of it.
    pub outcome: Outcome,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// Where in the value it is: empty, or `items[3]` in a list.
    pub place: String,
}

/// Which object a piece of input is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// This one.
    Known(ObjectRef),
    /// One of this name; the kind is not one that is understood.
    Named(Arc<str>),
    /// No telling: it may be any object.
    Unknown,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As written.
    Taken(Object),
    /// Partly invalid. This allows no more, and isolates no less, than what was written; in force it belongs only where
    /// no valid version is.
    Narrowed(Object),
    /// Invalid, and nothing can be made of it.
    Refused,
    /// Nothing that policy depends on.
    Skipped,
}

impl Decoded {
    /// The objects, narrowed ones too.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.items.iter().filter_map(|item| match &item.outcome {
            Outcome::Taken(object) | Outcome::Narrowed(object) => Some(object),
            Outcome::Refused | Outcome::Skipped => None,
        })
    }

    /// Everything that is wrong, in the order of the input.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.items.iter().flat_map(|item| &item.problems)
    }
}

/// Reads one value: an object of a kind that policy depends on, or a list. `origin` goes into the problems.
#[must_use]
pub fn decode_value(origin: &str, value: &Value) -> Decoded {
    let mut decoded = Decoded::default();
    read(origin, "", value, None, &mut decoded.items);
    decoded
}

/// What refusing does to an object that nothing is known about.
const SKIPPED: &str = "it is skipped";
/// What refusing does to a policy that cannot even be attributed.
const NO_POLICY: &str = "the policy is not in force: it isolates and allows nothing";

/// Reads the value at `place`, an item of a list of `listed` if that is given, into `items`.
fn read(origin: &str, place: &str, value: &Value, listed: Option<Kind>, items: &mut Vec<Item>) {
    let origin_here = if place.is_empty() { origin.to_owned() } else { format!("{origin} {place}") };
    let mut report = Report::new(&origin_here, String::new());
    let mut push = |identity, outcome, report: Report| {
        items.push(Item { identity, outcome, problems: report.into_problems(), place: place.to_owned() });
    };
    let Value::Object(object) = value else {
        let message = format!("{} is no object; write a mapping with apiVersion, kind and metadata", show(value));
        report.refuse("", message, SKIPPED);
        return push(Identity::Unknown, Outcome::Refused, report);
    };
    let Some(meta) = type_meta(&mut report, object, listed) else {
        return push(named(object), Outcome::Refused, report);
    };
    match classify(&meta) {
        Class::Object(kind) => {
            let (identity, outcome) = object_of(&mut report, kind, object);
            push(identity, outcome, report);
        }
        Class::List(kind) => match list(&mut report, object) {
            Some(list) => {
                if report.refused() {
                    push(Identity::Unknown, Outcome::Refused, report);
                }
                for (at, item) in list.iter().enumerate() {
                    read(origin, &index(&child(place, "items"), at), item, kind, items);
                }
            }
            None => push(Identity::Unknown, Outcome::Refused, report),
        },
        Class::OtherVersion(kind) => {
            let message =
                format!("{} is not supported; use {}", quote(&meta.api_version), kind.type_meta().api_version);
            let identity = match head(&mut Report::new("", String::new()), kind, object, SKIPPED) {
                Ok(head) => {
                    report.name(head.reference(kind).to_string());
                    Identity::Known(head.reference(kind))
                }
                Err(identity) => identity,
            };
            report.refuse("apiVersion", message, refusal(kind));
            push(identity, Outcome::Refused, report);
        }
        Class::NotNeeded => {
            report.name(title(&meta.kind, object));
            report.note("", "no Namespace, Pod, NetworkPolicy or Service", "none: policy does not depend on it");
            push(Identity::Unknown, Outcome::Skipped, report);
        }
        Class::OtherPolicy => {
            report.name(title(&meta.kind, object));
            report.refuse("", "this kind of policy is not supported", "it is not enforced");
            push(Identity::Unknown, Outcome::Skipped, report);
        }
        Class::Unknown => {
            let message = format!("unknown kind {}{}", quote(&meta.kind), suggestion(&meta.kind, &OURS));
            report.name(title(&meta.kind, object));
            report.refuse("kind", message, SKIPPED);
            push(named(object), Outcome::Refused, report);
        }
    }
}

/// What refusing an object of this kind does.
fn refusal(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => pod::NO_NAMESPACE,
        Kind::Pod => pod::NO_POD,
        Kind::NetworkPolicy => NO_POLICY,
        Kind::Service => service::NO_SERVICE,
    }
}

fn object_of(report: &mut Report, kind: Kind, object: &Map<String, Value>) -> (Identity, Outcome) {
    report.name(kind.name().to_owned());
    let head: Head = match head(report, kind, object, refusal(kind)) {
        Ok(head) => head,
        Err(identity) => return (identity, Outcome::Refused),
    };
    let identity = Identity::Known(head.reference(kind));
    let decoded = match kind {
        Kind::Namespace => pod::namespace(report, head, object).map(Object::Namespace),
        Kind::Pod => pod::pod(report, head, object).map(Object::Pod),
        Kind::NetworkPolicy => Some(Object::NetworkPolicy(policy::decode(report, head, object))),
        Kind::Service => service::service(report, head, object).map(Object::Service),
    };
    let outcome = match decoded {
        None => Outcome::Refused,
        Some(object) if report.refused() => Outcome::Narrowed(object),
        Some(object) => Outcome::Taken(object),
    };
    (identity, outcome)
}

/// apiVersion and kind. Items of a typed list, as the API gives them, leave them out.
fn type_meta(report: &mut Report, object: &Map<String, Value>, listed: Option<Kind>) -> Option<TypeMeta> {
    let (api_version, kind) = (object.get("apiVersion"), object.get("kind"));
    let mut wrong = |field: &str, message: String| {
        report.refuse(field, message, SKIPPED);
        None
    };
    match (api_version.filter(|value| !value.is_null()), kind.filter(|value| !value.is_null()), listed) {
        (Some(Value::String(api_version)), Some(Value::String(kind)), _) => {
            Some(TypeMeta { api_version: api_version.clone(), kind: kind.clone() })
        }
        (None, None, Some(kind)) => Some(kind.type_meta()),
        (None, None, None) => wrong("", "apiVersion and kind are missing; every object needs both".to_owned()),
        (None, Some(_), _) => wrong("apiVersion", "missing; every object needs one".to_owned()),
        (Some(_), None, _) => wrong("kind", "missing; every object needs one".to_owned()),
        (Some(Value::String(_)), Some(kind), _) => wrong("kind", format!("{} is no kind", show(kind))),
        (Some(other), Some(_), _) => wrong("apiVersion", format!("{} is no apiVersion: quote it", show(other))),
    }
}

fn list<'v>(report: &mut Report, object: &'v Map<String, Value>) -> Option<&'v [Value]> {
    const FIELDS: [&str; 4] = ["apiVersion", "kind", "metadata", "items"];
    for key in object.keys().filter(|key| !FIELDS.contains(&key.as_str())) {
        report.refuse(&child("", key), format!("unknown field of a list{}", suggestion(key, &FIELDS)), SKIPPED);
    }
    match object.get("items") {
        Some(Value::Array(items)) => Some(items),
        None | Some(Value::Null) => {
            report.refuse("items", "missing; a list needs items", "nothing is taken from the list");
            None
        }
        Some(other) => {
            report.refuse("items", format!("{} is no list", show(other)), "nothing is taken from the list");
            None
        }
    }
}

/// metadata.name of an object whose kind says nothing.
fn named(object: &Map<String, Value>) -> Identity {
    match object.get("metadata").and_then(|meta| meta.get("name")) {
        Some(Value::String(name)) => Identity::Named(name.as_str().into()),
        _ => Identity::Unknown,
    }
}

/// `Kind namespace/name` for an object that is not ours, as far as it says.
fn title(kind: &str, object: &Map<String, Value>) -> String {
    let field = |name: &str| {
        let text = object.get("metadata").and_then(|meta| meta.get(name)).and_then(Value::as_str)?;
        let plain = !text.is_empty() && text.len() <= 253 && text.bytes().all(|b| b.is_ascii_graphic());
        plain.then_some(text)
    };
    let kind = if kind.len() <= 63 && kind.bytes().all(|b| b.is_ascii_alphanumeric()) { kind } else { "object" };
    match (field("namespace"), field("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => kind.to_owned(),
    }
}
