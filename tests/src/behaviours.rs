//! Two nodes under policy, on which the scenarios of `tests/corpora/behaviours.json` are played: four pods in two namespaces,
//! servers in all of them and on the nodes, both families.
//!
//! In: policies as text. Out: what reaches whom. Start at [`Stage::start`].

use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::{Agent, Options};
use crate::cluster::{Cluster, Plan};
use crate::connection::Connection;
use crate::manifests::PodAddresses;
use crate::netns::links::Links;
use crate::probe::{Outcome, PATIENCE, Probe, SILENCE};
use crate::servers::Transport;

/// The nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// Pods: name, labels, node, last part of the addresses.
const PODS: [(&str, &str, &str, u8); 4] = [
    ("x/a", "{pod: a}", "n1", 10),
    ("x/b", "{pod: b}", "n1", 11),
    ("y/b", "{pod: b}", "n2", 10),
    ("y/c", "{pod: c}", "n1", 12),
];
/// Ports that everybody serves.
const SERVED: [(Transport, u16); 4] =
    [(Transport::Tcp, 80), (Transport::Tcp, 81), (Transport::Udp, 53), (Transport::Udp, 54)];

/// Both families.
pub const FAMILIES: [bool; 2] = [false, true];

/// The stage, under policy. Agents die with the thread that made it.
#[derive(Debug)]
pub struct Stage {
    // Agents end before what they run on.
    agents: Vec<(&'static str, Agent)>,
    /// The cluster.
    pub cluster: Cluster,
}

impl Stage {
    /// Builds it, without policies.
    ///
    /// # Errors
    /// If the cluster cannot be made or an agent does not start.
    pub fn start() -> Result<Self> {
        let mut cluster = Cluster::start(&NODES, &[])?;
        cluster.run().put_manifest("00-namespaces.yaml", &namespaces())?;
        for (key, labels, node, host) in PODS {
            let addresses = address_pair(&cluster, node, host)?;
            cluster.add_pod(node, &PodAddresses::new(key, &addresses))?;
            cluster.run().put_manifest(&file(key), &pod(key, labels, node, (&addresses, "phase: Running", "")))?;
        }
        let mut stage = Self { agents: Vec::new(), cluster };
        for place in PODS.map(|(key, ..)| key).into_iter().chain(NODES) {
            stage.serve(place)?;
        }
        stage.start_agents()?;
        Ok(stage)
    }

    /// Starts an agent on each node.
    ///
    /// # Errors
    /// If one does not start.
    pub fn start_agents(&mut self) -> Result<()> {
        self.agents = NODES.into_iter().map(|name| Ok((name, agent(&self.cluster, name)?))).collect::<Result<_>>()?;
        Ok(())
    }

    /// Kills all agents.
    ///
    /// # Errors
    /// If one cannot be killed.
    pub fn kill_agents(&mut self) -> Result<()> {
        self.agents.drain(..).try_for_each(|(_, agent)| agent.kill().map(drop))
    }

    /// Serves everything in a place.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn serve(&self, place: &str) -> Result<()> {
        SERVED.into_iter().try_for_each(|(transport, port)| self.cluster.serve(place, transport, [port]))
    }

