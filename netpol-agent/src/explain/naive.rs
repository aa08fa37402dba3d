//! The naive judge: NetworkPolicy read off the objects, rule by rule, keeping what made each rule fail.
//!
//! Written straight from the API reference (`k8s.io/api/networking/v1`) and the concept page; it has no index, prepares
//! nothing, and **shares no code with the compiler**, matching of labels and blocks included: where the two differ, one of
//! them is wrong, and `explain` says so. Do not make it clever.

use std::net::IpAddr;

use netpol_common::abi::Direction;

use super::{Facts, Side, Traffic};
use crate::cluster::model::{
    IpBlock, Labels, NetworkPolicy, Peer, Peers, Pod, PodKey, PolicyKey, PortMatch, PortRange, Ports, Protocol,
    Requirement, Rule, Selector,
};
use crate::policy::RuleReference;
use std::sync::Arc;

/// What policy says to one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No policy is asked.
    Exempt(Exempt),
    /// No policy isolates the subject in this direction.
    NotIsolated,
    /// Isolated, and these rules let it through.
    Allowed {
        /// The policies that isolate the subject.
        isolated_by: Vec<PolicyKey>,
        /// Every rule that lets it through.
        by: Vec<RuleReference>,
    },
    /// Isolated, and no rule lets it through.
    Denied {
        /// The policies that isolate the subject.
        isolated_by: Vec<PolicyKey>,
        /// Why each rule does not, the nearest first.
        misses: Vec<RuleMiss>,
    },
}

/// Why no policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// The subject is no pod.
    NoPod,
    /// A pod in its node's network namespace: policies do not act on it.
    HostNetwork,
    /// A pod that has completed no longer owns its address.
    Terminal,
    /// A pod's traffic to itself.
    ToSelf,
    /// Between a pod and the node that it runs on.
    OwnNode,
}

/// Why a rule does not let a flow through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMiss {
    /// The rule.
    pub rule: RuleReference,
    /// Why none of its peers is the peer; none if one is.
    pub peers: Option<Vec<PeerMiss>>,
    /// Why none of its ports takes the traffic; none if one does.
    pub ports: Option<Vec<PortMiss>>,
}

/// Why an item of `from` or `to` does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMiss {
    /// What in it does not hold.
    pub because: Vec<PeerReason>,
}

/// One thing about a peer that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerReason {
    /// Selectors match pods only, by their address.
    NotAPod,
    /// A podSelector alone reaches the policy's own namespace only.
    OtherNamespace(PodKey),
    /// A requirement on the pod's labels.
    PodLabel(PodKey, Requirement, Option<Arc<str>>),
    /// A requirement on the labels of the pod's namespace.
    NamespaceLabel(PodKey, Requirement, Option<Arc<str>>),
    /// The address is not in the block.
    OutsideBlock(IpBlock),
    /// The address is in the block, and in what is cut out of it.
    Excepted(IpBlock, ipnet::IpNet),
}

/// Why an item of `ports` does not take the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMiss {
    /// ICMP and others pass by rules without `ports` only.
    NoPorts,
    /// The item is about another protocol.
    OtherProtocol(PortMatch),
    /// Another number.
    OtherPort(PortMatch),
    /// The destination pod declares no such name for the protocol.
    UnknownName(PodKey, Arc<str>, Protocol),
    /// The destination pod has another number under the name.
    NameIsOther(PodKey, Arc<str>, u16),
    /// Only pods declare names, and no pod has the address.
    NobodyNames(Arc<str>),
}

impl RuleMiss {
    /// How much would have to be different.
    #[must_use]
    pub fn distance(&self) -> usize {
        let peers = self.peers.as_ref().map_or(0, |misses| {
            // A list that could not be used at all is as far as can be.
            4 + misses.iter().map(|miss| miss.because.len()).min().unwrap_or(100)
        });
        let ports = self.ports.as_ref().map_or(0, |misses| if misses.is_empty() { 104 } else { 4 });
        peers + ports
    }
}

