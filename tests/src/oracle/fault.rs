//! Deliberate faults of the oracle, for one purpose: a suite that a faulty judge passes proves nothing about that rule.
//!
//! Each is a mistake that real implementations make. Only [`super::Oracle::with_fault`] switches one on.

use std::net::IpAddr;

use serde_json::Value;

use super::contains;

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Egress lets everything through.
    EgressNotEnforced,
    /// A port item matches its port in every protocol.
    ProtocolIgnored,
    /// An SCTP item is read as a TCP item.
    SctpTakenAsTcp,
    /// A podSelector without a namespaceSelector looks into every namespace.
    PodSelectorAcrossNamespaces,
    /// Of podSelector and namespaceSelector in one item, one is enough.
    AndAsOr,
    /// Selectors are their matchLabels alone.
    MatchExpressionsIgnored,
    /// An ipBlock never matches a pod.
    BlockNotForPods,
    /// `except` cuts nothing out.
    ExceptIgnored,
    /// A range is its first port.
    EndPortIgnored,
    /// Only the longest block that holds an address counts, as in a trie that does not merge.
    LongestPrefixShadows,
    /// A port name has one number: that of the first pod of the cluster which declares it.
    NamedPortsOncePerCluster,
    /// NotIn needs the key.
    NotInFailsOnAbsentKey,
    /// A label with an empty value is taken as not there, and the other way round.
    EmptyValueIsAbsent,
    /// Without policyTypes a policy never isolates for egress.
    PolicyTypesMissingIsIngressOnly,
    /// Without policyTypes a policy isolates in both directions.
    PolicyTypesMissingIsBoth,
    /// A `from: []` or `to: []` is nobody.
    EmptyFromIsNobody,
    /// A `ports: []` is no port.
    EmptyPortsIsNone,
    /// `namespaceSelector: {}` lets everyone in, not only pods.
    EmptyNamespaceSelectorAdmitsOutsiders,
    /// A pod's own node is policed like everyone else.
    OwnNodeNotExempt,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::EgressNotEnforced,
        Self::ProtocolIgnored,
        Self::SctpTakenAsTcp,
        Self::PodSelectorAcrossNamespaces,
        Self::AndAsOr,
        Self::MatchExpressionsIgnored,
        Self::BlockNotForPods,
        Self::ExceptIgnored,
        Self::EndPortIgnored,
        Self::LongestPrefixShadows,
        Self::NamedPortsOncePerCluster,
        Self::NotInFailsOnAbsentKey,
        Self::EmptyValueIsAbsent,
        Self::PolicyTypesMissingIsIngressOnly,
        Self::PolicyTypesMissingIsBoth,
        Self::EmptyFromIsNobody,
        Self::EmptyPortsIsNone,
        Self::EmptyNamespaceSelectorAdmitsOutsiders,
        Self::OwnNodeNotExempt,
    ];
}

/// Whether no other block that holds the address is longer than this one.
pub(super) fn is_longest(block: &Value, all: &[Value], address: IpAddr) -> bool {
    let length = |block: &Value| -> Option<u8> { block["cidr"].as_str()?.split_once('/')?.1.parse().ok() };
    let longest = all.iter().filter(|other| contains(&other["cidr"], address)).filter_map(length).max();
    length(block) >= longest
}
