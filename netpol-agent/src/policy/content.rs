//! The policies that isolate a pod in one direction, reduced to what decides: [`Content`].
//!
//! Two pods with equal contents share a policy id. What a content allows a peer depends on the peer's signature alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::abi::Direction;

use super::criteria::{Criteria, Criterion, CriterionId, Namespaces, named_port};
use super::ports::{Allowed, PerProtocol, PortRanges};
use crate::cluster::model::{
    NetworkPolicy, Peer, Peers, Pod, PolicyKey, PortMatch, PortRange, Ports, Protocol, Rule as WrittenRule,
};

/// A port name for a protocol.
pub(super) type PortName = (Arc<str>, Protocol);

/// Who a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RulePeers {
    Everyone,
    AnyOf(BTreeSet<CriterionId>),
}

/// What a rule lets through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RulePorts {
    Everything,
    AnyOf {
        numbers: PerProtocol<PortRanges>,
        /// Looked up on the destination: the subject for ingress, the peer for egress.
        named: BTreeSet<PortName>,
    },
}

/// A rule in normal form. Its place in the list is the rule's number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) peers: RulePeers,
    pub(super) ports: RulePorts,
}

/// What isolates a pod in one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    pub(super) direction: Direction,
    /// The policies, never none: a pod without any is not isolated.
    pub(super) policies: BTreeMap<PolicyKey, Arc<[Rule]>>,
    /// Ingress: the numbers that the subject gives to the port names in the rules.
    pub(super) subject_ports: BTreeMap<PortName, u16>,
    /// Everything that the rules ask of a peer.
    pub(super) criteria: BTreeSet<CriterionId>,
}

/// The criteria that an address meets, with what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) criteria: BTreeMap<CriterionId, Arc<Criterion>>,
}

