//! The agent's socket: one JSON line in, one JSON line out. Requests go to the pipeline, which alone knows the answers.
//!
//! Only root on the node may connect (file mode 0600): answers name pods and policies, and `sync` costs work.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::cni::protocol::CniRequest;
use crate::socket::{self, SocketError};

/// A longer request is nobody's.
const LONGEST_REQUEST: u64 = 1024 * 1024;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "request", deny_unknown_fields)]
pub enum Request {
    /// Read the manifests now; answer when they are enforced.
    Sync,
    /// The state as it is.
    Status,
    /// Packet counters of every pod.
    Counters,
    /// The pods of this node and what isolates them.
    Endpoints,
    /// All NetworkPolicies in brief.
    Policies,
    /// One NetworkPolicy as it is enforced.
    Policy {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Remove everything from the node as `netpol-agent cleanup` does, and do nothing more until told to stop: before an
    /// uninstall.
    Retire,
    /// Why one end reaches another, or not; as typed for `netpol explain`.
    Explain {
        /// Who.
        source: String,
        /// Whom, on which port.
        destination: String,
        /// Namespace of names that have none.
        namespace: String,
    },
}

/// Who asks what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// People and their tools.
    Operator(Request),
    /// The CNI plugin.
    Plugin(CniRequest),
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub asked: Asked,
    /// Takes the answer.
    pub answer: oneshot::Sender<Value>,
}

/// The socket, served; gone when this is dropped.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Admin {
    /// Listens at `path`, in place of a socket that nobody serves any more.
    ///
    /// # Errors
    /// If the socket cannot be made there, as where something else lies.
    pub fn start(path: &Path, calls: mpsc::Sender<Call>) -> Result<Self, SocketError> {
        let listener = socket::bind(path)?;
        let task = tokio::spawn(serve(listener, calls));
        Ok(Self { path: path.to_owned(), task })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = socket::remove(&self.path) {
            tracing::debug!(%error, "the socket stays");
        }
    }
}

async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &calls).await {
                        tracing::debug!(%error, "a client of the socket went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, calls: &mpsc::Sender<Call>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(LONGEST_REQUEST));
    loop {
        let mut line = String::new();
        match tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await {
            Ok(Ok(0)) | Err(_) => return Ok(()),
            Ok(result) => _ = result?,
        }
        read.get_mut().set_limit(LONGEST_REQUEST);
        let answer = match parse(&line) {
            Ok(asked) => ask(asked, calls).await,
            Err(error) => json!({ "error": format!("not a request: {error}; try {{\"request\":\"status\"}}") }),
        };
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
}

fn parse(line: &str) -> serde_json::Result<Asked> {
    let value: Value = serde_json::from_str(line)?;
    if value.get("cni").is_some() {
        serde_json::from_value(value).map(Asked::Plugin)
    } else {
        serde_json::from_value(value).map(Asked::Operator)
    }
}

async fn ask(asked: Asked, calls: &mpsc::Sender<Call>) -> Value {
    let (answer, answered) = oneshot::channel();
    let sent = calls.send(Call { asked, answer }).await;
    match (sent, answered.await) {
        (Ok(()), Ok(value)) => value,
        _ => json!({ "error": "the agent is shutting down" }),
    }
}
