//! One object that could not be taken, or not enforced, as written: what, where, why, and what that does to traffic.
//!
//! A `Problem` is not an error: the stage went on. It travels with the stage's output to log, status and metrics.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad a [`Problem`] is for traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is enforced differently than written.
    Note,
    /// Something is not enforced as written; less is allowed than written, or an older version stays in force.
    Refused,
}

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Where the object comes from: a file (with document number) or `api-server`.
    pub origin: String,
    /// The object as `Kind namespace/name`, or empty where the input could not be read as an object.
    pub object: String,
    /// Path of the field, as `spec.ingress[0].ports[1].port`; empty if the whole object is meant.
    pub field: String,
    /// What is wrong, with the value, and what to do.
    pub message: String,
    /// What happens to traffic.
    pub effect: String,
}

impl fmt::Display for Problem {
    /// One line: `origin: object: field: message; effect`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.origin, &self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        write!(f, "{}; effect: {}", self.message, self.effect)
    }
}

/// All of an error's sources on one line: what says its cause already is not said twice.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
