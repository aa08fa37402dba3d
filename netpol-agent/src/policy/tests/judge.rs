//! A naive judge: reads the objects as written, for one question at a time. Shares nothing with the compiler but selector
//! matching and the cluster model.

use std::net::IpAddr;

use netpol_common::abi::Direction;

use crate::cluster::ClusterState;
use crate::cluster::model::{
    NetworkPolicy, Peer, Peers, Pod, PodKey, PortMatch, PortRange, Ports, Protocol, Rule as WrittenRule,
};

/// A packet as one local pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    pub(super) slot: u16,
    pub(super) direction: Direction,
    pub(super) peer: IpAddr,
    /// Protocol and destination port, `None` for ICMP.
    pub(super) port: Option<(Protocol, u16)>,
}

fn live_pods_at(state: &ClusterState, address: IpAddr) -> Vec<&Pod> {
    let live = |pod: &&Pod| !pod.terminal && !pod.host_network && pod.addresses.contains(&address);
    state.pods().map(|pod| &**pod).filter(live).collect()
}

/// Whether the policies in `state` allow it. Nothing is allowed for a pod that is not known.
pub(super) fn allows(state: &ClusterState, subject: Option<&PodKey>, question: &Question) -> bool {
    let Some(subject) = subject.and_then(|key| state.pod(key)) else { return false };
    if subject.terminal || subject.host_network {
        return true;
    }
    let isolating: Vec<(&NetworkPolicy, &[WrittenRule])> = state
        .policies_in(&subject.key.namespace)
        .filter(|policy| policy.subjects.matches(&subject.labels))
        .filter_map(|policy| {
            let rules = match question.direction {
                Direction::Ingress => policy.ingress.as_deref(),
                Direction::Egress => policy.egress.as_deref(),
            };
            Some((&**policy, rules?))
        })
        .collect();
    let scene = Scene { state, subject, owners: live_pods_at(state, question.peer), question };
    isolating.is_empty()
        || isolating.iter().any(|(policy, rules)| rules.iter().any(|rule| rule_allows(&scene, policy, rule)))
}

/// A question with the pods at both ends.
struct Scene<'a> {
    state: &'a ClusterState,
    subject: &'a Pod,
    owners: Vec<&'a Pod>,
    question: &'a Question,
}

fn rule_allows(scene: &Scene<'_>, policy: &NetworkPolicy, rule: &WrittenRule) -> bool {
    let Scene { state, subject, owners, question } = scene;
    let about = match &rule.peers {
        Peers::Everyone => true,
        Peers::AnyOf(peers) => peers.iter().any(|peer| match peer {
            Peer::IpBlock(block) => {
                block.cidr.contains(&question.peer) && !block.except.iter().any(|e| e.contains(&question.peer))
            }
            Peer::Pods { namespaces, pods } => {
                !owners.is_empty()
                    && owners.iter().all(|owner| {
                        let there = match namespaces {
                            None => owner.key.namespace == policy.key.namespace,
                            Some(selector) => selector.matches(state.namespace_labels(&owner.key.namespace).unwrap()),
                        };
                        there && pods.matches(&owner.labels)
                    })
            }
        }),
    };
    about
        && match &rule.ports {
            Ports::Everything => true,
            Ports::AnyOf(matches) => {
                question.port.is_some_and(|port| matches.iter().any(|one| takes(one, subject, owners, question, port)))
            }
        }
}

fn takes(
    one: &PortMatch,
    subject: &Pod,
    owners: &[&Pod],
    question: &Question,
    (protocol, port): (Protocol, u16),
) -> bool {
    let number = |pod: &Pod, name: &str| {
        pod.named_ports.iter().find(|p| *p.name == *name && p.protocol == one.protocol).map(|p| p.port)
    };
    one.protocol == protocol
        && match &one.ports {
            PortRange::All => true,
            PortRange::Numbers(first, last) => (*first..=*last).contains(&port),
            PortRange::Named(name) => match question.direction {
                Direction::Ingress => number(subject, name) == Some(port),
                Direction::Egress => !owners.is_empty() && owners.iter().all(|owner| number(owner, name) == Some(port)),
            },
        }
}
