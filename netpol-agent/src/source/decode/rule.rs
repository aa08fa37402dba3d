//! Ingress and egress rules -> [`Rule`].
//!
//! Never wider than written: an item that cannot be used as written matches nothing, and with a field that is not known
//! nobody can say what was meant to be limited, so that what holds the field matches nothing.

use serde_json::{Map, Value};

use super::peer::peer;
use super::port::port;
use super::report::{Report, child, index, show, suggestion};
use crate::cluster::model::{Peers, Ports, Rule};

const NO_RULE: &str = "this rule allows nothing";

/// Which section of a policy a rule is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Ingress,
    Egress,
}

impl Section {
    /// The section's field.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The field that lists the peers.
    fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

/// A rule that allows nothing stands for one that cannot be used: later ones keep their index.
fn nothing() -> Rule {
    Rule { peers: Peers::AnyOf(Vec::new()), ports: Ports::AnyOf(Vec::new()) }
}

/// Reads the rules of `section` from `spec`, which is at `path`. Missing, null and `[]` are no rules.
pub(super) fn rules(report: &mut Report, path: &str, section: Section, spec: &Map<String, Value>) -> Vec<Rule> {
    let path = child(path, section.field());
    match spec.get(section.field()) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => {
            let rules = items.iter().enumerate();
            rules.map(|(at, item)| rule(report, &index(&path, at), section, item)).collect()
        }
        Some(other) => {
            let effect = format!("this policy allows no {}", section.field());
            report.refuse(&path, format!("{} is no list of rules; write [] or - items", show(other)), effect);
            Vec::new()
        }
    }
}

fn rule(report: &mut Report, path: &str, section: Section, value: &Value) -> Rule {
    let Value::Object(fields) = value else {
        let message = format!("{} is no rule; write {{}} to allow everything, or remove the item", show(value));
        report.refuse(path, message, NO_RULE);
        return nothing();
    };
    let known = [section.peers(), "ports"];
    let mut usable = true;
    for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
        usable = false;
        let message = format!("unknown field{}{}", suggestion(key, &known), misplaced(section, key));
        report.refuse(&child(path, key), message, NO_RULE);
    }
    let peers = peers(report, &child(path, section.peers()), fields.get(section.peers()));
    let ports = ports(report, &child(path, "ports"), fields.get("ports"));
    if usable { Rule { peers, ports } } else { nothing() }
}

fn misplaced(section: Section, key: &str) -> &'static str {
    match (section, key) {
        (Section::Ingress, "to") => "; an ingress rule has from",
        (Section::Egress, "from") => "; an egress rule has to",
        _ => "",
    }
}

fn peers(report: &mut Report, path: &str, value: Option<&Value>) -> Peers {
    match value {
        None | Some(Value::Null) => Peers::Everyone,
        Some(Value::Array(items)) if items.is_empty() => Peers::Everyone,
        Some(Value::Array(items)) => {
            let peers = items.iter().enumerate();
            Peers::AnyOf(peers.filter_map(|(at, item)| peer(report, &index(path, at), item)).collect())
        }
        Some(other) => {
            report.refuse(path, format!("{} is no list of peers; write - items", show(other)), NO_RULE);
            Peers::AnyOf(Vec::new())
        }
    }
}

fn ports(report: &mut Report, path: &str, value: Option<&Value>) -> Ports {
    match value {
        None | Some(Value::Null) => Ports::Everything,
        Some(Value::Array(items)) if items.is_empty() => Ports::Everything,
        Some(Value::Array(items)) => {
            let ports = items.iter().enumerate();
            Ports::AnyOf(ports.filter_map(|(at, item)| port(report, &index(path, at), item)).collect())
        }
        Some(other) => {
            report.refuse(path, format!("{} is no list of ports; write - items", show(other)), NO_RULE);
            Ports::AnyOf(Vec::new())
        }
    }
}
