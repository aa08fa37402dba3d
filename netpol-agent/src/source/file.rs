//! The text of one manifest file -> its objects and problems, each with the line it stands in. Pure.

use std::sync::Arc;

use super::decode::{Identity, Item, Outcome, decode_value};
use super::directory::Unreadable;
use super::document::{Document, Format, documents};
use super::locate::Lines;
use crate::problem::{Problem, Severity};

/// Problems of one file that are told; more are only counted.
const MAX_PROBLEMS: usize = 100;
const NOTHING_TAKEN: &str = "nothing is taken from this file";
const NOT_TAKEN: &str = "nothing is taken from this document";

/// An object of a file, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The object.
    pub(super) item: Item,
    /// `file:line` of its beginning.
    pub(super) origin: String,
}

/// Everything that the text of the file called `name` holds.
pub(super) fn entries(name: &str, text: &str, format: Format) -> Vec<Entry> {
    let documents = documents(text, format);
    if documents.is_empty() {
        return vec![refused(name, "the file is empty; delete it to take its objects out of force", NOTHING_TAKEN)];
    }
    let several = documents.len() > 1;
    let mut entries: Vec<Entry> = documents.iter().flat_map(|document| of_document(name, document, several)).collect();
    limit_problems(name, &mut entries);
    entries
}

/// A file that has no text.
pub(super) fn unreadable(name: &str, error: &Unreadable) -> Vec<Entry> {
    vec![refused(name, &error.to_string(), NOTHING_TAKEN)]
}

fn of_document(name: &str, document: &Document<'_>, several: bool) -> Vec<Entry> {
    let origin = |line: usize| match several {
        false => format!("{name}:{line}"),
        true => format!("{name}:{line} (document {})", document.number),
    };
    let value = match &document.content {
        Ok(value) => value,
        Err(error) => {
            return vec![refused(&origin(error.line), &format!("cannot be parsed: {error}"), NOT_TAKEN)];
        }
    };
    let items = decode_value(name, value).items;
    let lines = Lines::of(document.text);
    let place = |path: &str| origin(document.line + lines.line(path).unwrap_or(0));
    let located = items.into_iter().map(|mut item| {
        for problem in &mut item.problems {
            problem.origin = place(&join(&item.place, &problem.field));
        }
        Entry { origin: place(&item.place), item }
    });
    located.collect()
}

/// The path of `field` of an object that is at `place` of a document.
fn join(place: &str, field: &str) -> String {
    match (place.is_empty(), field.is_empty() || field.starts_with('[')) {
        (true, _) => field.to_owned(),
        (false, true) => format!("{place}{field}"),
        (false, false) => format!("{place}.{field}"),
    }
}

/// Something that no object can be made of, so that it may be any.
fn refused(origin: &str, message: &str, effect: &str) -> Entry {
    let problem = Problem {
        severity: Severity::Refused,
        origin: origin.to_owned(),
        object: String::new(),
        field: String::new(),
        message: message.to_owned(),
        effect: effect.to_owned(),
    };
    let (identity, outcome) = (Identity::Unknown, Outcome::Refused);
    Entry { origin: origin.to_owned(), item: Item { identity, outcome, problems: vec![problem], place: String::new() } }
}

/// Junk can have a problem a byte; nobody reads more than a screenful.
fn limit_problems(name: &str, entries: &mut [Entry]) {
    let mut room = MAX_PROBLEMS;
    let mut left_out = 0_usize;
    let mut last = None;
    for entry in entries.iter_mut() {
        let keep = entry.item.problems.len().min(room);
        left_out += entry.item.problems.len() - keep;
        entry.item.problems.truncate(keep);
        room -= keep;
        last = if keep > 0 { Some(entry) } else { last };
    }
    if let Some(entry) = last.filter(|_| left_out > 0) {
        entry.item.problems.push(Problem {
            severity: Severity::Refused,
            origin: name.to_owned(),
            object: String::new(),
            field: String::new(),
            message: format!("{left_out} more problems in this file are not shown"),
            effect: "of the same kinds as those shown".to_owned(),
        });
    }
}

/// The objects of a file, shared between reloads while the file stays as it is.
pub(super) type Entries = Arc<[Entry]>;
