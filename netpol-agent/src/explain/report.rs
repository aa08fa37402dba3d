//! Flows -> the answer: both judges are asked about each side, compared, and put into words.

use netpol_common::abi::Direction;

use super::naive::{self, Judgement};
use super::question::Question;
use super::{
    Compiled, End, EndReport, Explanation, Facts, Flow, FlowReport, Opinion, Side, SideReport, Unanswerable, Verdict,
    change, resolve, words,
};
use crate::cluster::model::{Peer, Peers};
use crate::policy::RuleReference;

/// Rules that are shown as nearest.
const NEAREST: usize = 3;

/// Answers a question.
#[must_use]
pub fn explain(question: &Question, facts: &Facts<'_>, compiled: &impl Compiled) -> Explanation {
    match resolve(question, facts) {
        Ok((flows, notes)) => Explanation {
            flows: flows.iter().map(|flow| FlowReport::of(flow, facts, compiled)).collect(),
            notes,
            ..Explanation::default()
        },
        Err(Unanswerable { message, similar }) => {
            Explanation { unanswerable: Some(message), similar, ..Explanation::default() }
        }
    }
}

/// Judges a side by the objects, and says how the compiler differs, if it does.
#[must_use]
pub fn judge(side: Side<'_>, facts: &Facts<'_>, compiled: &impl Compiled) -> (Judgement, Option<String>) {
    let judgement = naive::judge(facts, side);
    let disagreement = disagreement(&judgement, compiled.opinion(side).as_ref());
    (judgement, disagreement)
}

impl FlowReport {
    /// Explains one flow.
    #[must_use]
    pub fn of(flow: &Flow, facts: &Facts<'_>, compiled: &impl Compiled) -> Self {
        let [ingress, egress] = [Direction::Ingress, Direction::Egress]
            .map(|direction| SideReport::of(flow.side(direction), facts, compiled));
        Self {
            source: EndReport::of(&flow.source),
            destination: EndReport::of(&flow.destination),
            traffic: flow.traffic.to_string(),
            allowed: ingress.verdict != Verdict::Denied && egress.verdict != Verdict::Denied,
            notes: notes(flow, facts).into_iter().chain(blocks_of_service(flow, facts, &egress)).collect(),
            egress,
            ingress,
        }
    }
}

impl EndReport {
    fn of(end: &End) -> Self {
        Self {
            name: end.to_string(),
            address: end.address.to_string(),
            pod: end.pod.as_ref().map(ToString::to_string),
            service: end.service.as_ref().map(ToString::to_string),
            node: end.node.as_ref().map(ToString::to_string),
        }
    }
}

impl SideReport {
    /// Explains one side.
    #[must_use]
    pub fn of(side: Side<'_>, facts: &Facts<'_>, compiled: &impl Compiled) -> Self {
        let (judgement, disagreement) = judge(side, facts, compiled);
        let enforced = compiled.opinion(side).is_some_and(|opinion| opinion.enforced);
        let names = |policies: &[crate::cluster::model::PolicyKey]| policies.iter().map(ToString::to_string).collect();
        let report = match &judgement {
            Judgement::Exempt(exempt) => {
                Self { verdict: Verdict::Exempt, reason: words::exempt(*exempt, side), ..Self::default() }
            }
            Judgement::NotIsolated => {
                let reason = format!("no policy isolates {} for {}", side.subject, side.direction.name());
                Self { verdict: Verdict::NotIsolated, reason, ..Self::default() }
            }
            Judgement::Allowed { isolated_by, by } => Self {
                verdict: Verdict::Allowed,
                reason: format!("{} lets it through", first(by)),
                isolated_by: names(isolated_by),
                allowed_by: by.iter().map(ToString::to_string).collect(),
                ..Self::default()
            },
            Judgement::Denied { isolated_by, misses } => Self {
                verdict: Verdict::Denied,
                reason: match misses.len() {
                    0 => "the policies that isolate it have no rule for this direction (default deny)".to_owned(),
                    1 => "the only rule does not let it through".to_owned(),
                    rules => format!("none of {rules} rules lets it through"),
                },
                isolated_by: names(isolated_by),
                nearest: misses.iter().take(NEAREST).map(|miss| words::miss(miss, side)).collect(),
                hints: change::hints(facts, side, isolated_by, misses),
                ..Self::default()
            },
        };
        Self { enforced, disagreement, ..report }
    }
}

