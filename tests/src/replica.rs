//! The second judge: what the agents and their BPF programs would do, without a kernel. Raw objects -> `source::decode` ->
//! `ClusterState` -> compiler -> tables -> bytes of real packets -> `from_pod` and `to_pod` of the pods at both ends.
//!
//! One [`node::Agent`] for each Node object: it compiles for its own pods only. As a [`Judge`] every probe meets empty flow
//! tables; [`Replica::carry`] leaves them as they are. A packet that passes or is dropped for a reason that is not about
//! policy is an error: the harness has built it wrongly, and no verdict may rest on that.

pub mod flows;
pub mod node;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use netpol_common::abi::{Config, Reason};
use netpol_common::classify::Frame;

use self::node::{Agent, LocalPod};
use crate::frame::{Link, Packet, frame};
use crate::judge::{Change, Judge, Probe, Side, Verdict, kind_of, name_of};

/// MAC address of the bridge, which is every pod's gateway.
const BRIDGE_MAC: [u8; 6] = [0x0a, 0x58, 0, 0, 0, 1];

/// The judge: an agent on every node.
#[derive(Default)]
pub struct Replica {
    agents: BTreeMap<String, Agent>,
    /// What was told so far, for a node that comes later.
    told: Vec<Change>,
}

/// What the hooks at both ends of a connection said to one of its packets. `None`: no pod with an interface of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// At the connection's source: `from_pod` for what the opener sends, `to_pod` for the rest.
    pub at_source: Option<Reason>,
    /// At the connection's destination.
    pub at_destination: Option<Reason>,
}

impl Replica {
    /// Shows a packet of a connection to the hook at each end, whatever the other end said to it.
    ///
    /// # Errors
    /// A reason that has nothing to do with policy.
    pub fn carry(&self, probe: &Probe, packet: Packet) -> anyhow::Result<Passage> {
        let (sender, receiver) =
            if packet.is_forward() { (&probe.source, &probe.destination) } else { (&probe.destination, &probe.source) };
        let sent = self.local(sender).map(|(agent, pod)| send(agent, pod, probe, packet)).transpose()?;
        let received =
            self.local(receiver).map(|(agent, pod)| receive(agent, pod, sender, (probe, packet))).transpose()?;
        let (at_source, at_destination) = if packet.is_forward() { (sent, received) } else { (received, sent) };
        Ok(Passage { at_source, at_destination })
    }

    /// The agent that has the pod, and the pod's interface. None if the side is no pod that has one of its own.
    fn local(&self, side: &Side) -> Option<(&Agent, &LocalPod)> {
        let pod = side.pod.as_ref()?;
        self.agents.values().find_map(|agent| Some((agent, agent.local(pod)?)))
    }
}

fn send(agent: &Agent, pod: &LocalPod, probe: &Probe, packet: Packet) -> anyhow::Result<Reason> {
    let link = Link { source: pod.mac(), destination: BRIDGE_MAC };
    let bytes = frame(probe, packet, &link).context("no packet across families")?;
    let beside = Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false };
    about_policy(agent.tables().from_pod(&bytes, &beside, &pod.endpoint, pod.word).reason)
}

fn receive(agent: &Agent, pod: &LocalPod, sender: &Side, (probe, packet): (&Probe, Packet)) -> anyhow::Result<Reason> {
    let link = Link { source: BRIDGE_MAC, destination: pod.mac() };
    let bytes = frame(probe, packet, &link).context("no packet across families")?;
    let local_sender = sender.pod.as_ref().and_then(|pod| agent.local(pod));
    let beside = Frame {
        // What comes from another node or outside came in through an interface; so did what a local pod sent.
        from_host_stack: local_sender.is_none() && agent.owns(sender.address),
        // `from_pod` has stamped what a local pod sent.
        mark: if local_sender.is_some() { agent.mark_of_judged() } else { 0 },
        hash: 0,
        vlan_tagged: false,
    };
    about_policy(agent.tables().to_pod(&bytes, &beside, &pod.endpoint, pod.word).reason)
}

impl Judge for Replica {
    fn change(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        let (nodes, others): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|change| is_of_node(change));
        for change in nodes {
            let Change::Apply(object) = change else { continue };
            let addresses = object.pointer("/status/addresses").and_then(serde_json::Value::as_array);
            let addresses: Vec<IpAddr> = addresses
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.get("address")?.as_str()?.parse().ok())
                .collect();
            ensure!(!addresses.is_empty(), "a node without addresses: {object}");
            let (_, name) = name_of(object);
            let mut agent = Agent::new(&name, &addresses, Config::for_hz(250));
            agent.change(&self.told)?;
            self.agents.insert(name, agent);
        }
        let others: Vec<Change> = others.into_iter().cloned().collect();
        for agent in self.agents.values_mut() {
            agent.change(&others)?;
        }
        self.told.extend(others);
        Ok(())
    }

    fn verdict(&mut self, probe: &Probe) -> anyhow::Result<Verdict> {
        self.agents.values_mut().for_each(Agent::forget_flows);
        if probe.source.address == probe.destination.address {
            return Ok(Verdict { ingress: true, egress: true }); // Never leaves the pod.
        }
        let passage = self.carry(probe, Packet::Opening).with_context(|| format!("the hooks on {probe}"))?;
        let passes = |reason: Option<Reason>| reason.is_none_or(|reason| !reason.is_drop());
        Ok(Verdict { ingress: passes(passage.at_destination), egress: passes(passage.at_source) })
    }
}

fn is_of_node(change: &Change) -> bool {
    match change {
        Change::Apply(object) => kind_of(object) == "Node",
        Change::Delete { kind, .. } => kind == "Node",
    }
}

/// The reason, if it is one that policy and the flows that it allowed give.
fn about_policy(reason: Reason) -> anyhow::Result<Reason> {
    let about_policy = [
        Reason::AllowedByPolicy,
        Reason::NotIsolated,
        Reason::FromOwnNode,
        Reason::ToOwnNode,
        Reason::Established,
        Reason::Reply,
        Reason::PolicyDenied,
        Reason::FlowRevoked,
    ];
    ensure!(about_policy.contains(&reason), "decided by {reason}, which is not about policy");
    Ok(reason)
}
