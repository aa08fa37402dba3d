//! Flows as Hubble's metrics count them, and drops by the policies that isolate the pod.
//!
//! A packet that policy denies is two flows to Hubble, a policy verdict and a drop, and `hubble_drop_total` counts both, as
//! Cilium's does; `netpol_drops_total`, which comes from the maps, counts each packet once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use netpol_common::abi::Reason;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Labels, OTHER};
use crate::cluster::model::PolicyKey;
use crate::flow::{Flow, Match};

/// Policies that have series of their own.
const MOST_POLICIES: usize = 200;

#[derive(Debug)]
pub(super) struct FlowMetrics {
    drops: Family<Labels, Counter>,
    verdicts: Family<Labels, Counter>,
    processed: Family<Labels, Counter>,
    by_policy: Family<Labels, Counter>,
    policies: Mutex<BTreeSet<PolicyKey>>,
}

impl FlowMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let [drops, verdicts, processed, by_policy] = [(); 4].map(|()| Family::<Labels, Counter>::default());
        registry.register("hubble_drop", "Dropped packets by Hubble's drop reason", drops.clone());
        registry.register("hubble_policy_verdicts", "Verdicts of policy on new flows", verdicts.clone());
        registry.register("hubble_flows_processed", "Flows as observers see them", processed.clone());
        registry.register(
            "netpol_policy_drops",
            "Packets denied while this policy was among those that isolate the pod, as far as events told",
            by_policy.clone(),
        );
        Self { drops, verdicts, processed, by_policy, policies: Mutex::default() }
    }

    pub(super) fn record(&self, flow: &Flow) {
        let direction = flow.direction.name();
        let protocol = if flow.protocol.starts_with(char::is_lowercase) { "Unknown L4" } else { &flow.protocol };
        let is_drop = flow.reason.is_drop();
        let packets = 1 + u64::from(flow.suppressed);
        if is_drop {
            self.processed.get_or_create(&processed("Drop", "DROPPED", protocol)).inc();
            self.dropped(flow, protocol, packets);
        }
        if is_drop && !is_by_policy(flow.reason) {
            return;
        }
        let (verdict, action) = if is_drop { ("DROPPED", "dropped") } else { ("FORWARDED", "forwarded") };
        self.processed.get_or_create(&processed("PolicyVerdict", verdict, protocol)).inc();
        let labels = [("direction", direction), ("match", match_name(flow.matched)), ("action", action)]
            .map(|(name, value)| (name, value.into()));
        self.verdicts.get_or_create(&labels.to_vec()).inc();
        if is_drop {
            self.dropped(flow, protocol, 1);
            for policy in &flow.policies {
                let labels = vec![("policy", self.bounded(policy)), ("direction", direction.to_owned())];
                self.by_policy.get_or_create(&labels).inc_by(packets);
            }
        }
    }

    fn dropped(&self, flow: &Flow, protocol: &str, count: u64) {
        let labels = vec![("reason", hubble_reason(flow.drop_reason).to_owned()), ("protocol", protocol.to_owned())];
        self.drops.get_or_create(&labels).inc_by(count);
    }

    /// The policy's name while there are few, and what all others share after that.
    fn bounded(&self, policy: &PolicyKey) -> String {
        let mut known = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(policy) || (known.len() < MOST_POLICIES && known.insert(policy.clone())) {
            policy.to_string()
        } else {
            OTHER.to_owned()
        }
    }
}

fn processed(kind: &str, verdict: &str, protocol: &str) -> Labels {
    [("type", kind), ("subtype", ""), ("verdict", verdict), ("protocol", protocol)]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec()
}

/// As Cilium's monitor writes a match in lower case.
const fn match_name(matched: Match) -> &'static str {
    match matched {
        Match::None => "none",
        Match::Peer => "l3-only",
        Match::PeerAndPort => "l3-l4",
        Match::Port => "l4-only",
        Match::All => "all",
    }
}

/// Whether policy said so of this packet itself.
const fn is_by_policy(reason: Reason) -> bool {
    matches!(reason, Reason::PolicyDenied | Reason::DeniedAfterTranslation | Reason::FlowRevoked)
}

/// Hubble's name of a drop reason that we give.
const fn hubble_reason(number: u32) -> &'static str {
    match number {
        132 => "INVALID_SOURCE_IP",
        133 => "POLICY_DENIED",
        134 => "INVALID_PACKET_DROPPED",
        135 => "CT_TRUNCATED_OR_INVALID_HEADER",
        137 => "CT_UNKNOWN_L4_PROTOCOL",
        139 => "UNSUPPORTED_L3_PROTOCOL",
        140 => "MISSED_TAIL_CALL",
        142 => "UNKNOWN_L4_PROTOCOL",
        155 => "CT_MAP_INSERTION_FAILED",
        156 => "INVALID_IPV6_EXTENSION_HEADER",
        157 => "IP_FRAGMENTATION_NOT_SUPPORTED",
        163 => "UNKNOWN_CONNECTION_TRACKING_STATE",
        175 => "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
        181 => "POLICY_DENY",
        190 => "CT_NO_MAP_FOUND",
        198 => "DROP_RATE_LIMITED",
        203 => "DROP_EP_NOT_READY",
        _ => "DROP_REASON_UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_has_a_name_that_hubble_knows() {
        for reason in Reason::ALL.iter().filter(|reason| reason.is_drop()) {
            assert_ne!(hubble_reason(reason.hubble()), "DROP_REASON_UNKNOWN", "{reason} is {}", reason.hubble());
        }
    }
}