/// The rules of one direction of a policy, if it isolates in that direction.
pub(super) fn rules_of(policy: &NetworkPolicy, direction: Direction) -> Option<&[WrittenRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// Brings rules into normal form, numbering what they ask.
pub(super) fn normalise(policy: &NetworkPolicy, rules: &[WrittenRule], criteria: &mut Criteria) -> Arc<[Rule]> {
    rules
        .iter()
        .map(|rule| Rule {
            peers: match &rule.peers {
                Peers::Everyone => RulePeers::Everyone,
                Peers::AnyOf(peers) => {
                    RulePeers::AnyOf(peers.iter().map(|peer| criteria.intern(criterion(policy, peer))).collect())
                }
            },
            ports: match &rule.ports {
                Ports::Everything => RulePorts::Everything,
                Ports::AnyOf(matches) => any_of(matches),
            },
        })
        .collect()
}

fn criterion(policy: &NetworkPolicy, peer: &Peer) -> Criterion {
    match peer {
        Peer::Pods { namespaces, pods } => Criterion::Pods {
            namespaces: match namespaces {
                Some(selector) => Namespaces::Matching(selector.clone()),
                None => Namespaces::Named(policy.key.namespace.clone()),
            },
            pods: pods.clone(),
        },
        Peer::IpBlock(block) => Criterion::Block(block.clone()),
    }
}

fn any_of(matches: &[PortMatch]) -> RulePorts {
    let mut ranges = PerProtocol::<Vec<(u16, u16)>>::default();
    let mut named = BTreeSet::new();
    for one in matches {
        match &one.ports {
            PortRange::All => ranges.get_mut(one.protocol).push((0, u16::MAX)),
            PortRange::Numbers(first, last) => ranges.get_mut(one.protocol).push((*first, *last)),
            PortRange::Named(name) => {
                named.insert((name.clone(), one.protocol));
            }
        }
    }
    RulePorts::AnyOf { numbers: ranges.map(PortRanges::union), named }
}

impl Content {
    /// The content of `policies` (with their rules) for `subject`.
    pub(super) fn new(
        direction: Direction,
        policies: BTreeMap<PolicyKey, Arc<[Rule]>>,
        subject: &Pod,
        criteria: &mut Criteria,
    ) -> Self {
        let mut content = Self { direction, policies, subject_ports: BTreeMap::new(), criteria: BTreeSet::new() };
        let mut asked = BTreeSet::new();
        let mut names = BTreeSet::new();
        for rule in content.policies.values().flat_map(|rules| rules.iter()) {
            if let RulePeers::AnyOf(peers) = &rule.peers {
                asked.extend(peers);
            }
            if let RulePorts::AnyOf { named, .. } = &rule.ports {
                names.extend(named.iter().cloned());
            }
        }
        for (name, protocol) in names {
            match direction {
                Direction::Ingress => {
                    if let Some(port) = named_port(subject, &name, protocol) {
                        content.subject_ports.insert((name, protocol), port);
                    }
                }
                Direction::Egress => {
                    asked.insert(criteria.intern(Criterion::PortName { name, protocol }));
                }
            }
        }
        content.criteria = asked;
        content
    }

    /// What this content allows a peer with `signature`: the union of all its rules that are about the peer.
    pub(super) fn allowed(&self, signature: &Signature) -> Allowed {
        let mut ranges = PerProtocol::<Vec<(u16, u16)>>::default();
        let about = self.policies.values().flat_map(|rules| rules.iter()).filter(|rule| rule.peers.include(signature));
        for rule in about {
            match &rule.ports {
                RulePorts::Everything => {
                    return Allowed {
                        ports: PerProtocol { tcp: PortRanges::all(), udp: PortRanges::all(), sctp: PortRanges::all() },
                        other: true,
                    };
                }
                RulePorts::AnyOf { numbers, named } => {
                    for protocol in Protocol::ALL {
                        ranges.get_mut(protocol).extend(numbers.get(protocol).ranges());
                    }
                    for (name, protocol) in named {
                        ranges
                            .get_mut(*protocol)
                            .extend(self.numbers_of(name, *protocol, signature).into_iter().map(|port| (port, port)));
                    }
                }
            }
        }
        // Rules that name ports are about protocols that have some.
        Allowed { ports: ranges.map(PortRanges::union), other: false }
    }

    /// The numbers that the destination gives to a port name.
    fn numbers_of(&self, name: &Arc<str>, protocol: Protocol, signature: &Signature) -> Vec<u16> {
        match self.direction {
            Direction::Ingress => self.subject_ports.get(&(name.clone(), protocol)).copied().into_iter().collect(),
            Direction::Egress => signature.numbers_of(name, protocol),
        }
    }

    /// The policies with a rule that asks `criterion`.
    pub(super) fn policies_asking(&self, criterion: CriterionId) -> Vec<PolicyKey> {
        let asks = |rule: &Rule| matches!(&rule.peers, RulePeers::AnyOf(peers) if peers.contains(&criterion));
        let asking = self.policies.iter().filter(|(_, rules)| rules.iter().any(asks));
        asking.map(|(key, _)| key.clone()).collect()
    }

    /// True if `rule` lets a packet to `port` through, whoever the peer is. `None`: a protocol without ports.
    pub(super) fn rule_takes_port(&self, rule: &Rule, signature: &Signature, port: Option<(Protocol, u16)>) -> bool {
        match (&rule.ports, port) {
            (RulePorts::Everything, _) => true,
            (RulePorts::AnyOf { .. }, None) => false,
            (RulePorts::AnyOf { numbers, named }, Some((protocol, port))) => {
                numbers.get(protocol).contains(port)
                    || named
                        .iter()
                        .any(|(name, of)| *of == protocol && self.numbers_of(name, protocol, signature).contains(&port))
            }
        }
    }
}

impl RulePeers {
    pub(super) fn include(&self, signature: &Signature) -> bool {
        match self {
            Self::Everyone => true,
            Self::AnyOf(peers) => peers.iter().any(|peer| signature.criteria.contains_key(peer)),
        }
    }
}

impl Signature {
    fn numbers_of(&self, name: &Arc<str>, protocol: Protocol) -> Vec<u16> {
        let numbers = self.criteria.values().filter_map(|criterion| match &**criterion {
            Criterion::NamedPort { name: named, protocol: of, port } => {
                (named == name && *of == protocol).then_some(*port)
            }
            Criterion::Pods { .. } | Criterion::Block(_) | Criterion::PortName { .. } => None,
        });
        numbers.collect()
    }
}