/// Judges one side of a flow.
#[must_use]
pub fn judge(facts: &Facts<'_>, side: Side<'_>) -> Judgement {
    let pod = match policed(facts, side) {
        Ok(pod) => pod,
        Err(exempt) => return Judgement::Exempt(exempt),
    };
    let isolating: Vec<&Arc<NetworkPolicy>> = facts
        .cluster
        .policies_in(&pod.key.namespace)
        .filter(|policy| rules(policy, side.direction).is_some() && unmet(&policy.subjects, &pod.labels).is_empty())
        .collect();
    if isolating.is_empty() {
        return Judgement::NotIsolated;
    }
    let owners: Vec<&Arc<Pod>> = owners(facts, side.peer.address);
    let destinations: Vec<&Pod> = match side.direction {
        Direction::Ingress => vec![pod],
        Direction::Egress => owners.iter().map(|owner| &***owner).collect(),
    };
    let (mut by, mut misses) = (Vec::new(), Vec::new());
    for policy in &isolating {
        for (index, rule) in rules(policy, side.direction).unwrap_or_default().iter().enumerate() {
            let reference = RuleReference { policy: policy.key.clone(), direction: side.direction, index };
            let peers = peers_missed(facts, policy, rule, (side.peer.address, &owners));
            let ports = ports_missed(rule, side.traffic, &destinations);
            if peers.is_none() && ports.is_none() {
                by.push(reference);
            } else {
                misses.push(RuleMiss { rule: reference, peers, ports });
            }
        }
    }
    let isolated_by = isolating.into_iter().map(|policy| policy.key.clone()).collect();
    if by.is_empty() {
        misses.sort_by_key(RuleMiss::distance);
        Judgement::Denied { isolated_by, misses }
    } else {
        Judgement::Allowed { isolated_by, by }
    }
}

impl Judgement {
    /// Whether the flow passes this side.
    #[must_use]
    pub const fn passes(&self) -> bool {
        !matches!(self, Self::Denied { .. })
    }
}

/// The subject, if policy acts on it here.
fn policed<'a>(facts: &Facts<'a>, side: Side<'_>) -> Result<&'a Pod, Exempt> {
    let key = side.subject.pod.as_ref().ok_or(Exempt::NoPod)?;
    let pod = facts.cluster.pod(key).ok_or(Exempt::NoPod)?;
    if pod.host_network {
        return Err(Exempt::HostNetwork);
    }
    if pod.terminal {
        return Err(Exempt::Terminal);
    }
    if side.subject.address == side.peer.address || side.peer.pod.as_ref() == Some(key) {
        return Err(Exempt::ToSelf);
    }
    // "Traffic to and from the node where a Pod is running is always allowed."
    let is_judged = side.direction == Direction::Egress && facts.enforce_own_node;
    if !is_judged && facts.nodes.has(&pod.node, side.peer.address) {
        return Err(Exempt::OwnNode);
    }
    Ok(pod)
}

/// The live pods that own an address: any of them may be the one.
fn owners<'a>(facts: &Facts<'a>, address: IpAddr) -> Vec<&'a Arc<Pod>> {
    facts.cluster.claimants(address).filter_map(|key| facts.cluster.pod(key)).collect()
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// `from`/`to`: missing or empty is everyone; else one item must match.
fn peers_missed(
    facts: &Facts<'_>,
    policy: &NetworkPolicy,
    rule: &Rule,
    (address, owners): (IpAddr, &[&Arc<Pod>]),
) -> Option<Vec<PeerMiss>> {
    let items = match &rule.peers {
        Peers::Everyone => return None,
        Peers::AnyOf(items) => items,
    };
    let mut misses = Vec::new();
    for item in items {
        let because = match item {
            Peer::IpBlock(block) => outside(block, address),
            Peer::Pods { .. } if owners.is_empty() => vec![PeerReason::NotAPod],
            // Two live pods with one address: what only one of them may do, nobody may.
            Peer::Pods { namespaces, pods } => owners
                .iter()
                .flat_map(|owner| not_selected(facts, policy, owner, (namespaces.as_ref(), pods)))
                .collect(),
        };
        if because.is_empty() {
            return None;
        }
        misses.push(PeerMiss { because });
    }
    Some(misses)
}

