//! Responses -> the terminal: lines as they come, or a table that is drawn again every second.

use std::future::Future;
use std::io::{self, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use super::ObserveError;
use super::flags::Flags;
use super::print::{Printed, Printer};
use super::summary::Summary;
use crate::observe::hubble::proto::observer::GetFlowsResponse;

/// How often the table is drawn.
const REDRAW: Duration = Duration::from_secs(1);
/// Rows on a terminal, and elsewhere.
const ROWS: usize = 40;
const ALL_ROWS: usize = 10_000;
/// Clears the screen and goes to its upper left corner.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What became of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// More, please.
    Wanted,
    /// Nobody reads any more.
    NoMore,
}

/// Whatever shows responses.
#[derive(Debug)]
pub(super) enum Show {
    Lines(Box<Printer>),
    Table { summary: Summary, terminal: bool, follow: bool, due: Instant },
}

impl Show {
    pub(super) fn new(flags: &Flags, colour: bool, terminal: bool) -> Self {
        if flags.summary {
            return Self::Table {
                summary: Summary::default(),
                terminal,
                follow: flags.follow,
                due: Instant::now() + REDRAW,
            };
        }
        Self::Lines(Box::new(Printer::new(flags, colour)))
    }

    pub(super) fn take(&mut self, response: &GetFlowsResponse) -> Result<Shown, ObserveError> {
        match self {
            Self::Lines(printer) => {
                let Printed { out, err } = printer.print(response)?;
                if !err.is_empty() {
                    io::stderr().write_all(err.as_bytes())?;
                }
                write(&out)
            }
            Self::Table { summary, .. } => {
                summary.add(response);
                Ok(Shown::Wanted)
            }
        }
    }

    /// Waits for something, or until the table is due: none then, and it was drawn.
    pub(super) async fn until_due<T>(&mut self, something: impl Future<Output = T>) -> Result<Option<T>, ObserveError> {
        let Self::Table { summary, terminal, follow: true, due } = self else { return Ok(Some(something.await)) };
        match tokio::time::timeout_at(*due, something).await {
            Ok(value) => Ok(Some(value)),
            Err(_due) => {
                *due = Instant::now() + REDRAW;
                let (clear, rows) = if *terminal { (CLEAR, ROWS) } else { ("", ALL_ROWS) };
                write(&format!("{clear}{}", summary.table(rows)))?;
                Ok(None)
            }
        }
    }

    /// Shows what is left.
    pub(super) fn end(self) -> Result<(), ObserveError> {
        let text = match self {
            Self::Lines(mut printer) => printer.end(),
            Self::Table { summary, .. } => summary.table(ALL_ROWS),
        };
        write(&text).map(|_shown| ())
    }
}

/// A reader that has gone is no failure.
fn write(text: &str) -> Result<Shown, ObserveError> {
    if text.is_empty() {
        return Ok(Shown::Wanted);
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Shown::Wanted),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Shown::NoMore),
        Err(error) => Err(error.into()),
    }
}
