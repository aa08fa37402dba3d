//! What the agent's socket answers, as types that both ends share: the agent writes what `netpol` reads.
//!
//! Fields are only ever added, and a missing one has a default, so that agent and client may differ in version. Names are
//! camelCase, as in Kubernetes' own objects. Values only: how they come about is in `report`, how they look in `client`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// The agent, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Name of the node; empty if the agent was not told.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Everything taken in is enforced, and every address was found.
    pub settled: bool,
    /// Grows with every change that was taken in.
    pub generation: u64,
    /// The generation that the maps were last brought to.
    pub enforced: u64,
    /// Addresses of pods that are still being looked for.
    pub unresolved: Vec<IpAddr>,
    /// Where the objects come from.
    pub source: SourceReport,
    /// Pods of this node by state.
    pub pods: PodCounts,
    /// NetworkPolicies known.
    pub policies: usize,
    /// Problems by severity.
    pub problem_counts: ProblemCounts,
    /// The pods of this node.
    pub endpoints: Vec<EndpointReport>,
    /// Devices that lead out of the node.
    pub uplinks: Vec<UplinkReport>,
    /// What drops packets that nobody judged.
    pub backstop: BackstopReport,
    /// The CNI plugin.
    pub cni: CniReport,
    /// Everything that is not enforced as written.
    pub problems: Vec<Problem>,
    /// What became of events about drops.
    pub events: EventCounts,
}

/// Where the objects come from, and how fresh they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceReport {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    /// The directory, or the API server's address.
    pub from: String,
    /// Everything was read whole once.
    pub synced: bool,
    /// How each kind of object fares; empty where they are read together.
    pub kinds: Vec<KindReport>,
}

/// How fresh the objects of one kind are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KindReport {
    /// `NetworkPolicy`, `Pod`, ...
    pub kind: String,
    /// They were listed whole once.
    pub synced: bool,
    /// Seconds since the last word about them, if that is too long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_for_seconds: Option<u64>,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is being done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doing: Option<String>,
}

/// Pods of a node by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCounts {
    /// Policy is in force.
    pub enforced: usize,
    /// Their interface is held until the pod is known.
    pub pending: usize,
    /// Something could not be attached or written.
    pub failed: usize,
}

/// Problems by severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProblemCounts {
    /// Something is not enforced as written.
    pub refused: usize,
    /// Worth knowing.
    pub notes: usize,
}

/// A pod interface of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointReport {
    /// `namespace/name`, or empty while nobody knows.
    pub pod: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Slot in the maps.
    pub slot: u16,
    /// Interface of the host's end.
    pub interface: String,
    /// `enforced`, `pending` or `failed`.
    pub state: String,
    /// What isolates it for ingress.
    pub ingress: Isolation,
    /// What isolates it for egress.
    pub egress: Isolation,
    /// Grows when what is allowed changes.
    pub revision: u32,
    /// When its entry last changed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// What isolates a pod in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Isolation {
    /// Only what policies allow gets through.
    pub isolated: bool,
    /// Names of the policies, which are in the pod's namespace; isolated by none of them, everything is denied.
    pub by: Vec<String>,
    /// Number in the maps.
    pub policy_id: u16,
}

/// A device that leads out of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UplinkReport {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// `attached` or `failed`.
    pub state: String,
}

/// The nftables table that drops packets which leave unjudged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackstopReport {
    /// `in-force` or `missing`.
    pub state: String,
    /// What it dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<serde_json::Value>,
    /// Why nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The CNI plugin on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniReport {
    /// `off`, `installed`, `waiting` (there is no other CNI configuration yet) or `failed`; empty if not known.
    pub state: String,
    /// More about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What became of events about drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventCounts {
    /// Lost in the kernel, if that is known.
    pub lost: Option<u64>,
    /// Lost as nobody read them in time.
    pub unread: u64,
    /// Not understood.
    pub unknown: u64,
    /// Flows that observers could have had.
    pub seen: u64,
    /// Of these, what observers missed as they did not keep up, added over all of them.
    pub missed: u64,
    /// Not told as the pod had told its share.
    pub refused: u64,
}

/// The pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointList {
    /// Name of the node.
    pub node: String,
    /// The pods.
    pub endpoints: Vec<EndpointReport>,
}

/// All NetworkPolicies that the agent knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyList {
    /// Name of the node.
    pub node: String,
    /// See [`Status::settled`].
    pub settled: bool,
    /// See [`Status::generation`].
    pub generation: u64,
    /// See [`Status::enforced`].
    pub enforced: u64,
    /// See [`Status::unresolved`].
    pub unresolved: Vec<IpAddr>,
    /// Where the policies come from.
    pub source: SourceReport,
    /// The policies.
    pub policies: Vec<PolicySummary>,
}

/// A NetworkPolicy in brief.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySummary {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `Ingress`, `Egress`: the directions it isolates in.
    pub policy_types: Vec<String>,
    /// Pods of this node that it selects.
    pub pods: Vec<SelectedPod>,
    /// Which version of the object it was read from; none in manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionReport>,
    /// What of it is not enforced as written.
    pub problems: Vec<Problem>,
}

/// Version of an object, as the API server counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VersionReport {
    /// metadata.uid.
    pub uid: String,
    /// metadata.generation.
    pub generation: i64,
}

/// A pod that a policy selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SelectedPod {
    /// Name; the namespace is the policy's.
    pub name: String,
    /// As [`EndpointReport::state`].
    pub state: String,
}

/// One NetworkPolicy, or the names that it may have been meant to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyAnswer {
    /// Name of the node.
    pub node: String,
    /// The policy, if the agent knows it.
    pub policy: Option<PolicyReport>,
    /// `namespace/name` of policies with a name like that.
    pub similar: Vec<String>,
}

/// A NetworkPolicy as it is enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyReport {
    /// What a list has of it.
    #[serde(flatten)]
    pub summary: PolicySummary,
    /// podSelector in the notation of `kubectl get -l`.
    pub selects: String,
    /// Rules for ingress; none if it does not isolate for ingress.
    pub ingress: Option<Vec<RuleReport>>,
    /// The same for egress.
    pub egress: Option<Vec<RuleReport>>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleReport {
    /// Who; none: everyone. An empty list (every item was unusable) is nobody.
    pub peers: Option<Vec<PeerReport>>,
    /// On which ports, as `TCP 8080`; none: everything, ICMP too. An empty list is nothing.
    pub ports: Option<Vec<String>>,
}

/// One peer of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerReport {
    /// In words.
    pub who: String,
    /// Pods in the cluster that match; none for an ipBlock, which is about addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<usize>,
    /// Addresses of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<usize>,
}

/// An agent that has removed everything from its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Retired {
    /// True if nothing is left.
    pub retired: bool,
}
