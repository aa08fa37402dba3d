//! LabelSelector -> [`Selector`].
//!
//! All requirements of a selector hold together, so leaving an unusable one out selects *more*. That is right for a
//! policy's own podSelector (more pods are isolated) and wrong for a peer: the caller is told, and decides.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use serde_json::Value;

use super::names::{is_label_key, is_label_value};
use super::report::{Report, child, index, quote, show, suggestion, typed};
use crate::cluster::model::{Requirement, Selector};

const FIELDS: [&str; 2] = ["matchLabels", "matchExpressions"];
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];
const KEY_SYNTAX: &str =
    "a label key is an optional DNS prefix and '/', then at most 63 letters, digits, '-', '_', '.'";
const VALUE_SYNTAX: &str = "a label value is at most 63 letters, digits, '-', '_', '.', a letter or digit at both ends";

/// A selector as far as it could be read.
#[derive(Debug)]
pub(super) struct DecodedSelector {
    /// Selects at least what was meant.
    pub(super) selector: Selector,
    /// Whether it selects exactly what was written.
    pub(super) exact: bool,
}

/// Reads the selector at `path`; `null` is the empty selector. Each refusal is said to have `effect`.
pub(super) fn decode(report: &mut Report, path: &str, value: &Value, effect: &str) -> DecodedSelector {
    let mut reader = Reader { report, effect, requirements: Vec::new(), exact: true };
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                match key.as_str() {
                    "matchLabels" => reader.match_labels(&child(path, key), value),
                    "matchExpressions" => reader.match_expressions(&child(path, key), value),
                    _ => reader.refuse(&child(path, key), &format!("unknown field{}", suggestion(key, &FIELDS))),
                }
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            reader.refuse(path, &format!("{} is no label selector; write {{matchLabels: {{...}}}}", show(value)));
        }
    }
    let Reader { mut requirements, exact, .. } = reader;
    requirements.sort();
    requirements.dedup();
    DecodedSelector { selector: Selector { requirements }, exact }
}

struct Reader<'r> {
    report: &'r mut Report,
    effect: &'r str,
    requirements: Vec<Requirement>,
    exact: bool,
}

impl Reader<'_> {
    fn refuse(&mut self, path: &str, message: &str) {
        self.exact = false;
        self.report.refuse(path, message, self.effect);
    }

    fn match_labels(&mut self, path: &str, value: &Value) {
        let labels = match value {
            Value::Null => return,
            Value::Object(labels) => labels,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return self.refuse(path, &format!("{} is no mapping of labels; write key: value", show(value)));
            }
        };
        for (key, value) in labels {
            let path = child(path, key);
            match value.as_str() {
                None => self.refuse(&path, &format!("label value {} is not a string; quote it", show(value))),
                Some(_) if !is_label_key(key) => {
                    self.refuse(&path, &format!("bad label key {}: {KEY_SYNTAX}", quote(key)));
                }
                Some(text) if !is_label_value(text) => {
                    self.refuse(&path, &format!("bad label value {}: {VALUE_SYNTAX}", quote(text)));
                }
                Some(text) => self.requirements.push(Requirement::In(key.as_str().into(), vec![text.into()])),
            }
        }
    }

    fn match_expressions(&mut self, path: &str, value: &Value) {
        match value {
            Value::Null => {}
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.match_expression(&index(path, at), item);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                self.refuse(path, &format!("{} is no list of requirements", show(value)));
            }
        }
    }

    fn match_expression(&mut self, path: &str, value: &Value) {
        let read = match typed::<LabelSelectorRequirement>(path, value) {
            Ok(read) => read,
            Err(mismatch) => return self.refuse(&mismatch.path, &mismatch.message),
        };
        for field in &read.unknown {
            self.refuse(field, "unknown field; a requirement has key, operator and values");
        }
        let LabelSelectorRequirement { key, operator, values } = read.value;
        let values = values.unwrap_or_default();
        if !is_label_key(&key) {
            self.refuse(&child(path, "key"), &format!("bad label key {}: {KEY_SYNTAX}", quote(&key)));
        }
        for (at, value) in values.iter().enumerate().filter(|(_, value)| !is_label_value(value)) {
            let path = index(&child(path, "values"), at);
            self.refuse(&path, &format!("bad label value {}: {VALUE_SYNTAX}", quote(value)));
        }
        let takes_values = matches!(operator.as_str(), "In" | "NotIn");
        if !OPERATORS.contains(&operator.as_str()) {
            let hint = suggestion(&operator, &OPERATORS);
            let message = format!("unknown operator {}{hint}; use In, NotIn, Exists or DoesNotExist", quote(&operator));
            return self.refuse(&child(path, "operator"), &message);
        }
        if takes_values == values.is_empty() {
            let message = if takes_values {
                format!("operator {operator} needs at least one value")
            } else {
                format!("operator {operator} takes no values; remove them")
            };
            return self.refuse(&child(path, "values"), &message);
        }
        let key: Arc<str> = key.into();
        let mut values: Vec<Arc<str>> = values.into_iter().map(Into::into).collect();
        values.sort();
        values.dedup();
        self.requirements.push(match operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        });
    }
}
