//! The first install on a node whose pods are at work: nothing that policy allows may break, and what it does not allow ends.
//!
//! In: pods that were there before the agent, with no program of ours. Out: their hooks in place with every connection known
//! by its opener, before any policy is in force. It goes in three steps:
//! - The hooks are attached while the pod's slot isolates nothing: packets pass and flows are followed, so that whatever
//!   opens from here on is known as it is.
//! - What was open before is told by the kernel's conntrack, and added to the flow tables; where a packet in mid-stream made
//!   the programs take an answer for the opening, it is corrected.
//! - The slot's policy word is written, by the ordinary steps, one pod after the other: each packet from then on has its
//!   flow judged again, by the tuple of whoever opened it.

use std::collections::BTreeSet;

use netpol_common::abi::{Direction, Endpoint, PolicyWord};

use super::Enforcer;
use crate::datapath::attach::Hooks;
use crate::datapath::conntrack;
use crate::datapath::flows::{FlowTables, Planted};
use crate::endpoints::Local;
use crate::node::view::NodeView;
use crate::problem::{Problem, Severity};
use crate::services;

/// What the first install needs to know.
pub(super) struct FirstInstall {
    flows: FlowTables,
    /// Interfaces from before the agent.
    existing: BTreeSet<u32>,
    problem: Option<Problem>,
}

impl FirstInstall {
    pub(super) fn new(flows: FlowTables, hooks: &Hooks) -> Self {
        // Without the list every interface is held like a new one.
        let existing = hooks.interfaces().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell which interfaces were there before");
            BTreeSet::new()
        });
        Self { flows, existing, problem: None }
    }

    pub(super) const fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }
}

impl Enforcer {
    /// Attaches pods from before the agent without any policy, and makes their open connections known. Policy follows with the
    /// next step. At the start only.
    pub(super) fn observe(&mut self, view: &NodeView) {
        if self.started || !self.others.is_empty() {
            return;
        }
        let new: Vec<Local> = self.endpoints.iter().filter(|local| self.is_from_before(local)).cloned().collect();
        // What passes between two pods must find the way open before the first of them defers anything.
        let mut devices = self.hooked(view);
        devices.extend(new.iter().map(|local| local.ifindex));
        if !new.is_empty() {
            self.let_out(devices);
        }
        for local in &new {
            self.put(local, local.endpoint);
        }
        // An agent that ended on the way has attached some already, and has not come to write any policy.
        let interrupted = self.applier.installed().words.is_empty() && !self.live.is_empty();
        if !new.is_empty() || interrupted {
            self.seed(view);
        }
    }

    /// True for a pod's interface that was there before the agent, where nothing of ours runs, and whose slot isolates nothing.
    fn is_from_before(&self, local: &Local) -> bool {
        let is_open = |word: PolicyWord| !Direction::ALL.iter().any(|&direction| word.is_isolated(direction));
        local.pod.is_some()
            && self.first.existing.contains(&local.ifindex)
            && !self.attached.contains_key(&local.ifindex)
            && !self.live.contains(&local.ifindex)
            && self.store.policy_word(local.slot).is_some_and(is_open)
    }

    /// Makes known what conntrack says of pods that no policy isolates yet.
    fn seed(&mut self, view: &NodeView) {
        let open = |local: &&Local| self.attached.contains_key(&local.ifindex) || self.live.contains(&local.ifindex);
        let pods: Vec<(Endpoint, PolicyWord)> = self
            .endpoints
            .iter()
            .filter(open)
            .filter_map(|local| Some((local.endpoint, self.store.policy_word(local.slot)?)))
            .collect();
        match self.plant(view, &pods) {
            Ok((planted, listed)) => {
                let Planted { new, corrected, known, refused } = planted;
                tracing::info!(pods = pods.len(), new, corrected, known, refused, "open connections taken over");
                self.first.problem = lacks(&listed, refused);
            }
            Err(error) => self.first.problem = Some(note(error.to_string())),
        }
    }

    fn plant(
        &mut self,
        view: &NodeView,
        pods: &[(Endpoint, PolicyWord)],
    ) -> anyhow::Result<(Planted, conntrack::Listed)> {
        let roles = services::address_roles(self.compiler.state(), &view.own_addresses);
        let node_ports = services::node_ports(self.compiler.state());
        let mut replay = self.first.flows.replay(&roles, &node_ports)?;
        replay.set_pods(pods.iter().copied());
        let listed = conntrack::list(|connection| replay.concerns(connection))?;
        listed.connections.iter().for_each(|connection| replay.open(connection));
        Ok((self.first.flows.plant(&replay.seeds())?, listed))
    }
}

fn lacks(listed: &conntrack::Listed, refused: u64) -> Option<Problem> {
    let mut missing = Vec::new();
    if !listed.complete {
        missing.push("the kernel's list of connections is incomplete".to_owned());
    }
    if listed.unreadable > 0 {
        missing.push(format!("{} of its connections cannot be read", listed.unreadable));
    }
    if refused > 0 {
        missing.push(format!("{refused} connections are more than their pods may have"));
    }
    (!missing.is_empty()).then(|| note(missing.join("; ")))
}

fn note(message: String) -> Problem {
    Problem {
        severity: Severity::Note,
        origin: "node".to_owned(),
        object: "connections opened before the agent".to_owned(),
        field: String::new(),
        message,
        effect: "those that are not known are taken up in mid-stream, in the direction of their next packet".to_owned(),
    }
}
