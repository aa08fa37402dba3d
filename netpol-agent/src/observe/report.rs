//! State of the agent's parts -> the answers in [`super::answer`]. Pure: the pipeline hands in what it holds.
//!
//! What is said of a policy is what is in force, not what was written: a peer that could not be used is missing here too,
//! and the problem that says so stands beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_common::abi::{Direction, Endpoint, EndpointFlags, PolicyWord};

use super::answer::{
    EndpointReport, Isolation, PeerReport, PodCounts, PolicyReport, PolicySummary, ProblemCounts, RuleReport,
    SelectedPod, VersionReport,
};
use super::events_kube::{Trouble, Troubles};
use crate::cluster::ClusterState;
use crate::cluster::model::{NetworkPolicy, Peer, Peers, PolicyKey, PortMatch, PortRange, Ports, Rule, Selector};
use crate::cluster::state::is_live;
use crate::endpoints::Local;
use crate::near::near_miss;
use crate::policy::Provenance;
use crate::problem::{Problem, Severity};

/// How many similar names are offered.
const SIMILAR: usize = 5;

/// A pod of this node, with the word that is in the maps for its slot.
#[must_use]
pub fn endpoint(local: &Local, state: &str, word: PolicyWord, provenance: &Provenance) -> EndpointReport {
    let isolation = |direction: Direction| {
        let policy_id = word.policy(direction);
        let by = provenance.isolated_by(policy_id).map(|key| key.name.to_string()).collect();
        Isolation { isolated: word.is_isolated(direction), by, policy_id }
    };
    EndpointReport {
        pod: local.pod.as_ref().map(ToString::to_string).unwrap_or_default(),
        addresses: addresses(&local.endpoint),
        slot: local.slot,
        interface: local.interface.clone(),
        state: state.to_owned(),
        ingress: isolation(Direction::Ingress),
        egress: isolation(Direction::Egress),
        revision: word.revision(),
        since: None,
    }
}

fn addresses(endpoint: &Endpoint) -> Vec<IpAddr> {
    let v4 = endpoint.has(EndpointFlags::HAS_V4).then(|| IpAddr::V4(endpoint.ipv4.into()));
    let v6 = endpoint.has(EndpointFlags::HAS_V6).then(|| IpAddr::V6(endpoint.ipv6.into()));
    v4.into_iter().chain(v6).collect()
}

/// Pods by state.
#[must_use]
pub fn pod_counts(endpoints: &[EndpointReport]) -> PodCounts {
    let mut counts = PodCounts::default();
    for endpoint in endpoints {
        *match endpoint.state.as_str() {
            "enforced" => &mut counts.enforced,
            "failed" => &mut counts.failed,
            _ => &mut counts.pending,
        } += 1;
    }
    counts
}

/// Problems by severity.
#[must_use]
pub fn problem_counts(problems: &[Problem]) -> ProblemCounts {
    let refused = problems.iter().filter(|problem| problem.severity == Severity::Refused).count();
    ProblemCounts { refused, notes: problems.len() - refused }
}

/// All policies, in the order of their names.
#[must_use]
pub fn policies(state: &ClusterState, endpoints: &[EndpointReport], problems: &[Problem]) -> Vec<PolicySummary> {
    let problems = by_policy(problems);
    let mut summaries: Vec<PolicySummary> =
        state.policies().map(|policy| summary(state, policy, endpoints, &problems)).collect();
    summaries.sort_by(|left, right| (&left.namespace, &left.name).cmp(&(&right.namespace, &right.name)));
    summaries
}

/// One policy with its rules as they are in force.
#[must_use]
pub fn policy(
    state: &ClusterState,
    key: &PolicyKey,
    endpoints: &[EndpointReport],
    problems: &[Problem],
) -> Option<PolicyReport> {
    let policy = state.policy(key)?;
    let report = |rules: &Option<Vec<Rule>>| {
        let rules = rules.as_ref()?;
        Some(rules.iter().map(|rule| rule_report(state, policy, rule)).collect())
    };
    Some(PolicyReport {
        summary: summary(state, policy, endpoints, &by_policy(problems)),
        selects: policy.subjects.to_string(),
        ingress: report(&policy.ingress),
        egress: report(&policy.egress),
    })
}

