//! The text of one manifest file -> its objects and problems, each with the line it stands in. Pure.

use super::decode::{Identity, Item, Outcome, decode_value};
use super::directory::Unreadable;
use super::document::{Document, Format, documents};
use super::locate::Lines;
use crate::problem::{Problem, Severity};

/// Problems of one file that are told; more are only counted. Junk can have a problem a line, and nobody reads them all.
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

/// Everything in a file.
#[derive(Debug)]
pub(super) struct Entries {
    /// Its objects.
    pub(super) entries: Vec<Entry>,
    /// The file's name, fit to be shown.
    name: String,
    /// How many problems were left out.
    untold: usize,
}

impl Entries {
    /// Everything that the text of the file called `name` holds.
    pub(super) fn read(name: String, text: &str, format: Format) -> Self {
        let documents = documents(text, format);
        if documents.is_empty() {
            let empty = "the file is empty; delete it to take its objects out of force";
            return Self::one(refused(&name, empty, NOTHING_TAKEN), name);
        }
        let several = documents.len() > 1;
        let mut entries = Vec::new();
        let (mut told, mut untold) = (0, 0);
        for mut entry in documents.iter().flat_map(|document| of_document(&name, document, several)) {
            let problems = &mut entry.item.problems;
            untold += (told + problems.len()).saturating_sub(MAX_PROBLEMS).min(problems.len());
            problems.truncate(MAX_PROBLEMS - told);
            told += problems.len();
            entries.push(entry);
        }
        Self { entries, name, untold }
    }

    /// A file that has no text.
    pub(super) fn unreadable(name: String, error: &Unreadable) -> Self {
        Self::one(refused(&name, &error.to_string(), NOTHING_TAKEN), name)
    }

    fn one(entry: Entry, name: String) -> Self {
        Self { entries: vec![entry], name, untold: 0 }
    }

    /// The first of this file's `problems`, and how many more there are.
    pub(super) fn limited(&self, mut problems: Vec<Problem>) -> Vec<Problem> {
        let more = self.untold + problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        if more > 0 {
            let message = format!("{more} more problems in this file are not shown");
            problems.push(problem(&self.name, &message, "of the same kinds as those shown"));
        }
        problems
    }
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
    // Finding lines means parsing again: done only where something is wrong.
    let exact = items.iter().any(|item| !item.problems.is_empty());
    let lines = if exact { Lines::of(document.text) } else { Lines::default() };
    let place = |path: &str| origin(document.line + lines.line(path).unwrap_or(document.first));
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
    let (identity, outcome) = (Identity::Unknown, Outcome::Refused);
    let problems = vec![problem(origin, message, effect)];
    Entry { origin: origin.to_owned(), item: Item { identity, outcome, problems, place: String::new() } }
}

/// A problem of something that is not known to be an object.
pub(super) fn problem(origin: &str, message: &str, effect: &str) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: origin.to_owned(),
        object: String::new(),
        field: String::new(),
        message: message.to_owned(),
        effect: effect.to_owned(),
    }
}
