//! Flows as JSON lines in a file or on standard output, for whoever collects logs: filtered, summed up if that is asked
//! for, in files that are rotated.
//!
//! A thread of its own writes. Flows that find its queue full are counted as lost; a disk that is full or a file that cannot
//! be written is a problem that `status` shows, tried again, and never holds anybody up.

mod aggregate;
mod filter;
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
pub use self::filter::{FilterError, Filters, FlowFilter};
use self::rotate::Output;
use super::Flow;
use crate::problem::{Problem, Severity};

/// Flows that may wait for a slow disk.
const QUEUE: usize = 8192;
/// How long a file that cannot be written is left alone.
const PAUSE: Duration = Duration::from_secs(5);

/// What is exported, and where to.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The file; `stdout` is standard output.
    pub path: PathBuf,
    /// Bytes after which a file is put aside.
    pub max_bytes: u64,
    /// Files that are put aside at most.
    pub backups: usize,
    /// Which flows.
    pub filters: Filters,
    /// Sum flows up by pods, port and reason over so long.
    pub aggregate: Option<Duration>,
}

/// Exports flows; never blocks the caller. The thread ends when this is dropped, and writes what it has.
#[derive(Debug)]
pub struct Exporter {
    filters: Filters,
    flows: SyncSender<Flow>,
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
    /// If no thread can be started. A file that cannot be written is a [`Problem`].
    pub fn start(config: ExportConfig) -> io::Result<Self> {
        let (flows, queue) = sync_channel(QUEUE);
        let state = Arc::<State>::default();
        let filters = config.filters.clone();
        let output = Output::new(&config.path, config.max_bytes, config.backups);
        let has_stdout = matches!(output, Output::Stdout);
        let writer = Writer {
            output,
            path: config.path,
            sums: config.aggregate.map(|interval| (Sums::default(), interval)),
            state: state.clone(),
            not_before: None,
        };
        thread::Builder::new().name("flow-export".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { filters, flows, state, has_stdout })
    }

    /// Exports a flow, if it is wanted, or counts it as lost.
    pub fn flow(&self, flow: &Flow) {
        if self.filters.take(flow) && self.flows.try_send(flow.clone()).is_err() {
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
    sums: Option<(Sums, Duration)>,
    state: Arc<State>,
    /// After a failure.
    not_before: Option<Instant>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Flow>) {
        let mut due = self.sums.as_ref().map(|(_, interval)| Instant::now() + *interval);
        loop {
            let received = match due {
                Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => queue.recv().map_err(|_ended| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(flow) => match &mut self.sums {
                    Some((sums, _)) => {
                        let refused = sums.add(flow);
                        self.state.lost.fetch_add(refused, Ordering::Relaxed);
                    }
                    None => self.write(line(&flow)),
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
        for line in sums.take() {
            self.write(line);
        }
    }

    fn write(&mut self, line: serde_json::Result<String>) {
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

fn line(flow: &Flow) -> serde_json::Result<String> {
    serde_json::to_string(flow)
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
