//! What the numbers in the maps stand for: [`Provenance`], which flows and `explain` read.
//!
//! A number that was dropped keeps its meaning here until it may be handed out again, as events in flight still hold it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{Direction, IDENTITY_NONE};
use serde::Serialize;

use super::content::{Content, Signature};
use super::criteria::Criterion;
use crate::cluster::model::{PodKey, PolicyKey, Protocol};

/// What policy ids, identities and slots stand for. Cheap to share; a later step makes another value.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    policies: BTreeMap<u16, Arc<Content>>,
    identities: BTreeMap<u32, Arc<Signature>>,
    slots: BTreeMap<u16, PodKey>,
}

/// Names a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleReference {
    /// The policy.
    pub policy: PolicyKey,
    /// Whether it is an ingress or an egress rule.
    pub direction: Direction,
    /// Its place in the list, from 0.
    pub index: usize,
}

/// One thing that policies of this node know about an identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerDescription {
    /// A pair of selectors matches the pod; in words.
    Selectors(String),
    /// The address lies in this block.
    IpBlock {
        /// The block.
        cidr: IpNet,
        /// What is cut out of it.
        except: Vec<IpNet>,
    },
    /// The pod declares a port.
    NamedPort {
        /// Port name.
        name: String,
        /// Protocol.
        protocol: Protocol,
        /// Number.
        port: u16,
    },
}

/// Why a policy id answers as it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The policies that isolate the pod in this direction.
    pub isolated_by: Vec<PolicyKey>,
    /// The rules that let the packet through; none: it is denied.
    pub allowed_by: Vec<RuleReference>,
    /// Rules about this peer that do not take this port.
    pub other_port: Vec<RuleReference>,
    /// Rules that take this port, but are not about this peer.
    pub other_peer: Vec<RuleReference>,
}

impl Provenance {
    /// The pod that has a slot, or had it last.
    #[must_use]
    pub fn pod(&self, slot: u16) -> Option<&PodKey> {
        self.slots.get(&slot)
    }

    /// The direction that a policy id is for.
    #[must_use]
    pub fn direction(&self, policy: u16) -> Option<Direction> {
        self.policies.get(&policy).map(|content| content.direction)
    }

    /// The policies behind a policy id.
    pub fn isolated_by(&self, policy: u16) -> impl Iterator<Item = &PolicyKey> {
        self.policies.get(&policy).into_iter().flat_map(|content| content.policies.keys())
    }

    /// What is known about an identity; empty for an address that no rule names, `None` for an unknown number.
    #[must_use]
    pub fn peer(&self, identity: u32) -> Option<Vec<PeerDescription>> {
        if identity == IDENTITY_NONE {
            return Some(Vec::new());
        }
        let signature = self.identities.get(&identity)?;
        Some(signature.criteria.values().filter_map(|criterion| describe(criterion)).collect())
    }

    /// Why policy id `policy` lets a peer with `identity` through, or does not. `protocol` is the IANA number; `port` is
    /// the destination port and ignored for protocols without ports. `None` for a number that is not known.
    #[must_use]
    pub fn explain(&self, policy: u16, identity: u32, protocol: u8, port: u16) -> Option<Explanation> {
        let content = self.policies.get(&policy)?;
        let nobody = Signature::default();
        let signature = match identity {
            IDENTITY_NONE => &nobody,
            known => self.identities.get(&known)?,
        };
        let port = transport(protocol).map(|protocol| (protocol, port));
        let mut explanation =
            Explanation { isolated_by: content.policies.keys().cloned().collect(), ..Explanation::default() };
        for (key, rules) in &content.policies {
            for (index, rule) in rules.iter().enumerate() {
                let reference = || RuleReference { policy: key.clone(), direction: content.direction, index };
                match (rule.peers.include(signature), content.rule_takes_port(rule, signature, port)) {
                    (true, true) => explanation.allowed_by.push(reference()),
                    (true, false) => explanation.other_port.push(reference()),
                    (false, true) => explanation.other_peer.push(reference()),
                    (false, false) => {}
                }
            }
        }
        Some(explanation)
    }

    pub(super) fn add_policy(&mut self, id: u16, content: Arc<Content>) {
        self.policies.insert(id, content);
    }

    pub(super) fn add_identity(&mut self, id: u32, signature: Arc<Signature>) {
        self.identities.insert(id, signature);
    }

    pub(super) fn set_slot(&mut self, slot: u16, pod: Option<PodKey>) {
        if let Some(pod) = pod {
            self.slots.insert(slot, pod);
        }
    }

    pub(super) fn forget(&mut self, policies: &[u16], identities: &[u32]) {
        for policy in policies {
            self.policies.remove(policy);
        }
        for identity in identities {
            self.identities.remove(identity);
        }
    }
}

/// The protocol of an IANA number, if NetworkPolicy knows ports for it.
fn transport(protocol: u8) -> Option<Protocol> {
    match protocol {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}

fn describe(criterion: &Criterion) -> Option<PeerDescription> {
    match criterion {
        Criterion::Pods { .. } => Some(PeerDescription::Selectors(criterion.to_string())),
        Criterion::Block(block) => Some(PeerDescription::IpBlock { cidr: block.cidr, except: block.except.clone() }),
        Criterion::NamedPort { name, protocol, port } => {
            Some(PeerDescription::NamedPort { name: name.to_string(), protocol: *protocol, port: *port })
        }
        Criterion::PortName { .. } => None,
    }
}

impl fmt::Display for RuleReference {
    /// `NetworkPolicy namespace/name ingress[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkPolicy {} {}[{}]", self.policy, self.direction.name(), self.index)
    }
}

impl fmt::Display for PeerDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selectors(words) => f.write_str(words),
            Self::IpBlock { cidr, except } if except.is_empty() => write!(f, "ipBlock {cidr}"),
            Self::IpBlock { cidr, except } => {
                let except: Vec<String> = except.iter().map(ToString::to_string).collect();
                write!(f, "ipBlock {cidr} except {}", except.join(", "))
            }
            Self::NamedPort { name, protocol, port } => write!(f, "port {name}={port}/{protocol:?}"),
        }
    }
}
