//! Flows as JSON lines in a file or on standard output, for whoever collects logs: filtered as observers filter them, summed up
//! if that is asked for, in files that are rotated. The lines are Hubble's (`{"flow":{...},"node_name":...,"time":...}`), which
//! `netpol observe --input-file` and `hubble observe --input-file` read.
//!
//! A thread of its own writes. Flows that find its queue full are counted as lost; a disk that is full or a file that cannot
//! be written is a problem that `status` shows, tried again, and never holds anybody up.

mod aggregate;
mod rotate;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::aggregate::Sums;
use self::rotate::Output;
use super::hubble::filter::{FilterError, Selection};
use super::hubble::json::{self, JsonError};
use super::hubble::proto::flow::FlowFilter;
use super::hubble::proto::observer::GetFlowsResponse;
use super::hubble::proto::observer::get_flows_response::ResponseTypes;
use super::hubble::ring::{Content, Entry};
use crate::problem::{Problem, Severity};

/// Flows that may wait for a slow disk.
const QUEUE: usize = 8192;
/// How long a file that cannot be written is left alone.
const PAUSE: Duration = Duration::from_secs(5);
/// What Hubble's client reads of a line at most.
const LONGEST: usize = 64 << 10;

/// What is exported, and where to.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The file; `stdout` is standard output.
    pub path: PathBuf,
    /// Bytes after which a file is put aside.
    pub max_bytes: u64,
    /// Files that are put aside at most.
    pub backups: usize,
    /// This node's name.
    pub node: String,
    /// Flows that one of these matches; none of them: all.
    pub allow: Vec<FlowFilter>,
    /// But none that one of these matches.
    pub deny: Vec<FlowFilter>,
    /// Sum flows up by pods, port and reason over so long.
    pub aggregate: Option<Duration>,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// No thread.
    #[error("cannot start the thread that writes")]
    Thread(#[from] io::Error),
}

/// Exports flows; never blocks the caller. The thread ends when this is dropped, and writes what it has.
#[derive(Debug)]
pub struct Exporter {
    selection: Selection,
    flows: SyncSender<Arc<Entry>>,
    state: Arc<State>,
    has_stdout: bool,
}

#[derive(Debug, Default)]
struct State {
    lost: AtomicU64,
    problem: Mutex<Option<Problem>>,
}

impl Exporter {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// If a filter cannot be used, or no thread be started. A file that cannot be written is a [`Problem`].
    pub fn start(config: ExportConfig) -> Result<Self, ExportError> {
        let (flows, queue) = sync_channel(QUEUE);
        let state = Arc::<State>::default();
        let selection = Selection::new(&config.allow, &config.deny)?;
        let output = Output::new(&config.path, config.max_bytes, config.backups);
        let has_stdout = matches!(output, Output::Stdout);
        let writer = Writer {
            output,
            path: config.path,
            node: config.node,
            sums: config.aggregate.map(|interval| (Sums::default(), interval)),
            state: state.clone(),
            not_before: None,
        };
        thread::Builder::new().name("flow-export".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { selection, flows, state, has_stdout })
    }

    /// Exports what observers are told too, if it is wanted, or counts it as lost. Filters are about flows only.
    pub fn take(&self, entry: &Arc<Entry>) {
        let is_wanted = entry.flow().is_none_or(|flow| self.selection.keeps(flow));
        if is_wanted && self.flows.try_send(entry.clone()).is_err() {
            self.state.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// True if it writes to standard output, which nobody else may mix with then.
    #[must_use]
    pub const fn has_stdout(&self) -> bool {
        self.has_stdout
    }

    /// Flows that could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// What keeps it from writing.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.state.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The thread's.
struct Writer {
    output: Output,
    path: PathBuf,
    node: String,
    sums: Option<(Sums, Duration)>,
    state: Arc<State>,
    /// After a failure.
    not_before: Option<Instant>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Arc<Entry>>) {
        let mut due = self.sums.as_ref().map(|(_, interval)| Instant::now() + *interval);
        loop {
            let received = match due {
                Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => queue.recv().map_err(|_ended| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(entry) => match &mut self.sums {
                    Some((sums, _)) if entry.flow().is_some() => {
                        let refused = sums.add(entry);
                        self.state.lost.fetch_add(refused, Ordering::Relaxed);
                    }
                    _ => self.write(line(&entry, &self.node)),
                },
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.write_sums(),
            }
            if due.is_some_and(|due| due <= Instant::now()) {
                self.write_sums();
                due = self.sums.as_ref().map(|(_, interval)| Instant::now() + *interval);
            }
        }
    }

    fn write_sums(&mut self) {
        let Some((sums, _)) = &mut self.sums else { return };
        for entry in sums.take() {
            self.write(line(&entry, &self.node));
        }
    }

    fn write(&mut self, line: Result<String, JsonError>) {
        let written = match line {
            _ if self.not_before.is_some_and(|until| Instant::now() < until) => {
                self.state.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(line) => self.output.write_line(&line),
            Err(error) => Err(io::Error::other(error)),
        };
        let problem = written.err().map(|error| {
            self.state.lost.fetch_add(1, Ordering::Relaxed);
            problem(&self.path, &error)
        });
        self.not_before = problem.as_ref().map(|_| Instant::now() + PAUSE);
        let mut said = self.state.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some() || problem.is_some() {
            *said = problem;
        }
    }
}

/// As Hubble's exporter writes it. What would be too long for its readers goes without labels.
fn line(entry: &Entry, node: &str) -> Result<String, JsonError> {
    let response = |content| GetFlowsResponse {
        node_name: node.to_owned(),
        time: Some(entry.time),
        response_types: Some(content),
    };
    let flow = match &entry.content {
        Content::Lost(lost) => return json::to_line(&response(ResponseTypes::LostEvents(*lost))),
        Content::Flow(flow) => flow,
    };
    let line = json::to_line(&response(ResponseTypes::Flow((**flow).clone())))?;
    if line.len() < LONGEST {
        return Ok(line);
    }
    let mut short = (**flow).clone();
    for end in [&mut short.source, &mut short.destination].into_iter().flatten() {
        end.labels.clear();
    }
    json::to_line(&response(ResponseTypes::Flow(short)))
}

fn problem(path: &std::path::Path, error: &io::Error) -> Problem {
    Problem {
        severity: Severity::Note,
        origin: "node".to_owned(),
        object: "flow export".to_owned(),
        field: String::new(),
        message: format!("cannot write to {}: {error}; tried again every {} s", path.display(), PAUSE.as_secs()),
        effect: "none on traffic: flows are missing from the export, and counted".to_owned(),
    }
}
