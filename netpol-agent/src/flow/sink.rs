//! Flows to standard output, as text or JSON lines, by a thread of its own: a reader that stops must not stop enforcement.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use super::{End, Flow, timestamp};

/// Lines that may wait for a slow reader.
const QUEUE: usize = 4096;

/// How flows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Prints flows; never blocks the caller.
#[derive(Clone, Debug)]
pub struct Printer {
    format: Format,
    lines: SyncSender<String>,
    lost: Arc<AtomicU64>,
}

impl Printer {
    /// Starts the printing thread.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(format: Format) -> io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        thread::Builder::new().name("flow-printer".to_owned()).spawn(move || print(&queue))?;
        Ok(Self { format, lines, lost })
    }

    /// Prints a flow, or counts it as lost if the reader is too slow.
    pub fn flow(&self, flow: &Flow) {
        let line = match self.format {
            Format::Text => text(flow),
            Format::Json => match serde_json::to_string(flow) {
                Ok(line) => line,
                Err(error) => {
                    tracing::error!(%error, "cannot print a flow as JSON");
                    return;
                }
            },
        };
        match self.lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Flows that found the queue full, or the reader gone.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Writes lines until the reader is gone; then the queue closes and flows count as lost.
fn print(queue: &Receiver<String>) {
    let mut out = io::stdout().lock();
    while let Ok(line) = queue.recv() {
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// One line: time, who to whom, protocol, why, by which policies.
#[must_use]
pub fn text(flow: &Flow) -> String {
    let mut line = format!(
        "{} {} {} {} -> {} {}",
        timestamp(flow.time),
        if flow.reason.is_drop() { "DROPPED" } else { "ALLOWED" },
        flow.direction.name(),
        end(&flow.source),
        end(&flow.destination),
        flow.protocol
    );
    if !flow.summary.is_empty() {
        append(&mut line, format_args!(" ({})", flow.summary));
    }
    append(&mut line, format_args!(" {}", flow.reason));
    if !flow.policies.is_empty() {
        let names: Vec<String> = flow.policies.iter().map(ToString::to_string).collect();
        let pod = flow.pod.as_ref().map_or_else(|| "the pod".to_owned(), ToString::to_string);
        let direction = flow.isolated_for.unwrap_or(flow.direction).name();
        append(&mut line, format_args!("; {pod} is isolated for {direction} by {}", names.join(", ")));
    }
    if !flow.hint.is_empty() {
        append(&mut line, format_args!("; {}", flow.hint));
    }
    if flow.suppressed > 0 {
        append(&mut line, format_args!(" (+{} like it)", flow.suppressed));
    }
    line
}

fn append(line: &mut String, part: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    if line.write_fmt(part).is_err() {
        line.push('?');
    }
}

fn end(end: &End) -> String {
    let host = match (&end.pod, end.ip) {
        (Some(pod), Some(ip)) => format!("{pod} ({ip})"),
        (Some(pod), None) => pod.to_string(),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => "?".to_owned(),
    };
    match end.port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}
