//! Answers -> text for people. Pure.
//!
//! A column `NODE` is there as soon as a node has a name. A node whose agent did not answer has its row, with the reason.

mod endpoints;
mod policies;
mod policy;
mod status;

pub(super) use self::endpoints::endpoints;
pub(super) use self::policies::policies;
pub(super) use self::policy::{hint, policy};
pub(super) use self::status::status;

use super::ask::Answers;
use super::table::{Cell, Style, Table, printable};
use crate::observe::answer::Retired;

/// How it is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// On a terminal that has colours.
    pub(super) colour: bool,
}

impl Sight {
    fn paint(self, text: &str, style: Style) -> String {
        style.paint(&printable(text), self.colour)
    }

    fn heading(self, text: &str) -> String {
        self.paint(text, Style::Bold)
    }
}

/// Rows for nodes without an answer; `from` is where the table has its first columns.
fn push_refused<T>(table: &mut Table, answers: &Answers<T>) {
    for (node, why) in answers.refused() {
        table.push_with_text([node.into(), Cell::styled("no answer", Style::Bad)], why);
    }
}

/// What the nodes without an answer are told as, under a table that has no row a node.
fn refused_lines<T>(answers: &Answers<T>, sight: Sight) -> String {
    let line = |(node, why): (&str, &str)| sight.paint(&format!("{node}: no answer: {why}"), Style::Bad) + "\n";
    answers.refused().map(line).collect()
}

/// What became of a clean-up.
pub(super) fn retired(answers: &Answers<Retired>, sight: Sight) -> String {
    let line = |(node, _): (&str, &Retired)| {
        let name = if node.is_empty() { "this node" } else { node };
        format!("{}: netpol is off; delete its pod, or restart it to begin anew\n", printable(name))
    };
    answers.given().map(line).collect::<String>() + &refused_lines(answers, sight)
}

/// A name, or a dash where there is none.
fn or_dash(text: &str) -> Cell {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// Of the state of a pod.
fn state_cell(state: &str) -> Cell {
    Cell::styled(state, state_style(state))
}

fn state_style(state: &str) -> Style {
    match state {
        "enforced" => Style::Good,
        "failed" => Style::Bad,
        _ => Style::Warning,
    }
}

/// `1 pod`, `2 pods`.
fn counted(number: usize, one: &str) -> String {
    match (number, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (number, Some(stem)) => format!("{number} {stem}ies"),
        (number, None) if one.ends_with('s') => format!("{number} {one}es"),
        (number, None) => format!("{number} {one}s"),
    }
}

#[cfg(test)]
mod tests;
