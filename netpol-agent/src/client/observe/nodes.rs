//! All nodes without a relay: this same command run in each agent's pod through the API server, what they say joined.
//!
//! No port is open for it, and RBAC (`create` and `get` on pods/exec) decides who may ask. A node that cannot be asked is told of as
//! hubble-relay would, by a node status.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use super::ObserveError;
use super::file;
use super::flags::Flags;
use crate::observe::hubble::proto::observer::GetFlowsResponse;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use crate::observe::hubble::proto::relay::{NodeState, NodeStatusEvent};
use crate::problem::chain;

/// The agents' pods.
const LABEL: &str = "app.kubernetes.io/name=netpol";
/// The command in their image.
const COMMAND: [&str; 2] = ["/netpol", "observe"];
/// Responses that may wait to be printed; a node whose are not taken waits, and its agent tells what it missed.
const QUEUE: usize = 1024;
/// What of an agent's errors is shown.
const LONGEST_ERROR: u64 = 4096;

/// What all nodes answer, as it comes.
///
/// # Errors
/// If the agents cannot be found.
pub async fn ask(flags: &Flags, arguments: &[String]) -> Result<mpsc::Receiver<GetFlowsResponse>, ObserveError> {
    let client = client(flags).await?;
    let pods: Api<Pod> = Api::namespaced(client, &flags.agent_namespace);
    let list = pods.list(&ListParams::default().labels(LABEL)).await?;
    let agents: Vec<(String, String)> =
        list.items.into_iter().filter_map(|pod| Some((pod.metadata.name?, pod.spec?.node_name?))).collect();
    if agents.is_empty() {
        return Err(ObserveError::NoAgents { namespace: flags.agent_namespace.clone() });
    }
    let (responses, queue) = mpsc::channel(QUEUE);
    for (pod, node) in agents {
        let command: Vec<String> =
            COMMAND.iter().map(|&word| word.to_owned()).chain(arguments.iter().cloned()).collect();
        let (pods, responses) = (pods.clone(), responses.clone());
        tokio::spawn(async move {
            if let Err(message) = run(&pods, &pod, command, &responses).await {
                let gone = responses.send(trouble(&node, message)).await;
                tracing::debug!(%node, printed = gone.is_ok(), "a node could not be asked");
            }
        });
    }
    Ok(queue)
}

async fn client(flags: &Flags) -> Result<Client, ObserveError> {
    let options = KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
    let config = match &flags.kubeconfig {
        Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        None if flags.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await.map_err(|error| ObserveError::NoConfig(Box::new(error)))?,
    };
    Ok(Client::try_from(config)?)
}

/// Runs the command in one pod until it ends or nobody listens.
async fn run(
    pods: &Api<Pod>,
    pod: &str,
    command: Vec<String>,
    responses: &mpsc::Sender<GetFlowsResponse>,
) -> Result<(), String> {
    let streams = AttachParams::default().stdout(true).stderr(true);
    let mut process = pods.exec(pod, command, &streams).await.map_err(|error| chain(&error))?;
    let stdout = process.stdout().ok_or("no output of the agent")?;
    let stderr = process.stderr().ok_or("no errors of the agent")?;
    let complaint = tokio::spawn(async move {
        let mut text = String::new();
        let read = stderr.take(LONGEST_ERROR).read_to_string(&mut text).await;
        read.map(|_length| text).unwrap_or_default()
    });
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| chain(&error))? {
        let Some(response) = file::parse(&line) else { continue };
        if responses.send(response).await.is_err() {
            return Ok(());
        }
    }
    let status = match process.take_status() {
        Some(status) => status.await,
        None => None,
    };
    if status.is_some_and(|status| status.status.as_deref() == Some("Failure")) {
        let complaint = complaint.await.unwrap_or_default();
        return Err(if complaint.trim().is_empty() {
            "the agent failed".to_owned()
        } else {
            complaint.trim().to_owned()
        });
    }
    Ok(())
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
