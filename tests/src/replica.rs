//! The second judge: what the agents and their BPF programs would do, without a kernel. Raw objects -> `source::decode` ->
//! `ClusterState` -> compiler -> tables -> bytes of a real first packet -> `from_pod` of the source and `to_pod` of the destination.
//!
//! One [`node::Agent`] for each Node object: it compiles for its own pods only. Every probe meets empty flow tables, so
//! verdicts are those of new connections. A packet that passes or is dropped for a reason that is not about policy is an
//! error: the harness has built it wrongly, and no verdict may rest on that.

pub mod node;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use netpol_common::abi::{Config, Reason};
use netpol_common::classify::Frame;

use self::node::{Agent, LocalPod};
use crate::frame::{Link, first_packet};
use crate::judge::{Change, Judge, Probe, Side, Verdict, kind_of, name_of};

/// MAC address of the bridge, which is every pod's gateway.
const BRIDGE_MAC: [u8; 6] = [0x0a, 0x58, 0, 0, 0, 1];
/// Source port of every probe.
const SOURCE_PORT: u16 = 40_000;

/// The judge: an agent on every node.
#[derive(Default)]
pub struct Replica {
    agents: BTreeMap<String, Agent>,
    /// What was told so far, for a node that comes later.
    told: Vec<Change>,
}

impl Replica {
    /// The agent that has the pod, and the pod's interface. None if the side is no pod that has one of its own.
    fn local(&self, side: &Side) -> Option<(&Agent, &LocalPod)> {
        let pod = side.pod.as_ref()?;
        self.agents.values().find_map(|agent| Some((agent, agent.local(pod)?)))
    }

    fn egress(&self, probe: &Probe) -> anyhow::Result<bool> {
        let Some((agent, pod)) = self.local(&probe.source) else { return Ok(true) };
        let link = Link { source: pod.mac(), destination: BRIDGE_MAC, source_port: SOURCE_PORT };
        let packet = first_packet(probe, &link).context("no packet across families")?;
        let frame = Frame { from_host_stack: false, mark: 0, vlan_tagged: false };
        decided(agent.tables().from_pod(&packet, &frame, &pod.endpoint, pod.word).0)
    }

    fn ingress(&self, probe: &Probe) -> anyhow::Result<bool> {
        let Some((agent, pod)) = self.local(&probe.destination) else { return Ok(true) };
        let link = Link { source: BRIDGE_MAC, destination: pod.mac(), source_port: SOURCE_PORT };
        let packet = first_packet(probe, &link).context("no packet across families")?;
        let sender = probe.source.pod.as_ref().and_then(|pod| agent.local(pod));
        let frame = Frame {
            // What comes from another node or outside came in through an interface; so did what a local pod sent.
            from_host_stack: sender.is_none() && agent.owns(probe.source.address),
            // `from_pod` has stamped what a local pod sent.
            mark: sender.map_or(0, |sender| agent.mark_of(sender)),
            vlan_tagged: false,
        };
        decided(agent.tables().to_pod(&packet, &frame, &pod.endpoint, pod.word).0)
    }
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
        let describe = || format!("the hooks on {probe}");
        Ok(Verdict {
            egress: self.egress(probe).with_context(describe)?,
            ingress: self.ingress(probe).with_context(describe)?,
        })
    }
}

fn is_of_node(change: &Change) -> bool {
    match change {
        Change::Apply(object) => kind_of(object) == "Node",
        Change::Delete { kind, .. } => kind == "Node",
    }
}

/// Whether a reason lets a new connection through; an error if it is not a reason that policy gives.
fn decided(reason: Reason) -> anyhow::Result<bool> {
    let by_policy =
        [Reason::AllowedByPolicy, Reason::NotIsolated, Reason::FromOwnNode, Reason::ToOwnNode, Reason::PolicyDenied];
    ensure!(by_policy.contains(&reason), "decided by {reason}, which is not about policy");
    Ok(!reason.is_drop())
}
