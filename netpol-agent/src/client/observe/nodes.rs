//! All nodes without a relay: this same command run in each agent's pod through the API server, what they say joined.
//!
//! No port is open for it, and RBAC (`create` and `get` on pods/exec) decides who may ask. A node that cannot be asked is told of as
//! hubble-relay would, by a node status. Who follows is told when a node's flows end, and the node is asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess};
use prost_types::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::file;
use super::flags::{Flags, UNTIL_STDIN_ENDS};
use super::merge::{Merge, Window};
use super::request;
use crate::client::agents::{Agent, Agents, COMMAND, PATIENCE};
use crate::client::ask::ClientError;
use crate::client::cli::Place;
use crate::observe::hubble::json::JsonError;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use crate::observe::hubble::proto::observer::{GetFlowsRequest, GetFlowsResponse};
use crate::observe::hubble::proto::relay::{NodeState, NodeStatusEvent};
use crate::problem::chain;

/// Responses of a node that may wait; a node whose are not taken waits, and its agent tells what it missed.
const QUEUE: usize = 256;
/// What of an agent's errors is shown.
const LONGEST_ERROR: u64 = 4096;
/// How soon a node whose flows have ended is asked again, and new nodes are looked for.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What all nodes answer.
pub(super) enum Answers {
    /// What they have, in order of time.
    Past(Merge),
    /// What they go on to tell.
    Following(Window),
}

impl Answers {
    /// The next; none at the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<GetFlowsResponse> {
        match self {
            Self::Past(merge) => merge.next().await,
            Self::Following(window) => window.next().await,
        }
    }
}

/// Asks all nodes; says how many, too.
///
/// # Errors
/// If the agents cannot be found.
pub(super) async fn ask(flags: &Flags, request: &GetFlowsRequest) -> Result<(Answers, usize), ClientError> {
    let place = Place {
        kubeconfig: flags.kubeconfig.clone(),
        context: flags.context.clone(),
        agent_namespace: flags.agent_namespace.clone(),
        ..Place::default()
    };
    let agents = Agents::connect(&place).await?;
    let found = agents.find().await?;
    let count = found.len();
    if request.follow {
        let (responses, queue) = mpsc::channel(QUEUE);
        let has_past = request.number > 0 || request.since.is_some();
        tokio::spawn(follow(agents, found, request.clone(), responses));
        return Ok((Answers::Following(Window::new(queue, has_past)), count));
    }
    let arguments: Arc<[String]> = command(request).map_err(|error| ClientError::Request(error.to_string()))?.into();
    let mut queues = Vec::new();
    for agent in found {
        let (responses, queue) = mpsc::channel(QUEUE);
        queues.push(queue);
        let asked = Asked { pods: agents.pods(), agent, responses, latest: None };
        tokio::spawn(asked.past(arguments.clone()));
    }
    Ok((Answers::Past(Merge::new(queues)), count))
}

/// The command in the agents' image that answers the request.
fn command(request: &GetFlowsRequest) -> Result<Vec<String>, JsonError> {
    let flags = request::as_flags(request)?;
    Ok([COMMAND, "observe"].into_iter().map(str::to_owned).chain(flags).collect())
}

/// Follows all nodes, those among them that come later, until nobody listens.
async fn follow(
    agents: Agents,
    mut found: Vec<Agent>,
    request: GetFlowsRequest,
    responses: mpsc::Sender<GetFlowsResponse>,
) {
    let mut asked: JoinSet<(String, Result<(), String>, Option<Timestamp>)> = JoinSet::new();
    let mut running = BTreeSet::new();
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut latest: BTreeMap<String, Timestamp> = BTreeMap::new();
    loop {
        for agent in std::mem::take(&mut found) {
            let node = agent.node.clone();
            if !running.insert(node.clone()) {
                continue;
            }
            let request = match latest.get(&node) {
                Some(time) => GetFlowsRequest { number: 0, since: Some(after(*time)), ..request.clone() },
                None => request.clone(),
            };
            let of_node = Asked { pods: agents.pods(), agent, responses: responses.clone(), latest: None };
            asked.spawn(async move { of_node.following(&request).await.named(node) });
        }
        tokio::select! {
            Some(Ok((node, result, until))) = asked.join_next() => {
                running.remove(&node);
                if let Some(until) = until {
                    latest.insert(node.clone(), until);
                    told.remove(&node);
                }
                if let Err(message) = result && told.insert(node.clone(), message.clone()).as_ref() != Some(&message) {
                    let gone = responses.send(trouble(&node, message)).await;
                    tracing::debug!(%node, listened = gone.is_ok(), "a node could not be asked");
                }
            }
            () = responses.closed() => return,
            () = tokio::time::sleep(ASK_AGAIN) => match agents.find().await {
                Ok(agents) => found = agents,
                Err(error) => tracing::debug!(error = %chain(&error), "cannot look for agents"),
            },
        }
    }
}