/// podSelector and namespaceSelector of one item: both must match.
fn not_selected(
    facts: &Facts<'_>,
    policy: &NetworkPolicy,
    pod: &Pod,
    (namespaces, pods): (Option<&Selector>, &Selector),
) -> Vec<PeerReason> {
    let mut because = Vec::new();
    match namespaces {
        None if pod.key.namespace != policy.key.namespace => {
            because.push(PeerReason::OtherNamespace(pod.key.clone()));
        }
        None => {}
        Some(selector) => {
            let nothing = Labels::new();
            let labels = facts.cluster.namespace_labels(&pod.key.namespace).unwrap_or(&nothing);
            let unmet = unmet(selector, labels).into_iter();
            because.extend(unmet.map(|(it, found)| PeerReason::NamespaceLabel(pod.key.clone(), it, found)));
        }
    }
    let unmet = unmet(pods, &pod.labels).into_iter();
    because.extend(unmet.map(|(it, found)| PeerReason::PodLabel(pod.key.clone(), it, found)));
    because
}

/// The requirements of a selector that do not hold, with what the labels have instead.
fn unmet(selector: &Selector, labels: &Labels) -> Vec<(Requirement, Option<Arc<str>>)> {
    let mut unmet = Vec::new();
    for requirement in &selector.requirements {
        let (Requirement::In(key, _)
        | Requirement::NotIn(key, _)
        | Requirement::Exists(key)
        | Requirement::DoesNotExist(key)) = requirement;
        let found = labels.get(key);
        let holds = match requirement {
            Requirement::In(_, values) => found.is_some_and(|found| values.iter().any(|value| value == found)),
            // "NotIn": also where the key is absent.
            Requirement::NotIn(_, values) => found.is_none_or(|found| values.iter().all(|value| value != found)),
            Requirement::Exists(_) => found.is_some(),
            Requirement::DoesNotExist(_) => found.is_none(),
        };
        if !holds {
            unmet.push((requirement.clone(), found.cloned()));
        }
    }
    unmet
}

/// ipBlock goes by address, whoever has it; `except` cuts out of this block only.
fn outside(block: &IpBlock, address: IpAddr) -> Vec<PeerReason> {
    if !holds(block.cidr, address) {
        return vec![PeerReason::OutsideBlock(block.clone())];
    }
    let except = block.except.iter().find(|except| holds(**except, address));
    except.map(|except| PeerReason::Excepted(block.clone(), *except)).into_iter().collect()
}

/// Whether the first bits are equal. Families never mix.
fn holds(block: ipnet::IpNet, address: IpAddr) -> bool {
    let length = u32::from(block.prefix_len());
    match (block.addr(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            length == 0 || (network.to_bits() ^ address.to_bits()) >> (32 - length) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            length == 0 || (network.to_bits() ^ address.to_bits()) >> (128 - length) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// `ports`: missing or empty is every port of every protocol; else one item must take it.
fn ports_missed(rule: &Rule, traffic: Traffic, destinations: &[&Pod]) -> Option<Vec<PortMiss>> {
    let items = match &rule.ports {
        Ports::Everything => return None,
        Ports::AnyOf(items) => items,
    };
    let Traffic::Port(protocol, port) = traffic else { return Some(vec![PortMiss::NoPorts]) };
    let mut misses = Vec::new();
    for item in items {
        match port_missed(item, (protocol, port), destinations) {
            None => return None,
            Some(miss) => misses.push(miss),
        }
    }
    Some(misses)
}

fn port_missed(item: &PortMatch, (protocol, port): (Protocol, u16), destinations: &[&Pod]) -> Option<PortMiss> {
    if item.protocol != protocol {
        return Some(PortMiss::OtherProtocol(item.clone()));
    }
    match &item.ports {
        PortRange::All => None,
        PortRange::Numbers(first, last) => (port < *first || port > *last).then(|| PortMiss::OtherPort(item.clone())),
        PortRange::Named(name) if destinations.is_empty() => Some(PortMiss::NobodyNames(name.clone())),
        // The number under which each pod that may be the destination declares the name for this protocol.
        PortRange::Named(name) => destinations.iter().find_map(|pod| {
            let declared =
                pod.named_ports.iter().find(|declared| declared.name == *name && declared.protocol == protocol);
            match declared {
                None => Some(PortMiss::UnknownName(pod.key.clone(), name.clone(), protocol)),
                Some(declared) if declared.port != port => {
                    Some(PortMiss::NameIsOther(pod.key.clone(), name.clone(), declared.port))
                }
                Some(_) => None,
            }
        }),
    }
}
