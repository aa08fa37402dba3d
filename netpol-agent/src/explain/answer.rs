//! What `explain` answers, as types that agent and client share.
//!
//! Fields are only ever added, and a missing one has a default. Values only: how they come about is in `report`.

use serde::{Deserialize, Serialize};

use super::change::Hint;

/// The answer to a question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// Each flow that was meant: one for each backend, port and address family.
    pub flows: Vec<FlowReport>,
    /// What is to be known about the question as a whole.
    pub notes: Vec<String>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswerable: Option<String>,
    /// What may have been meant instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub similar: Vec<String>,
}

/// One flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowReport {
    /// Who opens it.
    pub source: EndReport,
    /// To whom.
    pub destination: EndReport,
    /// `TCP 8080`, or `ICMP`.
    pub traffic: String,
    /// Both sides let it through.
    pub allowed: bool,
    /// What the source's policies say.
    pub egress: SideReport,
    /// What the destination's policies say.
    pub ingress: SideReport,
    /// What is special about it.
    pub notes: Vec<String>,
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndReport {
    /// In words.
    pub name: String,
    /// Address in the packet where it is judged.
    pub address: String,
    /// The pod, if one has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The service that leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The node that the pod runs on, or that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// What one side says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Isolated, and a rule lets it through.
    Allowed,
    /// Isolated, and no rule does.
    Denied,
    /// No policy isolates it in this direction.
    #[default]
    NotIsolated,
    /// No policy is asked; the reason says why.
    Exempt,
}

/// One side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SideReport {
    /// What it says.
    pub verdict: Verdict,
    /// Why, in a clause.
    pub reason: String,
    /// The policies that isolate the pod in this direction.
    pub isolated_by: Vec<String>,
    /// The rules that let it through.
    pub allowed_by: Vec<String>,
    /// The rules that came nearest.
    pub nearest: Vec<Miss>,
    /// Changes that would let it through, the smallest first: any one of them.
    pub hints: Vec<Hint>,
    /// True if this is what the agent of the pod's node enforces, false if it was compiled only to ask.
    pub enforced: bool,
    /// How the compiler and the naive judge differ: never, unless one of them is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<String>,
}

/// A rule that did not let it through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Miss {
    /// `NetworkPolicy shop/api ingress[0]`.
    pub rule: String,
    /// It is about this peer.
    pub peer_matches: bool,
    /// It takes this port.
    pub port_matches: bool,
    /// What does not hold.
    pub because: Vec<String>,
}

impl Explanation {
    /// Whether every flow passes; false where there is none.
    #[must_use]
    pub fn allowed(&self) -> bool {
        !self.flows.is_empty() && self.flows.iter().all(|flow| flow.allowed)
    }

    /// Every disagreement.
    pub fn disagreements(&self) -> impl Iterator<Item = &str> {
        self.flows.iter().flat_map(|flow| [&flow.egress, &flow.ingress]).filter_map(|side| side.disagreement.as_deref())
    }
}