/// The moment after.
const fn after(time: Timestamp) -> Timestamp {
    match time.nanos {
        999_999_999 => Timestamp { seconds: time.seconds + 1, nanos: 0 },
        nanos => Timestamp { seconds: time.seconds, nanos: nanos + 1 },
    }
}

/// How following one node ended, and the time of the last flow that it told of.
struct Ended(Result<(), String>, Option<Timestamp>);

impl Ended {
    fn named(self, node: String) -> (String, Result<(), String>, Option<Timestamp>) {
        (node, self.0, self.1)
    }
}

/// One agent that is asked.
struct Asked {
    pods: Api<Pod>,
    agent: Agent,
    responses: mpsc::Sender<GetFlowsResponse>,
    latest: Option<Timestamp>,
}

impl Asked {
    /// Has the agent tell what it has.
    async fn past(mut self, command: Arc<[String]>) {
        if let Err(message) = self.run(command.to_vec(), false).await {
            let gone = self.responses.send(trouble(&self.agent.node, message)).await;
            tracing::debug!(node = self.agent.node, listened = gone.is_ok(), "a node could not be asked");
        }
    }

    /// Has the agent tell what comes.
    async fn following(mut self, request: &GetFlowsRequest) -> Ended {
        let result = match command(request) {
            Ok(command) => {
                let more = [format!("--{UNTIL_STDIN_ENDS}")];
                self.run(command.into_iter().chain(more).collect(), true).await
            }
            Err(error) => Err(chain(&error)),
        };
        Ended(result.and(Err("its flows have ended; it is asked again".to_owned())), self.latest)
    }

    /// Runs the command in the agent's pod until it ends or nobody listens.
    async fn run(&mut self, command: Vec<String>, follows: bool) -> Result<(), String> {
        if let Some(unfit) = &self.agent.unfit {
            return Err(unfit.clone());
        }
        let pod = self.agent.pod.clone();
        let failed = |what: String| format!("pod {pod}: {what}");
        let mut streams = AttachParams::default().stdin(follows).stdout(true).stderr(true);
        streams.container.clone_from(&self.agent.container);
        let silent = || failed(format!("no answer within {} s", PATIENCE.as_secs()));
        let started = tokio::time::timeout(PATIENCE, self.pods.exec(&pod, command, &streams)).await;
        let mut process = started.map_err(|_elapsed| silent())?.map_err(|error| failed(chain(&error)))?;
        // It ends when this does.
        let _stdin = process.stdin();
        let stderr = process.stderr().ok_or_else(|| failed("no errors of the agent".to_owned()))?;
        let complaint = tokio::spawn(async move {
            let mut text = String::new();
            let read = stderr.take(LONGEST_ERROR).read_to_string(&mut text).await;
            read.map(|_length| text).unwrap_or_default()
        });
        let stdout = process.stdout().ok_or_else(|| failed("no output of the agent".to_owned()))?;
        let mut lines = BufReader::new(stdout).lines();
        loop {
            let line = if follows {
                lines.next_line().await
            } else {
                tokio::time::timeout(PATIENCE, lines.next_line()).await.map_err(|_elapsed| silent())?
            };
            let Some(line) = line.map_err(|error| failed(chain(&error)))? else { break };
            let Ok(Some(response)) = file::parse(&line) else { continue };
            self.latest = response.time.or(self.latest);
            if self.responses.send(response).await.is_err() {
                return Ok(());
            }
        }
        let Some(status) = how_it_ended(&mut process).await else { return Ok(()) };
        let complaint = complaint.await.unwrap_or_default();
        let said = complaint.trim().trim_start_matches("Error: ");
        Err(failed(if said.is_empty() { status } else { said.to_owned() }))
    }
}

/// None if the command ended well.
async fn how_it_ended(process: &mut AttachedProcess) -> Option<String> {
    let status = match process.take_status() {
        Some(status) => status.await,
        None => None,
    };
    let Some(status) = status else { return Some("the connection to it broke".to_owned()) };
    (status.status.as_deref() != Some("Success")).then(|| status.message.unwrap_or_else(|| "it failed".to_owned()))
}

fn trouble(node: &str, message: String) -> GetFlowsResponse {
    let status =
        NodeStatusEvent { state_change: NodeState::NodeError.into(), node_names: vec![node.to_owned()], message };
    GetFlowsResponse {
        node_name: "netpol".to_owned(),
        time: Some(SystemTime::now().into()),
        response_types: Some(ResponseTypes::NodeStatus(status)),
    }
}