/// Policies that `key` may have been meant to name: of that name elsewhere, of a name like it, or all of a small namespace.
#[must_use]
pub fn similar(state: &ClusterState, key: &PolicyKey) -> Vec<String> {
    let same_name = state.policies().filter(|policy| policy.key.name == key.name);
    let mut found: Vec<String> = same_name.map(|policy| policy.key.to_string()).collect();
    let names: Vec<String> = state.policies().map(|policy| policy.key.to_string()).collect();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    found.extend(near_miss(&key.to_string(), &known).map(str::to_owned));
    let part_of = |name: &str| name.contains(&*key.name) || key.name.contains(name);
    let partly = state.policies_in(&key.namespace).filter(|policy| part_of(&policy.key.name));
    found.extend(partly.map(|policy| policy.key.to_string()));
    let mut unique: Vec<String> = Vec::new();
    for name in found {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique.truncate(SIMILAR);
    unique
}

/// Problems by the policy they are about; one about several counts for each.
#[must_use]
pub fn by_policy(problems: &[Problem]) -> BTreeMap<String, Vec<Problem>> {
    let mut by_policy: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
    for problem in problems {
        for key in problem.object.split(", ").filter_map(|object| object.strip_prefix("NetworkPolicy ")) {
            by_policy.entry(key.to_owned()).or_default().push(problem.clone());
        }
    }
    by_policy
}

/// Policies that are not enforced as written, and whether they select a pod of this node; those that nobody knows (they
/// could not be read at all) are left out.
#[must_use]
pub fn troubles(state: &ClusterState, endpoints: &[EndpointReport], problems: &[Problem]) -> Troubles {
    let mut troubles = Troubles::new();
    for (name, mut problems) in by_policy(problems) {
        problems.retain(|problem| problem.severity == Severity::Refused);
        let key = name.split_once('/').map(|(namespace, name)| PolicyKey::new(namespace, name));
        let Some(policy) = key.and_then(|key| state.policy(&key)).filter(|_| !problems.is_empty()) else { continue };
        let is_local = !selected(state, policy, endpoints).is_empty();
        troubles.insert(name, Trouble { problems, is_local });
    }
    troubles
}

fn summary(
    state: &ClusterState,
    policy: &NetworkPolicy,
    endpoints: &[EndpointReport],
    problems: &BTreeMap<String, Vec<Problem>>,
) -> PolicySummary {
    let types = [("Ingress", policy.ingress.is_some()), ("Egress", policy.egress.is_some())];
    PolicySummary {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        policy_types: types.into_iter().filter(|(_, isolates)| *isolates).map(|(name, _)| name.to_owned()).collect(),
        pods: selected(state, policy, endpoints),
        version: policy
            .version
            .as_ref()
            .map(|version| VersionReport { uid: version.uid.to_string(), generation: version.generation }),
        problems: problems.get(&policy.key.to_string()).cloned().unwrap_or_default(),
    }
}

fn selected(state: &ClusterState, policy: &NetworkPolicy, endpoints: &[EndpointReport]) -> Vec<SelectedPod> {
    let of = |endpoint: &EndpointReport| {
        let name = endpoint.pod.strip_prefix(&*policy.key.namespace)?.strip_prefix('/')?;
        let key = PolicyKey::new(&policy.key.namespace, name);
        let pod = state.pod(&key).filter(|pod| policy.subjects.matches(&pod.labels))?;
        Some(SelectedPod { name: pod.key.name.to_string(), state: endpoint.state.clone() })
    };
    endpoints.iter().filter_map(of).collect()
}

fn rule_report(state: &ClusterState, policy: &NetworkPolicy, rule: &Rule) -> RuleReport {
    let peers = match &rule.peers {
        Peers::Everyone => None,
        Peers::AnyOf(peers) => Some(peers.iter().map(|peer| peer_report(state, policy, peer)).collect()),
    };
    let ports = match &rule.ports {
        Ports::Everything => None,
        Ports::AnyOf(ports) => Some(ports.iter().map(port_words).collect()),
    };
    RuleReport { peers, ports }
}

fn peer_report(state: &ClusterState, policy: &NetworkPolicy, peer: &Peer) -> PeerReport {
    match peer {
        Peer::IpBlock(block) => {
            let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
            let except = if except.is_empty() { String::new() } else { format!(" except {}", except.join(", ")) };
            PeerReport { who: format!("ipBlock {}{except}", block.cidr), pods: None, addresses: None }
        }
        Peer::Pods { namespaces, pods } => {
            let which = if pods.requirements.is_empty() { "all pods".to_owned() } else { format!("pods {pods}") };
            let place = match namespaces {
                None => format!("in namespace {}", policy.key.namespace),
                Some(all) if all.requirements.is_empty() => "in all namespaces".to_owned(),
                Some(selector) => format!("in namespaces {selector}"),
            };
            let (pods, addresses) = count(state, policy, namespaces.as_ref(), pods);
            PeerReport { who: format!("{which} {place}"), pods: Some(pods), addresses: Some(addresses) }
        }
    }
}

/// Live pods with a network of their own that match, and their addresses.
fn count(
    state: &ClusterState,
    policy: &NetworkPolicy,
    namespaces: Option<&Selector>,
    pods: &Selector,
) -> (usize, usize) {
    let in_scope = |name: &str, labels: &_| match namespaces {
        None => *name == *policy.key.namespace,
        Some(selector) => selector.matches(labels),
    };
    let places = state.namespaces().filter(|(name, labels)| in_scope(name, labels));
    let matching = places
        .flat_map(|(name, _)| state.pods_in(name))
        .filter(|pod| is_live(pod) && !pod.host_network && pods.matches(&pod.labels));
    matching.fold((0, 0), |(count, addresses), pod| (count + 1, addresses + pod.addresses.len()))
}

fn port_words(port: &PortMatch) -> String {
    let protocol = format!("{:?}", port.protocol).to_uppercase();
    match &port.ports {
        PortRange::All => format!("{protocol} (all ports)"),
        PortRange::Numbers(first, last) if first == last => format!("{protocol} {first}"),
        PortRange::Numbers(first, last) => format!("{protocol} {first}-{last}"),
        PortRange::Named(name) => format!("{protocol} {name}"),
    }
}

#[cfg(test)]
mod tests;
