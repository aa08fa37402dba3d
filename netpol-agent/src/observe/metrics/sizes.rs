//! How much there is: counted from the cluster and the compiler's result. Pure.

use std::collections::BTreeSet;

use super::snapshot::MapFill;
use crate::cluster::ClusterState;
use crate::datapath::desired::DesiredDatapath;
use crate::policy::Limits;

/// How much there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// NetworkPolicies.
    pub policies: usize,
    /// Their rules, both directions.
    pub rules: usize,
    /// Pods of the cluster.
    pub pods: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Services.
    pub services: usize,
    /// Identities in the maps.
    pub identities: usize,
    /// Policy ids in the maps.
    pub policy_ids: usize,
    /// The maps that hold policy.
    pub maps: Vec<(&'static str, MapFill)>,
}

impl Sizes {
    /// Counts.
    #[must_use]
    pub fn of(cluster: &ClusterState, desired: &DesiredDatapath) -> Self {
        let rules = cluster.policies().flat_map(|policy| [&policy.ingress, &policy.egress]).flatten().map(Vec::len);
        let tables = &desired.tables;
        let identities: BTreeSet<u32> = tables.addresses.values().chain(tables.cidrs.values()).copied().collect();
        let limits = Limits::default();
        let fill = |entries: usize, capacity: usize| MapFill {
            entries,
            capacity: u64::try_from(capacity).unwrap_or(u64::MAX),
        };
        let v4 = tables.addresses.keys().filter(|address| address.is_ipv4()).count();
        let cidrs_v4 = tables.cidrs.keys().filter(|cidr| cidr.addr().is_ipv4()).count();
        let maps = vec![
            ("addresses_v4", fill(v4, limits.addresses)),
            ("addresses_v6", fill(tables.addresses.len() - v4, limits.addresses)),
            ("cidrs_v4", fill(cidrs_v4, limits.cidrs)),
            ("cidrs_v6", fill(tables.cidrs.len() - cidrs_v4, limits.cidrs)),
            ("allow", fill(tables.allow.values().map(std::collections::BTreeMap::len).sum(), limits.allow)),
            ("port_sets", fill(tables.port_sets.len(), limits.port_sets)),
        ];
        Self {
            policies: cluster.policies().count(),
            rules: rules.sum(),
            pods: cluster.pods().count(),
            namespaces: cluster.namespaces().count(),
            services: cluster.services().count(),
            identities: identities.len(),
            policy_ids: tables.allow.len(),
            maps,
        }
    }
}