    /// Puts a policy in force on all nodes.
    ///
    /// # Errors
    /// If an agent does not settle.
    pub fn policy(&self, name: &str, namespace: &str, spec: &str) -> Result<()> {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: \"{namespace}\"}}, \
             spec: {spec}}}\n"
        );
        self.cluster.run().put_manifest(&format!("90-{name}.yaml"), &text)?;
        self.sync()
    }

    /// Writes a pod's object anew: its labels, and what else its status (`phase: Running`) and metadata say.
    ///
    /// # Errors
    /// If an agent does not settle.
    pub fn change_pod(&self, key: &str, labels: &str, (status, metadata): (&str, &str)) -> Result<()> {
        let place = self.cluster.pod(key)?;
        let text = pod(key, labels, place.node(), (self.cluster.addresses(key)?, status, metadata));
        self.cluster.run().put_manifest(&file(key), &text)?;
        self.sync()
    }

    /// Another manifest.
    ///
    /// # Errors
    /// If an agent does not settle.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        self.cluster.run().put_manifest(name, text)?;
        self.sync()
    }

    /// Waits until all agents have everything in force.
    ///
    /// # Errors
    /// If one does not settle.
    pub fn sync(&self) -> Result<()> {
        self.agents.iter().try_for_each(|(_, agent)| agent.sync().map(drop))
    }

    /// The question of a place to another.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn probe(&self, from: &str, to: &str, (transport, port): (Transport, u16), ipv6: bool) -> Result<Probe> {
        Probe::new(&self.cluster, from, (to, transport, port), ipv6)
    }

    /// Fails unless an exchange completes, in both families.
    ///
    /// # Errors
    /// If it does not.
    pub fn reaches(&self, from: &str, to: &str, how: (Transport, u16)) -> Result<()> {
        FAMILIES.into_iter().try_for_each(|ipv6| {
            let probe = self.probe(from, to, how, ipv6)?;
            let outcome = self.cluster.probe(&probe, PATIENCE)?;
            ensure!(outcome == Outcome::Answered, "{probe}: {outcome}");
            Ok(())
        })
    }

    /// Fails unless nothing comes back and nothing arrives, in both families.
    ///
    /// # Errors
    /// If something does.
    pub fn is_denied(&self, from: &str, to: &str, how: (Transport, u16)) -> Result<()> {
        let mut arrivals = self.cluster.watch(to)?;
        for ipv6 in FAMILIES {
            let probe = self.probe(from, to, how, ipv6)?;
            let outcome = self.cluster.probe(&probe, SILENCE)?;
            ensure!(outcome == Outcome::Silence, "{probe}: {outcome}");
        }
        ensure!(arrivals.at_port(how.0, how.1)? == 0, "{from} -> {to}: it arrived");
        Ok(())
    }

    /// An open connection.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self, from: &str, to: &str, how: (Transport, u16), ipv6: bool) -> Result<Connection> {
        Connection::open(&self.cluster, &self.probe(from, to, how, ipv6)?)
    }

    /// A datagram socket of a place that gives up in time.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn udp(&self, place: &str, port: u16, ipv6: bool) -> Result<UdpSocket> {
        let at = (self.cluster.address(place, ipv6)?, port);
        let socket = self.cluster.namespace(place)?.enter(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(socket)
    }

    /// Forgets what a place knows of its neighbours.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forget_neighbours(&self, place: &str) -> Result<()> {
        let namespace = self.cluster.namespace(place)?;
        self.cluster.block_on(Links::open(namespace, self.cluster.runtime().handle())?.forget_neighbours())
    }

    /// How many packets the agents have counted for a pod, direction and reason.
    ///
    /// # Errors
    /// If an agent does not answer.
    pub fn counted(&self, pod: &str, direction: &str, reason: &str) -> Result<u64> {
        let mut sum = 0;
        for (_, agent) in &self.agents {
            let wanted = agent.counters()?.into_iter();
            sum += wanted
                .filter(|it| (it.pod.as_str(), it.direction.as_str(), it.reason.as_str()) == (pod, direction, reason))
                .map(|it| it.packets)
                .sum::<u64>();
        }
        Ok(sum)
    }

    /// Makes a pod anew: another namespace and interface under the same addresses.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn recreate(&mut self, key: &str) -> Result<()> {
        let node = self.cluster.pod(key)?.node().to_owned();
        let addresses: Vec<IpAddr> = self.cluster.addresses(key)?.to_vec();
        self.cluster.remove_pod(key)?;
        self.cluster.add_pod(&node, &PodAddresses::new(key, &addresses))?;
        // Its MAC address is another; a CNI plugin would tell everybody.
        let places: Vec<String> = self.cluster.places().map(str::to_owned).collect();
        places.iter().try_for_each(|place| self.forget_neighbours(place))?;
        self.serve(key)
    }

    /// Makes a pod's sandbox that the cluster knows nothing of yet, and returns when the node's agent has taken care of its
    /// interface: what a CNI plugin's answer says before the first container starts.
    ///
    /// # Errors
    /// If the sandbox cannot be made, or the agent does not take care of it.
    pub fn sandbox(&mut self, key: &str, node: &str, host: u8) -> Result<()> {
        let addresses = address_pair(&self.cluster, node, host)?;
        let interface = self.cluster.add_pod(node, &PodAddresses::new(key, &addresses))?.interface().to_owned();
        let (_, agent) = self.agents.iter().find(|(name, _)| *name == node).context("an agent of the node")?;
        let deadline = Instant::now() + PATIENCE;
        while !is_listed(&agent.status()?, &interface) {
            ensure!(Instant::now() < deadline, "the agent takes no care of {interface}");
        }
        Ok(())
    }
}

/// True if the status has the interface with its hooks.
fn is_listed(status: &Value, interface: &str) -> bool {
    let endpoints = status.get("endpoints").and_then(Value::as_array).into_iter().flatten();
    let field = |endpoint: &Value, name| endpoint.get(name).and_then(Value::as_str).map(str::to_owned);
    endpoints.into_iter().any(|endpoint| {
        field(endpoint, "interface").as_deref() == Some(interface)
            && field(endpoint, "state").is_some_and(|state| state != "failed")
    })
}

fn agent(cluster: &Cluster, node: &str) -> Result<Agent> {
    Agent::start(cluster, &Options { node: Some(node.to_owned()), ..Options::default() })
}

/// The addresses of a pod of a node, by its last part.
fn address_pair(cluster: &Cluster, node: &str, host: u8) -> Result<[IpAddr; 2]> {
    let plan: Plan = cluster.node(node).context("a node of the stage")?.plan();
    Ok(plan.pod(host))
}

fn file(key: &str) -> String {
    format!("10-{}.yaml", key.replace('/', "-"))
}

fn namespaces() -> String {
    let one = |name| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: \"{name}\", labels: {{ns: \"{name}\"}}}}}}\n")
    };
    ["x", "y"].map(one).join("---\n")
}

/// A pod's object.
fn pod(key: &str, labels: &str, node: &str, (addresses, status, metadata): (&[IpAddr], &str, &str)) -> String {
    let (namespace, name) = key.split_once('/').unwrap_or(("default", key));
    let ips: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    let ips = ips.join(", ");
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{namespace: \"{namespace}\", name: {name}, labels: {labels}{metadata}}}, \
         spec: {{nodeName: {node}, containers: [{{name: server, image: server}}]}}, status: {{{status}, podIPs: [{ips}]}}}}\n"
    )
}
