//! Asks the agents of a cluster: finds their pods through the API server and runs `netpol` in each, all at once.
//!
//! Running it there needs no open port and no credential of its own: RBAC (`create` and `get` on pods/exec) decides who may. A node
//! whose agent does not answer is an answer too, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, AttachParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ask::{Answers, ClientError, NodeAnswer};
use super::cli::Place;
use super::wait::Version;
use crate::problem::chain;

/// The agents' pods.
const LABEL: &str = "app.kubernetes.io/name=netpol";
/// The command in their image.
pub(super) const COMMAND: &str = "/netpol";
/// How long one agent may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How many are asked at a time.
const AT_ONCE: usize = 32;
/// The longest answer that is taken.
const LONGEST: u64 = 64 << 20;

/// The agents of a cluster.
pub(super) struct Agents {
    client: Client,
    /// The API server, for errors.
    server: String,
    namespace: String,
    /// These only, if any are named.
    nodes: Vec<String>,
}

/// One agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) container: Option<String>,
    /// Why it cannot be asked.
    pub(super) unfit: Option<String>,
}

impl Agents {
    /// Prepares to ask; the API server is not reached yet.
    ///
    /// # Errors
    /// If there is no usable kubeconfig.
    pub(super) async fn connect(place: &Place) -> Result<Self, ClientError> {
        let wrong = |message: String| ClientError::Kubeconfig { path: place.kubeconfig.clone(), message };
        let options = KubeConfigOptions { context: place.context.clone(), ..KubeConfigOptions::default() };
        let config = match &place.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| wrong(chain(&error)))?
            }
            None if place.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| wrong(chain(&error)))?
            }
            // Where there is no pod around us, that is not worth a word.
            None => {
                Config::infer().await.map_err(|error| wrong(error.source().map_or_else(|| error.to_string(), chain)))?
            }
        };
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| wrong(chain(&error)))?;
        Ok(Self { client, server, namespace: place.agent_namespace.clone(), nodes: place.node.clone() })
    }

    /// Has every agent carry out `arguments`.
    ///
    /// # Errors
    /// If nobody says where the agents are, or there are none.
    pub(super) async fn ask<T>(&self, arguments: &[&str]) -> Result<Vec<NodeAnswer<T>>, ClientError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        self.ask_others(arguments, &BTreeSet::new()).await
    }

    /// As [`Self::ask`], but for some nodes.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn ask_others<T>(
        &self,
        arguments: &[&str],
        but: &BTreeSet<String>,
    ) -> Result<Vec<NodeAnswer<T>>, ClientError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let arguments: Vec<String> =
            [&[COMMAND], arguments, &["--local", "--output", "json"]].concat().into_iter().map(str::to_owned).collect();
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut asked = JoinSet::new();
        for agent in self.find().await?.into_iter().filter(|agent| !but.contains(&agent.node)) {
            let (pods, places, arguments) = (self.pods(), places.clone(), arguments.clone());
            asked.spawn(async move {
                let _place = places.acquire_owned().await;
                let answer = tokio::time::timeout(PATIENCE, ask_one::<T>(&pods, &agent, arguments)).await;
                let silent =
                    |_elapsed| Err(format!("no answer within {} s from pod {}", PATIENCE.as_secs(), agent.pod));
                NodeAnswer::of(&agent.node, answer.unwrap_or_else(silent))
            });
        }
        let mut nodes = Vec::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(answer) => nodes.push(answer),
                Err(error) => nodes.push(NodeAnswer::of("", Err(error.to_string()))),
            }
        }
        nodes.sort_by(|left, right| left.node.cmp(&right.node));
        Ok(nodes)
    }

    /// The NetworkPolicies that there are, with their versions.
    ///
    /// # Errors
    /// What the API server refused, in words.
    pub(super) async fn policies(&self) -> Result<BTreeMap<String, Version>, String> {
        let api: Api<NetworkPolicy> = Api::all(self.client.clone());
        let list = api.list_metadata(&ListParams::default()).await.map_err(|error| chain(&error))?;
        let of = |meta: kube::api::ObjectMeta| {
            let key = format!("{}/{}", meta.namespace?, meta.name?);
            Some((key, Version { uid: meta.uid?, generation: meta.generation? }))
        };
        Ok(list.items.into_iter().filter_map(|item| of(item.metadata)).collect())
    }

    /// Where the agents' pods are.
    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The agents that are asked: one for each node.
    ///
    /// # Errors
    /// If nobody says where they are, or there are none.
    pub(super) async fn find(&self) -> Result<Vec<Agent>, ClientError> {
        let refused = |error: kube::Error| ClientError::List {
            server: self.server.clone(),
            namespace: self.namespace.clone(),
            message: chain(&error),
        };
        let pods = self.pods().list(&ListParams::default().labels(LABEL)).await.map_err(refused)?;
        let mut agents = agents(&pods.items);
        if agents.is_empty() {
            return Err(ClientError::NoAgents(format!(
                "there are no pods with label {LABEL} in namespace {}; is netpol installed elsewhere? (--agent-namespace)",
                self.namespace
            )));
        }
        if !self.nodes.is_empty() {
            let known = |node: &String| agents.iter().any(|agent| agent.node == *node);
            if let Some(unknown) = self.nodes.iter().find(|node| !known(node)) {
                let nodes: Vec<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
                let message = format!("no agent runs on node {unknown}; there are agents on {}", nodes.join(", "));
                return Err(ClientError::NoAgents(message));
            }
            agents.retain(|agent| self.nodes.contains(&agent.node));
        }
        Ok(agents)
    }
}

