//! The agent's socket without an agent: it records what plugins ask and answers as it is told to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpol_agent::cni::protocol::{CniAnswer, CniRequest};

/// How the agent behaves from now on.
#[derive(Clone, Debug)]
pub enum Manner {
    /// It answers.
    Answer(CniAnswer),
    /// It answers with these bytes, and closes.
    Bytes(Vec<u8>),
    /// It closes the connection once it was asked.
    HangUp,
    /// It says nothing and keeps the connection.
    Silence,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Vec<CniRequest>,
    /// Connections that the plugin's end of was closed before there was an answer.
    abandoned: usize,
}

#[derive(Debug)]
struct Shared {
    manner: Mutex<Manner>,
    seen: Mutex<Seen>,
    news: Condvar,
    is_over: AtomicBool,
}

/// An agent that is none; gone when dropped.
#[derive(Debug)]
pub struct FakeAgent {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    /// Listens at `path` and answers that all is done.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn start(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Answer(CniAnswer::Done)),
            seen: Mutex::default(),
            news: Condvar::new(),
            is_over: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&listener, &of_thread));
        Ok(Self { path: path.to_owned(), shared, thread: Some(thread) })
    }

    /// Behaves otherwise from the next question on.
    pub fn behave(&self, manner: Manner) {
        *lock(&self.shared.manner) = manner;
    }

    /// What was asked since the last call of this.
    #[must_use]
    pub fn asked(&self) -> Vec<CniRequest> {
        std::mem::take(&mut lock(&self.shared.seen).requests)
    }

    /// Waits for a question, which stays among those of [`Self::asked`].
    ///
    /// # Errors
    /// If none comes.
    pub fn wait_for_a_question(&self) -> Result<()> {
        self.wait("nobody asked", |seen| !seen.requests.is_empty())
    }

    /// Waits until a plugin went away that had not been answered.
    ///
    /// # Errors
    /// If none does.
    pub fn wait_for_a_lost_plugin(&self) -> Result<()> {
        self.wait("no plugin went away", |seen| seen.abandoned > 0)
    }

    fn wait(&self, otherwise: &str, until: impl Fn(&Seen) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = lock(&self.shared.seen);
        while !until(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{otherwise}");
            }
            seen = self.shared.news.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // The listener wakes up for this, sees that all is over, and goes. Its file goes after that.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken)
            && thread.join().is_err()
        {
            crate::netns::run::note("the thread of a fake agent panicked");
        }
        if std::fs::remove_file(&self.path).is_err() {
            crate::netns::run::note("the socket of a fake agent was gone before it");
        }
    }
}

fn serve(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            if let Err(error) = converse(stream, &shared) {
                crate::netns::run::note(&format!("a fake agent: {error:#}"));
            }
        });
    }
}

fn converse(stream: UnixStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(());
    }
    let request = serde_json::from_str(&line).with_context(|| format!("not a request: {line:?}"))?;
    lock(&shared.seen).requests.push(request);
    shared.news.notify_all();
    let manner = lock(&shared.manner).clone();
    let bytes = match manner {
        Manner::Answer(answer) => serde_json::to_vec(&answer)?.into_iter().chain(*b"\n").collect(),
        Manner::Bytes(bytes) => bytes,
        Manner::HangUp => return Ok(()),
        Manner::Silence => {
            // Ends when the plugin does.
            let mut rest = String::new();
            if reader.read_line(&mut rest).is_ok() {
                lock(&shared.seen).abandoned += 1;
                shared.news.notify_all();
            }
            return Ok(());
        }
    };
    // The plugin may have gone.
    let mut stream = stream;
    drop(stream.write_all(&bytes));
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
