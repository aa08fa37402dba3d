//! Asks the agent of this machine: one JSON line to its socket, one back.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::observe::admin::Request;

/// How long the agent may take: a `sync` waits some seconds for pods to be found.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens.
    #[error("cannot reach the agent at {path}: {source}{}", advice(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It went away in the middle.
    #[error("the agent at {path} went away before it answered: {source}; is it restarting? Try again")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It said nothing.
    #[error("the agent at {path} did not answer within {} s; its log should say why", PATIENCE.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It cannot do it.
    #[error("the agent at {path} refused: {message}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its words.
        message: String,
    },
    /// That is no answer.
    #[error("the answer of {path} cannot be understood ({source}); are agent and netpol of the same version?")]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl SocketError {
    /// True of an agent that starts, restarts or is busy.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Broken { .. } | Self::Silent { .. } => true,
            Self::Refused { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// What to do about a socket that nobody answers at.
const ADVICE: [(io::ErrorKind, &str); 3] = [
    (
        io::ErrorKind::NotFound,
        "; is netpol-agent running here, and with this --socket? (What it enforced stays in force without it)",
    ),
    (
        io::ErrorKind::ConnectionRefused,
        "; nobody serves it any more: netpol-agent stopped or is starting (what it enforced stays in force)",
    ),
    (
        io::ErrorKind::PermissionDenied,
        "; only root may ask it: use sudo, or ask through the API server with --all-nodes",
    ),
];

fn advice(error: &io::Error) -> &'static str {
    ADVICE.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, advice)| advice)
}

/// Asks the agent at `path`; the answer comes with the name of its node.
///
/// # Errors
/// If it does not answer, or refuses.
pub(super) async fn ask<T: DeserializeOwned>(path: &Path, request: &Request) -> Result<(String, T), SocketError> {
    let silent = |_elapsed| SocketError::Silent { path: path.to_owned() };
    let foreign = |source| SocketError::Foreign { path: path.to_owned(), source };
    let line = tokio::time::timeout(PATIENCE, converse(path, request)).await.map_err(silent)??;
    let value: Value = serde_json::from_str(&line).map_err(foreign)?;
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        return Err(SocketError::Refused { path: path.to_owned(), message: error.to_owned() });
    }
    let node = value.get("node").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((node, serde_json::from_value(value).map_err(foreign)?))
}

async fn converse(path: &Path, request: &Request) -> Result<String, SocketError> {
    let broken = |source| SocketError::Broken { path: path.to_owned(), source };
    let connect = |source| SocketError::Connect { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).await.map_err(connect)?;
    let request = serde_json::to_string(request).map_err(|error| broken(error.into()))?;
    stream.write_all(format!("{request}\n").as_bytes()).await.map_err(broken)?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).await.map_err(broken)? == 0 {
        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(line)
}