/// One agent for each node: one that runs, else any, so that its node is not left out.
fn agents(pods: &[Pod]) -> Vec<Agent> {
    let mut by_node: BTreeMap<String, Agent> = BTreeMap::new();
    for pod in pods {
        let Some(agent) = agent(pod) else { continue };
        match by_node.get(&agent.node) {
            Some(known) if known.unfit.is_none() || agent.unfit.is_some() => {}
            _ => _ = by_node.insert(agent.node.clone(), agent),
        }
    }
    by_node.into_values().collect()
}

fn agent(pod: &Pod) -> Option<Agent> {
    let name = pod.metadata.name.clone()?;
    let spec = pod.spec.as_ref()?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    if matches!(phase, "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let unfit = match (&pod.metadata.deletion_timestamp, phase) {
        (Some(_), _) => Some(format!("pod {name} is terminating")),
        (None, "Running") => None,
        (None, phase) => Some(format!("pod {name} is {phase}{}", waiting_for(pod))),
    };
    // As kubectl chooses: the annotation, else the first.
    let annotation =
        pod.metadata.annotations.as_ref().and_then(|all| all.get("kubectl.kubernetes.io/default-container"));
    let ours = spec.containers.iter().find(|container| container.name.starts_with("netpol"));
    let container = ours.or(spec.containers.first()).map(|container| container.name.clone());
    let node = spec.node_name.clone().unwrap_or_else(|| "(none)".to_owned());
    Some(Agent { node, pod: name, container: annotation.cloned().or(container), unfit })
}

fn waiting_for(pod: &Pod) -> String {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let waiting = statuses.into_iter().flatten().filter_map(|it| it.state.as_ref()?.waiting.as_ref()?.reason.as_ref());
    waiting.map(|reason| format!(" ({reason})")).next().unwrap_or_default()
}

async fn ask_one<T: DeserializeOwned>(pods: &Api<Pod>, agent: &Agent, arguments: Vec<String>) -> Result<T, String> {
    if let Some(unfit) = &agent.unfit {
        return Err(unfit.clone());
    }
    let mut options = AttachParams::default().stdin(false).stdout(true).stderr(true);
    options.container.clone_from(&agent.container);
    let failed = |what: String| format!("pod {}: {what}", agent.pod);
    let exec = pods.exec(&agent.pod, arguments, &options).await;
    let mut process = exec.map_err(|error| failed(chain(&error)))?;
    let status = process.take_status();
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (stdout, stderr) = tokio::join!(read(stdout), read(stderr));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let own_end = process.join().await;
    // Its exit code counts only if it said nothing: `not settled` is one too.
    if let Ok(answers) = serde_json::from_str::<Answers<T>>(&stdout)
        && let Some(node) = answers.nodes.into_iter().next()
    {
        return node.answer.ok_or_else(|| node.error.unwrap_or_else(|| failed("an empty answer".to_owned())));
    }
    let said = stderr.trim().trim_start_matches("Error: ").lines().next().map(str::to_owned);
    let status = status.and_then(|status| status.message).filter(|message| !message.is_empty());
    let broken = own_end.err().map(|error| error.to_string());
    let words = said
        .or(status)
        .or(broken)
        .unwrap_or_else(|| "an answer that cannot be understood; is its version another?".to_owned());
    Err(failed(words))
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What came before a break is shown too.
        _ = stream.take(LONGEST).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, leaving: bool) -> Pod {
        let deletion = leaving.then_some("2026-01-01T00:00:00Z");
        let waiting = json!([{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                              "state": {"waiting": {"reason": "ImagePullBackOff"}}}]);
        serde_json::from_value(json!({
            "metadata": {"name": name, "deletionTimestamp": deletion},
            "spec": {"nodeName": node, "containers": [{"name": "other"}, {"name": "netpol-agent"}]},
            "status": {"phase": phase, "containerStatuses": if phase == "Pending" { waiting } else { json!([]) }},
        }))
        .unwrap()
    }

    #[test]
    fn every_node_has_one_agent_and_the_one_that_runs_goes_first() {
        let pods = [
            pod("old", "a", "Running", true),
            pod("new", "a", "Running", false),
            pod("gone", "b", "Failed", true),
            pod("late", "b", "Pending", false),
            pod("only", "c", "Running", true),
        ];
        let found: Vec<_> =
            agents(&pods).into_iter().map(|it| (it.node, it.pod, it.unfit.unwrap_or_default())).collect();
        let expected = [
            ("a", "new", ""),
            ("b", "late", "pod late is Pending (ImagePullBackOff)"),
            ("c", "only", "pod only is terminating"),
        ];
        assert_eq!(found, expected.map(|(node, pod, unfit)| (node.to_owned(), pod.to_owned(), unfit.to_owned())));
        let agent = agent(&pods[1]).unwrap();
        assert_eq!(agent.container.as_deref(), Some("netpol-agent"));
    }
}
