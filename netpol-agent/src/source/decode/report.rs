//! Telling what is wrong with an object: field paths, values as text, and the collector of [`Problem`]s.
//!
//! Text of the input reaches a terminal through here, so it is escaped and cut to a length; a problem stays one line.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::near::near_miss;
use crate::problem::{Problem, Severity};

/// Longest piece of input shown in a message.
const SHOWN: usize = 60;

/// Collects the problems of one object.
#[derive(Debug)]
pub(super) struct Report {
    origin: String,
    object: String,
    problems: Vec<Problem>,
}

impl Report {
    pub(super) fn new(origin: &str, object: String) -> Self {
        Self { origin: origin.to_owned(), object, problems: Vec::new() }
    }

    /// The object is called this, also in what was told before that was known.
    pub(super) fn name(&mut self, object: String) {
        for problem in &mut self.problems {
            problem.object.clone_from(&object);
        }
        self.object = object;
    }

    /// Something is not taken as written.
    pub(super) fn refuse(&mut self, field: &str, message: impl Into<String>, effect: impl Into<String>) {
        self.push(Severity::Refused, field, message.into(), effect.into());
    }

    /// Something is odd, and traffic is as written.
    pub(super) fn note(&mut self, field: &str, message: impl Into<String>, effect: impl Into<String>) {
        self.push(Severity::Note, field, message.into(), effect.into());
    }

    fn push(&mut self, severity: Severity, field: &str, message: String, effect: String) {
        let (origin, object) = (self.origin.clone(), self.object.clone());
        self.problems.push(Problem { severity, origin, object, field: field.to_owned(), message, effect });
    }

    /// Whether anything was refused so far.
    pub(super) fn refused(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Refused)
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

/// `parent.key`; a key that is no plain word is quoted: `metadata.labels["app.kubernetes.io/name"]`.
pub(in crate::source) fn child(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.len() <= SHOWN && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{}]", quote(key)),
    }
}

/// `parent[index]`.
pub(in crate::source) fn index(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Text in quotes, escaped, and cut if it is long.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}

/// A value as text, short.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Array(items) if items.is_empty() => "[]".to_owned(),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::Bool(true) => "true (so are y, yes and on without quotes)".to_owned(),
        Value::Bool(false) => "false (so are n, no and off without quotes)".to_owned(),
        Value::Null | Value::Number(_) => value.to_string(),
    }
}

/// `message` on one line, without control characters, of bearable length.
pub(in crate::source) fn one_line(message: &str) -> String {
    const LONGEST: usize = 240;
    let words: Vec<&str> = message.split_whitespace().collect();
    let text: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

/// A value that is not of the type its field has.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Path of the field.
    pub(super) path: String,
    /// What was found and what was expected.
    pub(super) message: String,
}

/// A value of a Kubernetes type, and the paths of the fields that this type does not have.
#[derive(Debug)]
pub(super) struct Typed<T> {
    pub(super) value: T,
    pub(super) unknown: Vec<String>,
}

/// Reads `value`, found at `path`, as `T`.
pub(super) fn typed<T: DeserializeOwned>(path: &str, value: &Value) -> Result<Typed<T>, Mismatch> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    match serde_ignored::deserialize(deserializer, |ignored| unknown.push(ignored_path(path, &ignored))) {
        Ok(value) => Ok(Typed { value, unknown }),
        Err(error) => {
            let message = in_our_words(&one_line(&error.to_string()));
            Err(Mismatch { path: tracked_path(path, &track.path()), message })
        }
    }
}

/// The message of a type mismatch without names that only Rust knows, and with what to do.
fn in_our_words(message: &str) -> String {
    const WORDS: [(&str, &str); 4] = [
        ("expected IntOrString", "expected a port number or name"),
        ("expected a string", "expected a string: quote it"),
        ("expected a sequence", "expected a list: write - items"),
        ("expected a map", "expected a mapping: write key: value"),
    ];
    for (from, to) in WORDS {
        if let Some(found) = message.strip_suffix(from) {
            return format!("{found}{to}");
        }
    }
    // Any other type that is expected is one of the API's structures.
    match message.rsplit_once(", expected ") {
        Some((found, name)) if name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains(' ') => {
            format!("{found}, expected a mapping: write key: value")
        }
        _ => message.to_owned(),
    }
}

fn ignored_path(root: &str, path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => root.to_owned(),
        Path::Seq { parent, index: at } => index(&ignored_path(root, parent), *at),
        Path::Map { parent, key } => child(&ignored_path(root, parent), key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            ignored_path(root, parent)
        }
    }
}

fn tracked_path(root: &str, path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold(root.to_owned(), |parent, segment| match segment {
        Segment::Seq { index: at } => index(&parent, *at),
        Segment::Map { key } => child(&parent, key),
        Segment::Enum { .. } | Segment::Unknown => parent,
    })
}

/// ` (did you mean "ingress"?)` where `word` is a slip of one of `known`, else nothing.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    near_miss(word, known).map_or_else(String::new, |meant| format!(" (did you mean {meant:?}?)"))
}