fn first(rules: &[RuleReference]) -> String {
    rules.first().map(ToString::to_string).unwrap_or_default()
}

/// How the two judges differ. No policy is asked where a side is exempt, so the compiler's word means nothing there.
fn disagreement(naive: &Judgement, compiled: Option<&Opinion>) -> Option<String> {
    let compiled = compiled?;
    let (isolated_by, by) = match naive {
        Judgement::Exempt(_) => return None,
        Judgement::NotIsolated => (None, &[][..]),
        Judgement::Allowed { isolated_by, by } => (Some(isolated_by), by.as_slice()),
        Judgement::Denied { isolated_by, .. } => (Some(isolated_by), &[][..]),
    };
    let where_ = if compiled.enforced { "the maps of this node" } else { "the compiler" };
    if compiled.passes != naive.passes() {
        let word = |passes: bool| if passes { "lets it through" } else { "denies it" };
        return Some(format!(
            "read off the objects, policy {}; {where_} {}: what does not fit into the maps, or is not applied yet, is among \
             the problems of `netpol status`; else this is a fault of netpol, please report it",
            word(naive.passes()),
            word(compiled.passes)
        ));
    }
    if compiled.isolated_by.as_ref() != isolated_by || compiled.allowed_by != by {
        return Some(format!(
            "the verdict is the same, but {where_} names other policies or rules ({:?}, {:?}): please report it",
            compiled.isolated_by.as_ref().map(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>()),
            compiled.allowed_by.iter().map(ToString::to_string).collect::<Vec<_>>()
        ));
    }
    None
}

fn notes(flow: &Flow, facts: &Facts<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for end in [&flow.source, &flow.destination] {
        if facts.cluster.claimants(end.address).count() > 1 {
            notes.push(format!("{} is claimed by more than one live pod: see `netpol status`", end.address));
        }
    }
    let is_remote = |end: &End| end.pod.is_none() && end.node.is_some();
    if is_remote(&flow.source) {
        notes.push(
            "with Flannel a process of another node comes from the first address of that node's pods, not from the node's \
             own: ask about that address"
                .to_owned(),
        );
    }
    notes
}

/// Blocks that hold the address of the service and not that of the pod behind it: whoever wrote them meant the service.
fn blocks_of_service(flow: &Flow, facts: &Facts<'_>, egress: &SideReport) -> Vec<String> {
    let Some(key) = flow.destination.service.as_ref().filter(|_| egress.verdict == Verdict::Denied) else {
        return Vec::new();
    };
    let service = facts.cluster.services().find(|service| service.key == *key);
    let addresses = service.map(|service| service.addresses.as_slice()).unwrap_or_default();
    let mut notes = Vec::new();
    for policy in facts.cluster.policies().filter(|policy| egress.isolated_by.contains(&policy.key.to_string())) {
        let peers = policy.egress.iter().flatten().filter_map(|rule| match &rule.peers {
            Peers::AnyOf(peers) => Some(peers),
            Peers::Everyone => None,
        });
        let blocks = peers.flatten().filter_map(|peer| match peer {
            Peer::IpBlock(block) => Some(block.cidr),
            Peer::Pods { .. } => None,
        });
        for block in blocks.filter(|block| !block.contains(&flow.destination.address)) {
            if let Some(address) = addresses.iter().find(|address| block.contains(*address)) {
                notes.push(format!(
                    "ipBlock {block} of {} holds {address}, the address of svc/{key}: policy is judged on the pods behind a \
                     service, which it does not hold; select them, or name their addresses",
                    policy.key
                ));
            }
        }
    }
    notes
}
