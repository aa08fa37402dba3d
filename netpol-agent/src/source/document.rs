//! The text of a file -> its documents as values, each with the line it begins at.
//!
//! A YAML stream is cut at its `---` and `...` lines before it is parsed: at the beginning of a line they always are
//! document markers, whatever stands before them, so a broken document does not take the others with it. Pure.
//!
//! Limits keep a hostile file from hanging or filling the agent: aliases are replayed at most [`MAX_REPLAYED`] times.

use serde_json::Value;

use super::decode::one_line;

/// Events that aliases of one document may be replayed to. A generated PodList uses none.
const MAX_REPLAYED: usize = 100_000;
/// Nodes of one document; 4 MiB of pods have about 200,000.
const MAX_NODES: usize = 1_000_000;

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document<'t> {
    /// Counts from 1 and includes empty ones.
    pub(super) number: usize,
    /// Line of the file that [`text`](Self::text) begins at, from 1.
    pub(super) line: usize,
    /// How many lines of it come before the first that says something.
    pub(super) first: usize,
    /// The document as written.
    pub(super) text: &'t str,
    /// What it says.
    pub(super) content: Result<Value, SyntaxError>,
}

/// A document that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct SyntaxError {
    /// Line of the file, from 1.
    pub(super) line: usize,
    /// What the parser says, on one line.
    pub(super) message: String,
}

/// All documents of `text` that are not empty.
pub(super) fn documents(text: &str, format: Format) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => split(text).filter_map(|chunk| yaml(&chunk)).collect(),
        Format::Json if text.trim().is_empty() => Vec::new(),
        Format::Json => vec![json(text)],
    }
}

struct Chunk<'t> {
    number: usize,
    line: usize,
    text: &'t str,
}

/// Cuts a stream at its document markers. What follows `---` on its line belongs to the document.
fn split(text: &str) -> impl Iterator<Item = Chunk<'_>> {
    let mut starts = vec![(1, 0)];
    let mut offset = 0;
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let marker = content.strip_prefix("---").or_else(|| content.strip_prefix("..."));
        if marker.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            starts.push((line, offset));
        }
        offset += content.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).map(|(_, start)| *start).chain([text.len()]).collect();
    let chunks = starts.into_iter().zip(ends);
    // A marker on the first line begins the first document.
    let chunks = chunks.filter(|((_, start), end)| start < end);
    (1..).zip(chunks).map(move |(number, ((line, start), end))| Chunk {
        number,
        line,
        text: text.get(start..end).unwrap_or_default(),
    })
}

/// Comments, directives and the markers themselves; a document of nothing else is empty.
fn is_blank(text: &str) -> bool {
    text.lines().all(is_blank_line)
}

fn is_blank_line(line: &str) -> bool {
    let line = line.strip_prefix("---").or_else(|| line.strip_prefix("...")).unwrap_or(line).trim();
    line.is_empty() || line.starts_with(['#', '%'])
}

fn yaml<'t>(chunk: &Chunk<'t>) -> Option<Document<'t>> {
    if is_blank(chunk.text) {
        return None;
    }
    // After `...` the parser wants a new stream.
    let text = chunk.text.strip_prefix("...").unwrap_or(chunk.text);
    let content = serde_saphyr::from_str_with_options::<Value>(text, options()).map_err(|error| SyntaxError {
        line: chunk.line + error.location().map_or(0, |at| usize::try_from(at.line()).unwrap_or(1).saturating_sub(1)),
        message: one_line(&without_position(&error)),
    });
    if content == Ok(Value::Null) {
        return None;
    }
    let first = text.lines().take_while(|line| is_blank_line(line)).count();
    Some(Document { number: chunk.number, line: chunk.line, first, text, content })
}

/// The parser's message; where it is we say ourselves, counted from the beginning of the file.
fn without_position(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = match text.rfind(" at line ") {
        Some(end) if error.location().is_some() => text.get(..end).unwrap_or(&text),
        _ => &text,
    };
    // Advice for programmers, not for authors.
    text.split_once(", set DuplicateKeyPolicy").map_or(text, |(text, _)| text).to_owned()
}

/// Parser settings. `yes`, `on` and `n` are booleans as they are to the API server, so that a manifest means the same to
/// both. Numbers that YAML 1.1 and 1.2 read differently (`0080`, `1_000`) stay strings, and are refused as such.
pub(super) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_recorded_anchor_events: MAX_REPLAYED,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        emit_comments: false,
        with_snippet: false,
    }
}

fn json(text: &str) -> Document<'_> {
    let content = serde_json::from_str::<unique::Unique>(text).map(|unique| unique.0).map_err(|error| {
        let message = error.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len());
        SyntaxError { line: error.line().max(1), message: one_line(message.get(..end).unwrap_or(&message)) }
    });
    Document { number: 1, line: 1, first: 0, text, content }
}

/// JSON values in which no key stands twice: `serde_json` alone would silently keep the last.
mod unique {
    use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
    use serde_json::{Map, Number, Value};

    pub(super) struct Unique(pub(super) Value);

    impl<'de> Deserialize<'de> for Unique {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(UniqueVisitor)
        }
    }

    struct UniqueVisitor;

    impl<'de> Visitor<'de> for UniqueVisitor {
        type Value = Unique;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a JSON value")
        }

        fn visit_unit<E>(self) -> Result<Unique, E> {
            Ok(Unique(Value::Null))
        }

        fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
            Ok(Unique(Value::Bool(value)))
        }

        fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
            Ok(Unique(value.into()))
        }

        fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
            Ok(Unique(value.into()))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<Unique, E> {
            let number = Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
            Ok(Unique(Value::Number(number)))
        }

        fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
            Ok(Unique(value.into()))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
            let mut list = Vec::new();
            while let Some(Unique(item)) = items.next_element()? {
                list.push(item);
            }
            Ok(Unique(Value::Array(list)))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Unique, A::Error> {
            let mut map = Map::new();
            while let Some(key) = fields.next_key::<String>()? {
                if map.contains_key(&key) {
                    return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
                }
                let Unique(value) = fields.next_value()?;
                map.insert(key, value);
            }
            Ok(Unique(Value::Object(map)))
        }
    }
}
