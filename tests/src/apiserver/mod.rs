//! An API server as a double: the list and watch protocol of kube-apiserver 1.36 over HTTP, for four kinds of object.
//!
//! Tests [`apply`](ApiServer::apply) and [`delete`](ApiServer::delete) objects and inject [`Faults`] while something
//! follows. What the real one does and this does not: TLS, selectors, validation, admission, and watch events in batches.
//! `store` keeps objects and a bounded history, `request` reads what is asked, `list`, `watch` and `single` answer, `pipe`
//! sends answers whole or spoiled, `exec` runs commands in pods.

mod exec;
mod faults;
mod list;
mod pipe;
mod request;
mod serve;
mod single;
mod store;
mod watch;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::sync::watch as signal;

pub use self::exec::Executed;
pub use self::faults::{Faults, Refusal, Spoil};
pub use self::store::Kind;
use self::store::Store;

/// A running API server; it ends when this is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the answers are made of.
pub(crate) struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    /// The newest version; watches wait for it to change.
    newest: signal::Sender<u64>,
    /// Counts up to break connections: each notices when it is no longer the number that it began with.
    breaks: signal::Sender<u64>,
    away: AtomicBool,
    requests: Mutex<Vec<String>>,
    watching: AtomicUsize,
    posted: Mutex<Vec<Value>>,
    executor: Mutex<Option<exec::Executor>>,
    /// Processes that run in place of commands in pods.
    processes: AtomicUsize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ApiServer {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// If there is no such port.
    pub fn start() -> Result<Self> {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?)
    }

    /// Starts one on a listener, which may have been made in another network namespace.
    ///
    /// # Errors
    /// If the listener cannot be used.
    pub fn on(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr().context("a listener without an address")?;
        listener.set_nonblocking(true).context("cannot make the listener asynchronous")?;
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            faults: Mutex::default(),
            newest: signal::Sender::new(0),
            breaks: signal::Sender::new(0),
            away: AtomicBool::new(false),
            requests: Mutex::default(),
            watching: AtomicUsize::new(0),
            posted: Mutex::default(),
            executor: Mutex::default(),
            processes: AtomicUsize::new(0),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
        let serving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || runtime.block_on(serve::serve(listener, serving, stopped)))
            .context("cannot start a thread")?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig for it; `token` is a file that holds the bearer token.
    #[must_use]
    pub fn kubeconfig(&self, token: Option<&std::path::Path>) -> String {
        let user = token.map_or_else(|| json!({}), |file| json!({ "tokenFile": file }));
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "double", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "double", "context": { "cluster": "double", "user": "user" } }],
            "current-context": "double",
        })
        .to_string()
    }

    /// Creates or changes an object and returns its version. It gets a UID, a creationTimestamp and a resourceVersion as
    /// the API server gives them.
    ///
    /// # Panics
    /// If it has no name, or a kind that is not served: a fault of the test.
    pub fn apply(&self, object: &Value) -> u64 {
        let version = locked(&self.shared.store).apply(object);
        self.shared.newest.send_replace(version);
        version
    }

    /// Deletes an object; false if there is none.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        let Some(version) = locked(&self.shared.store).delete(kind, namespace, name) else { return false };
        self.shared.newest.send_replace(version);
        true
    }

    /// All objects of a kind, as they would be listed.
    #[must_use]
    pub fn objects(&self, kind: Kind) -> Vec<Value> {
        locked(&self.shared.store).objects(kind).filter_map(|text| serde_json::from_slice(&text).ok()).collect()
    }

    /// Changes how it misbehaves, from the next request or line on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut locked(&self.shared.faults));
    }

    /// Forgets all history: whoever wants to go on from an older version is told that it is gone.
    pub fn compact(&self) {
        locked(&self.shared.store).compact();
    }

    /// How many events are kept for watches to go on from.
    pub fn keep_history(&self, events: usize) {
        locked(&self.shared.store).keep(events);
    }

    /// Breaks every connection, watches in the middle of an object.
    pub fn break_connections(&self) {
        self.shared.breaks.send_modify(|count| *count += 1);
    }

    /// Goes away (connections break, new ones are closed at once) or comes back.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.break_connections();
        }
    }

    /// What was asked so far, as `GET /path?query`, and forgets it.
    #[must_use]
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.shared.requests))
    }

    /// How many watches are open.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.shared.watching.load(Ordering::SeqCst)
    }

    /// Objects that were posted (Kubernetes Events), and forgets them.
    #[must_use]
    pub fn take_posted(&self) -> Vec<Value> {
        std::mem::take(&mut locked(&self.shared.posted))
    }

    /// Has commands run in pods do this: it gets the pod's name and the command.
    pub fn on_exec(&self, execute: impl Fn(&str, &[String]) -> Executed + Send + 'static) {
        let execute = move |pod: &str, command: &[String]| exec::Execution::Done(execute(pod, command));
        *locked(&self.shared.executor) = Some(Box::new(execute));
    }

    /// Has a process run in place of each command in a pod. It runs until it ends by itself: a client that goes away takes
    /// its standard input and outputs along.
    pub fn on_exec_run(&self, process: impl Fn(&str, &[String]) -> std::process::Command + Send + 'static) {
        let execute = move |pod: &str, command: &[String]| exec::Execution::Process(process(pod, command).into());
        *locked(&self.shared.executor) = Some(Box::new(execute));
    }

    /// How many of these processes run.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.shared.processes.load(Ordering::SeqCst)
    }

    /// How often watches get a bookmark; kube-apiserver sends one a minute.
    pub fn bookmark_every(&self, time: Duration) {
        self.faults(|faults| faults.bookmark_every = time);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A thread that panicked has said so itself.
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
