//! How things are, as the pipeline publishes it, and its gauges.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::sizes::Sizes;
use crate::observe::answer::{PodCounts, ProblemCounts, SourceReport};

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapFill {
    /// Entries that are desired.
    pub entries: usize,
    /// Entries that fit (of those that the compiler fills half of: that half).
    pub capacity: u64,
}

/// How things are.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Objects of the cluster, and what the compiler made of them.
    pub sizes: Sizes,
    /// Pods of this node by state.
    pub endpoints: PodCounts,
    /// Problems by severity.
    pub problems: ProblemCounts,
    /// Where objects come from.
    pub source: SourceReport,
    /// Something that was taken in is not in the kernel.
    pub behind: bool,
    /// Addresses of pods that are being looked for.
    pub unresolved: usize,
    /// Events that nobody was told of: beyond their pod's share, or with the queue full.
    pub untold: u64,
    /// Flows that observers missed as they were too slow.
    pub missed: u64,
    /// Events that were not understood.
    pub unknown: u64,
    /// Flows that were not exported for want of room or of a disk.
    pub export_lost: u64,
    /// Namespaces by slot: whose counters these are.
    pub slots: BTreeMap<u16, Arc<str>>,
    /// Flow entries that fit, over all pods.
    pub flow_capacity: u64,
}

#[derive(Debug)]
pub(super) struct SnapshotCollector {
    snapshot: Arc<Mutex<Snapshot>>,
    flow_entries: Arc<AtomicU64>,
}

impl SnapshotCollector {
    pub(super) const fn new(snapshot: Arc<Mutex<Snapshot>>, flow_entries: Arc<AtomicU64>) -> Self {
        Self { snapshot, flow_entries }
    }
}

impl Collector for SnapshotCollector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sizes = &snapshot.sizes;
        for (name, help, value) in [
            ("netpol_policies", "NetworkPolicies known", sizes.policies),
            ("netpol_rules", "Rules of these", sizes.rules),
            ("netpol_cluster_pods", "Pods of the cluster known", sizes.pods),
            ("netpol_namespaces", "Namespaces known", sizes.namespaces),
            ("netpol_services", "Services known", sizes.services),
            ("netpol_identities", "Peers that the policies of this node tell apart", sizes.identities),
            ("netpol_policy_ids", "Sets of policies that isolate pods of this node", sizes.policy_ids),
            ("netpol_behind", "1 while something taken in is not in the kernel", usize::from(snapshot.behind)),
            ("netpol_unresolved_addresses", "Addresses of pods that are being looked for", snapshot.unresolved),
            ("netpol_source_synced", "1 once every kind was listed whole", usize::from(snapshot.source.synced)),
        ] {
            gauge(&mut to, name, help, &[(&[], number(value))])?;
        }
        let PodCounts { enforced, pending, failed } = snapshot.endpoints;
        let states = [("enforced", enforced), ("pending", pending), ("failed", failed)];
        labelled(&mut to, "netpol_endpoints", "Pods of this node by state", "state", states)?;
        let ProblemCounts { refused, notes } = snapshot.problems;
        let severities = [("refused", refused), ("note", notes)];
        labelled(&mut to, "netpol_problems", "What is not enforced as written, by severity", "severity", severities)?;
        let stale: Vec<(&str, usize)> = snapshot
            .source
            .kinds
            .iter()
            .map(|kind| {
                (kind.kind.as_str(), kind.stale_for_seconds.map_or(0, |it| usize::try_from(it).unwrap_or(usize::MAX)))
            })
            .collect();
        labelled(
            &mut to,
            "netpol_source_stale_seconds",
            "How long ago a kind was last known to be up to date",
            "kind",
            stale,
        )?;
        let flows = MapFill {
            entries: usize::try_from(self.flow_entries.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
            capacity: snapshot.flow_capacity,
        };
        let maps: Vec<(&str, MapFill)> =
            sizes.maps.iter().map(|(name, fill)| (*name, *fill)).chain([("flows", flows)]).collect();
        let entries = maps.iter().map(|(name, fill)| (*name, fill.entries));
        labelled(&mut to, "netpol_map_entries", "Entries in a map (flows: when last looked through)", "map", entries)?;
        let capacity = maps.iter().map(|(name, fill)| (*name, usize::try_from(fill.capacity).unwrap_or(usize::MAX)));
        labelled(&mut to, "netpol_map_capacity", "Entries that fit into a map", "map", capacity)?;
        let lost: (&[(&str, &str)], u64) = (&[], snapshot.export_lost);
        counter(&mut to, "netpol_export_lost", "Flows that could not be exported", &[lost])?;
        counter(&mut to, "netpol_events_unknown", "Events that were not understood", &[(&[], snapshot.unknown)])
    }
}

/// A number of things; beyond 2^52 it is no longer exact, and nobody counts that far.
#[expect(clippy::cast_precision_loss, reason = "counts of objects are far below 2^52")]
fn number(count: usize) -> f64 {
    count as f64
}

fn labelled<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'a str, usize)>,
) -> fmt::Result {
    let values: Vec<([(&str, &str); 1], f64)> =
        values.into_iter().map(|(value, count)| ([(label, value)], number(count))).collect();
    let series: Vec<(&[(&str, &str)], f64)> =
        values.iter().map(|(labels, value)| (labels.as_slice(), *value)).collect();
    gauge(to, name, help, &series)
}

pub(super) fn gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: &[(&[(&str, &str)], f64)],
) -> fmt::Result {
    let kind = ConstGauge::new(0.0_f64).metric_type();
    let mut metric = to.encode_descriptor(name, help, None, kind)?;
    // No braces around nothing.
    if let [([], value)] = series {
        return ConstGauge::new(*value).encode(metric);
    }
    for (labels, value) in series {
        let labels: Vec<(&str, &str)> = labels.to_vec();
        ConstGauge::new(*value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

pub(super) fn counter(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: &[(&[(&str, &str)], u64)],
) -> fmt::Result {
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut metric = to.encode_descriptor(name, help, None, kind)?;
    // No braces around nothing.
    if let [([], value)] = series {
        return ConstCounter::new(*value).encode(metric);
    }
    for (labels, value) in series {
        let labels: Vec<(&str, &str)> = labels.to_vec();
        ConstCounter::new(*value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
