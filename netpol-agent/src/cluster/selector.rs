//! Label selectors against labels, as the LabelSelector API defines them.
//!
//! The three clauses that are easily got wrong: NotIn also matches an absent key, Exists matches an empty value, and
//! `matchLabels: {k: ""}` does not match an absent key.

use std::fmt;

use super::model::{Labels, Requirement, Selector};

impl Selector {
    /// The selector that matches nothing, for input that could not be understood.
    #[must_use]
    pub fn unusable() -> Self {
        Self { requirements: vec![Requirement::In("".into(), Vec::new())] }
    }

    /// True if every requirement holds for `labels`.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    /// True if this requirement holds for `labels`.
    #[must_use]
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // "NotIn: the key is absent or its value is none of these."
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

/// In the notation of `kubectl get -l`; `{}` for the selector that matches everything.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("{}");
        }
        let shown: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&shown.join(","))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) => match values.as_slice() {
                [value] => write!(f, "{key}={value}"),
                values => write!(f, "{key} in ({})", values.join(",")),
            },
            Self::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(",")),
            Self::Exists(key) => f.write_str(key),
            Self::DoesNotExist(key) => write!(f, "!{key}"),
        }
    }
}
