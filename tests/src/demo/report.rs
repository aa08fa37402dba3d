//! What the demo says: readable text, or one JSON object a line.
//!
//! Text and objects go to standard output, both through here.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde_json::{Value, json};

use crate::table::{Cell, Difference, Table};

/// Differing cells that are listed for people; a machine gets them all.
const SHOWN: usize = 20;

/// Where the demo's words go.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    colours: bool,
    failures: usize,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        let colours = !json && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colours, failures: 0 }
    }

    /// How many things were not as expected.
    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    /// Begins a part of the demo.
    pub(super) fn part(&self, title: &str) -> Result<()> {
        let (bold, plain) = if self.colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("\n{bold}== {title}{plain}"), json!({"step": "part", "title": title}))
    }

    /// One line on what was done; `fields` is what a machine gets of it.
    pub(super) fn done(&self, text: &str, step: &str, mut fields: Value) -> Result<()> {
        if let Some(object) = fields.as_object_mut() {
            object.insert("step".to_owned(), step.into());
        }
        self.say(text, fields)
    }

    /// A measured table, and how it differs from the expected one.
    pub(super) fn table(&mut self, name: &str, expected: &Table, measured: &Table, odd: &[String]) -> Result<()> {
        let differences = expected.differences(measured);
        let cells: Vec<Value> = measured
            .cells()
            .map(|(source, target, cell)| json!({"from": source, "to": target.to_string(), "answer": format!("{cell:?}").to_lowercase()}))
            .collect();
        let different: Vec<String> = differences.iter().map(Difference::to_string).collect();
        let fields = json!({"step": "table", "name": name, "cells": cells, "differences": different, "odd": odd});
        self.say(&format!("\n{}", measured.render(self.colours)), fields)?;
        for line in odd {
            self.text(&format!("  ? {line}"))?;
        }
        let asked = measured.cells().filter(|(_, _, cell)| *cell != Cell::Skipped).count();
        match different.as_slice() {
            [] => self.text(&format!("{} {asked} cells, all as expected", self.mark(true))),
            different => {
                self.failures += different.len();
                self.text(&format!("{} {} of {asked} cells are not as expected:", self.mark(false), different.len()))?;
                different.iter().take(SHOWN).try_for_each(|line| self.text(&format!("    {line}")))?;
                match different.len().checked_sub(SHOWN) {
                    Some(more) if more > 0 => self.text(&format!("    and {more} more")),
                    _ => Ok(()),
                }
            }
        }
    }

    /// A check with a yes or no.
    pub(super) fn check(&mut self, what: &str, holds: bool) -> Result<()> {
        if !holds {
            self.failures += 1;
        }
        self.say(&format!("{} {what}", self.mark(holds)), json!({"step": "check", "what": what, "holds": holds}))
    }

    /// A line of the agent's, as it came.
    pub(super) fn agent_line(&self, line: &str) -> Result<()> {
        let drop = serde_json::from_str(line).unwrap_or_else(|_| Value::from(line));
        let (dim, plain) = if self.colours { ("\x1b[33m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("    {dim}{line}{plain}"), json!({"step": "drop", "drop": drop}))
    }

    /// Text for people only.
    pub(super) fn text(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { self.say(text, Value::Null) }
    }

    fn mark(&self, good: bool) -> &'static str {
        match (good, self.colours) {
            (true, true) => "\x1b[32mok\x1b[0m  ",
            (true, false) => "ok  ",
            (false, true) => "\x1b[31mFAIL\x1b[0m",
            (false, false) => "FAIL",
        }
    }

    fn say(&self, text: &str, fields: Value) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json { writeln!(out, "{fields}") } else { writeln!(out, "{text}") }?;
        out.flush()?;
        Ok(())
    }
}
