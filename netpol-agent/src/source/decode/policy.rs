//! NetworkPolicy -> [`NetworkPolicy`] with policyTypes resolved. No API defaulting is assumed.
//!
//! A policy that is partly invalid is *narrowed*: it isolates at least what was meant, and allows at most that.
//! - podSelector unusable: it isolates a superset (what is left of the selector, or every pod of the namespace), and
//!   since its rules would then reach pods they were not written for, it allows nothing.
//! - policyTypes unusable, or an unknown field in spec: it isolates for both directions, and only a direction that is
//!   named without doubt gets its rules.

use serde_json::{Map, Value};

use super::Head;
use super::report::{Report, child, index, quote, show, suggestion};
use super::rule::{Section, rules};
use super::selector::{self, DecodedSelector};
use crate::cluster::model::{NetworkPolicy, Rule, Selector};
use crate::near::near_miss;

/// `status` was there from 1.24 to 1.27.
const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
const FIELDS: [&str; 4] = ["podSelector", "policyTypes", "ingress", "egress"];
const BOTH_WAYS: &str = "the policy isolates for ingress and egress";

/// Reads the policy whose metadata is `head` from the whole object.
pub(super) fn decode(report: &mut Report, head: Head, object: &Map<String, Value>) -> NetworkPolicy {
    let nothing = Map::new();
    let (spec, readable) = match object.get("spec") {
        // The API server takes a missing spec as an empty one: default deny for ingress.
        None | Some(Value::Null) => (&nothing, true),
        Some(Value::Object(spec)) => (spec, true),
        Some(other) => {
            let message = format!("{} is no policy spec; write a mapping", show(other));
            report.refuse("spec", message, deny_all(&head.key.namespace));
            (&nothing, false)
        }
    };
    // A field beside spec is often one of spec's, indented too little.
    let mut unknown = unknown_fields(report, "", object, &TOP, spec);
    unknown = unknown.or(&unknown_fields(report, "spec", spec, &FIELDS, spec));
    let subjects = subjects(report, &head, spec, readable && !unknown.pod_selector);
    let types = policy_types(report, spec);
    let directions = Directions {
        types: if readable && !unknown.any { types } else { types.in_doubt() },
        rules_usable: readable && subjects.exact,
    };
    let ingress = directions.resolve(report, Section::Ingress, spec);
    let egress = directions.resolve(report, Section::Egress, spec);
    NetworkPolicy { key: head.key, version: head.version, subjects: subjects.selector, ingress, egress }
}

fn deny_all(namespace: &str) -> String {
    format!("the policy isolates every pod of namespace {namespace} for ingress and egress and allows nothing")
}

#[derive(Clone, Copy, Debug)]
struct Unknown {
    any: bool,
    /// One of them may have been meant as the podSelector.
    pod_selector: bool,
}

impl Unknown {
    fn or(self, other: &Self) -> Self {
        Self { any: self.any || other.any, pod_selector: self.pod_selector || other.pod_selector }
    }
}

/// Refuses what is in `fields` and not `known`.
fn unknown_fields(
    report: &mut Report,
    path: &str,
    fields: &Map<String, Value>,
    known: &[&str],
    spec: &Map<String, Value>,
) -> Unknown {
    let mut found = Unknown { any: false, pod_selector: false };
    for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
        found.any = true;
        // Without a podSelector any stray field may be the one that should have limited whom the rules are for.
        let pod_selector = !spec.contains_key("podSelector") || near_miss(key, &FIELDS) == Some("podSelector");
        found.pod_selector |= pod_selector;
        let effect = if pod_selector { format!("{BOTH_WAYS} and allows nothing") } else { BOTH_WAYS.to_owned() };
        let hint = if path.is_empty() && FIELDS.contains(&key.as_str()) {
            "; it belongs into spec: check the indentation".to_owned()
        } else {
            suggestion(key, known)
        };
        report.refuse(&child(path, key), format!("unknown field{hint}"), effect);
    }
    found
}

fn subjects(report: &mut Report, head: &Head, spec: &Map<String, Value>, sound: bool) -> DecodedSelector {
    let effect = format!(
        "the policy isolates all pods of namespace {} that the rest of the selector matches, and allows nothing",
        head.key.namespace
    );
    let decoded = match spec.get("podSelector") {
        None => DecodedSelector { selector: Selector::default(), exact: true },
        Some(value) => selector::decode(report, "spec.podSelector", value, &effect),
    };
    DecodedSelector { exact: decoded.exact && sound, ..decoded }
}

/// What policyTypes says of each direction.
#[derive(Clone, Copy, Debug)]
enum Types {
    /// Nothing: the default rule decides.
    Default,
    /// Ingress, Egress.
    Named(bool, bool),
    /// Ingress, Egress are named; what is not may have been meant.
    Doubtful(bool, bool),
}

impl Types {
    fn in_doubt(self) -> Self {
        match self {
            Self::Default => Self::Doubtful(true, true),
            Self::Named(ingress, egress) | Self::Doubtful(ingress, egress) => Self::Doubtful(ingress, egress),
        }
    }
}

fn policy_types(report: &mut Report, spec: &Map<String, Value>) -> Types {
    const PATH: &str = "spec.policyTypes";
    let items = match spec.get("policyTypes") {
        None | Some(Value::Null) => return Types::Default,
        Some(Value::Array(items)) if items.is_empty() => return Types::Default,
        Some(Value::Array(items)) => items,
        Some(other) => {
            report.refuse(PATH, format!("{} is no list; write [Ingress, Egress]", show(other)), narrowed_types());
            return Types::Doubtful(false, false);
        }
    };
    let (mut ingress, mut egress, mut sound) = (false, false, true);
    for (at, item) in items.iter().enumerate() {
        match item.as_str() {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            text => {
                sound = false;
                let shown = text.map_or_else(|| show(item), quote);
                let hint = suggestion(text.unwrap_or_default(), &["Ingress", "Egress"]);
                let message = format!("unknown policy type {shown}{hint}; use Ingress or Egress");
                report.refuse(&index(PATH, at), message, narrowed_types());
            }
        }
    }
    if sound { Types::Named(ingress, egress) } else { Types::Doubtful(ingress, egress) }
}

fn narrowed_types() -> String {
    format!("{BOTH_WAYS}; a direction that policyTypes does not name has no rules")
}

struct Directions {
    types: Types,
    rules_usable: bool,
}

impl Directions {
    /// The rules of one direction, `None` if the policy does not isolate for it.
    fn resolve(&self, report: &mut Report, section: Section, spec: &Map<String, Value>) -> Option<Vec<Rule>> {
        // Read in any case: what is wrong in an ignored section is said too.
        let rules = rules(report, "spec", section, spec);
        let usable = if self.rules_usable { rules } else { Vec::new() };
        let pick = |ingress: bool, egress: bool| match section {
            Section::Ingress => ingress,
            Section::Egress => egress,
        };
        match self.types {
            // "If no policyTypes are specified, Ingress is always set, Egress if the policy has any egress rules."
            Types::Default if section == Section::Ingress => Some(usable),
            Types::Default => has_items(spec.get(section.field())).then_some(usable),
            Types::Named(ingress, egress) => pick(ingress, egress).then_some(usable),
            Types::Doubtful(ingress, egress) if pick(ingress, egress) => Some(usable),
            Types::Doubtful(..) => Some(Vec::new()),
        }
    }
}

/// Whether an egress section is there in the sense of the defaulting rule; one that is no list counts as meant.
fn has_items(section: Option<&Value>) -> bool {
    match section {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}
