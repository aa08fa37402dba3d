//! Who is asked, and what they answered: [`Answers`], one for each node, errors among them.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::agents::Agents;
use super::cli::{EXIT_FAILURE, EXIT_USAGE, Place, SOCKET};
use super::explain::ExplainError;
use super::socket;
use crate::observe::admin::Request;

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent of this machine did not answer.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// Neither an agent here nor a cluster.
    #[error(
        "no agent on this machine ({socket} is not there) and no cluster to ask: {source}. On a node: is netpol-agent running, \
         and does it have that --socket? From outside: give --kubeconfig or set KUBECONFIG"
    )]
    Nowhere {
        /// Where the socket would be.
        socket: PathBuf,
        /// Why there is no cluster.
        source: Box<ClientError>,
    },
    /// There is no usable kubeconfig.
    #[error("cannot use the kubeconfig{}: {message}", path.as_ref().map_or_else(String::new, |path| format!(" {}", path.display())))]
    Kubeconfig {
        /// The file, if one was named.
        path: Option<PathBuf>,
        /// What is wrong.
        message: String,
    },
    /// The API server does not say where the agents are.
    #[error("cannot list the agents' pods in namespace {namespace} at {server}: {message}{}", advice(message))]
    List {
        /// The API server.
        server: String,
        /// The agents' namespace.
        namespace: String,
        /// The API server's answer.
        message: String,
    },
    /// There are none.
    #[error("{0}")]
    NoAgents(String),
    /// No agent knows the policy.
    #[error(
        "no NetworkPolicy {policy} is known to the agents{hint}; if it was created a moment ago, try `netpol status --wait`"
    )]
    NoSuchPolicy {
        /// `namespace/name`.
        policy: String,
        /// Names like it.
        hint: String,
    },
    /// The question cannot be sent on.
    #[error("cannot write the request: {0}")]
    Request(String),
    /// A flow cannot be explained.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// The answers cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),
    /// The answers cannot be written as JSON.
    #[error("cannot write the answers as JSON: {0}")]
    Write(#[source] serde_json::Error),
}

impl ClientError {
    /// How the program ends by it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Explain(ExplainError::Question(_))) { EXIT_USAGE } else { EXIT_FAILURE }
    }
}

fn advice(message: &str) -> &'static str {
    if message.contains("orbidden") {
        return "; it needs `list` on pods there, and `create` and `get` on pods/exec";
    }
    let is_away = ["onnect", "dns error", "timed out"].iter().any(|word| message.contains(word));
    if is_away { "; is that the right cluster (--kubeconfig, --context), and can it be reached from here?" } else { "" }
}

/// What one node's agent answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeAnswer<T> {
    /// Name of the node; may be empty where the agent was not told its own.
    pub(super) node: String,
    /// Its answer.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<T>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl<T> NodeAnswer<T> {
    pub(super) fn of(node: &str, result: Result<T, String>) -> Self {
        let (answer, error) = match result {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(error)),
        };
        Self { node: node.to_owned(), answer, error }
    }
}

/// What all that were asked answered, by node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answers<T> {
    pub(super) nodes: Vec<NodeAnswer<T>>,
}

impl<T> Answers<T> {
    /// Nodes with their answers.
    pub(super) fn given(&self) -> impl Iterator<Item = (&str, &T)> {
        self.nodes.iter().filter_map(|node| Some((node.node.as_str(), node.answer.as_ref()?)))
    }

    /// Nodes without, with the reason.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        let reason = |node: &NodeAnswer<T>| node.error.is_some() || node.answer.is_none();
        let refused = self.nodes.iter().filter(move |node| reason(node));
        refused.map(|node| (node.node.as_str(), node.error.as_deref().unwrap_or("an empty answer")))
    }

    pub(super) fn missing(&self) -> usize {
        self.refused().count()
    }

    pub(super) fn all(&self, holds: impl Fn(&T) -> bool) -> bool {
        self.given().all(|(_, answer)| holds(answer))
    }

    pub(super) fn any(&self, holds: impl Fn(&T) -> bool) -> bool {
        self.given().any(|(_, answer)| holds(answer))
    }

    pub(super) fn each(&mut self, mut change: impl FnMut(&mut T)) {
        self.nodes.iter_mut().filter_map(|node| node.answer.as_mut()).for_each(&mut change);
    }
}

/// Whoever is asked.
pub(super) enum Asker {
    /// The agent of this machine.
    Socket(PathBuf),
    /// The agents of a cluster.
    Agents(Box<Agents>),
}

impl Asker {
    /// Decides whom to ask.
    ///
    /// # Errors
    /// If that is a cluster, and there is no way to ask it.
    pub(super) async fn new(place: &Place) -> Result<Self, ClientError> {
        match choose(place, Path::new(SOCKET).exists()) {
            Choice::Socket(path) => Ok(Self::Socket(path)),
            Choice::Cluster => Ok(Self::Agents(Box::new(Agents::connect(place).await?))),
            Choice::ClusterForWant => match Agents::connect(place).await {
                Ok(agents) => Ok(Self::Agents(Box::new(agents))),
                Err(error @ ClientError::Kubeconfig { .. }) => {
                    Err(ClientError::Nowhere { socket: SOCKET.into(), source: Box::new(error) })
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Asks: `request` is for a socket, `arguments` are the same for the `netpol` in an agent's pod.
    ///
    /// # Errors
    /// If nobody could be asked.
    pub(super) async fn ask<T: DeserializeOwned + Send + 'static>(
        &self,
        request: &Request,
        arguments: &[&str],
    ) -> Result<Answers<T>, ClientError> {
        match self {
            Self::Socket(path) => {
                let (node, answer) = socket::ask(path, request).await?;
                Ok(Answers { nodes: vec![NodeAnswer::of(&node, Ok(answer))] })
            }
            Self::Agents(agents) => Ok(Answers { nodes: agents.ask(arguments).await? }),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Socket(PathBuf),
    Cluster,
    /// As there is no agent here.
    ClusterForWant,
}

/// What is asked for by name goes before what is there; `kubectl netpol` means the cluster.
fn choose(place: &Place, is_socket_there: bool) -> Choice {
    let names_cluster =
        place.all_nodes || !place.node.is_empty() || place.kubeconfig.is_some() || place.context.is_some();
    match &place.socket {
        _ if names_cluster => Choice::Cluster,
        Some(path) => Choice::Socket(path.clone()),
        None if place.local => Choice::Socket(SOCKET.into()),
        None if place.plugin => Choice::Cluster,
        None if is_socket_there => Choice::Socket(SOCKET.into()),
        None => Choice::ClusterForWant,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_follows_from_flags_then_from_what_is_there() {
        let here = Choice::Socket(SOCKET.into());
        let plain = Place::default;
        assert_eq!(choose(&plain(), true), here);
        assert_eq!(choose(&plain(), false), Choice::ClusterForWant);
        assert_eq!(choose(&Place { local: true, ..plain() }, false), here);
        assert_eq!(choose(&Place { plugin: true, ..plain() }, true), Choice::Cluster);
        assert_eq!(choose(&Place { plugin: true, local: true, ..plain() }, true), here);
        let socket = Place { socket: Some("/x".into()), plugin: true, ..plain() };
        assert_eq!(choose(&socket, false), Choice::Socket("/x".into()));
        // NETPOL_SOCKET may be set for good; what is typed goes before.
        assert_eq!(choose(&Place { all_nodes: true, ..socket }, true), Choice::Cluster);
        assert_eq!(choose(&Place { node: vec!["a".into()], ..plain() }, true), Choice::Cluster);
    }
}
