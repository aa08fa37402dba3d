//! `/metrics` for Prometheus: what the agent counts and holds, and Hubble's metrics under Hubble's names and labels.
//!
//! Comes in: flows ([`Metrics::flow`]), [`Snapshot`]s that the pipeline publishes, and counters that are read from the maps
//! when somebody asks. Goes out: OpenMetrics text ([`Metrics::scrape`]). Never waits for the loop, nor makes it wait: a
//! scrape reads maps by handles of its own. Labels that clusters decide (namespaces, policies) are bounded; what is beyond
//! counts as `other`.

mod flows;
mod serve;
mod sizes;
mod snapshot;
#[cfg(test)]
mod tests;
mod totals;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netpol_common::abi::ABI_VERSION;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::flows::FlowMetrics;
pub use self::serve::{MetricsError, MetricsServer};
pub use self::sizes::Sizes;
use self::snapshot::SnapshotCollector;
pub use self::snapshot::{MapFill, Snapshot};
pub use self::totals::Reader;
use self::totals::Totals;
use crate::flow::Flow;

/// Labels of a metric.
type Labels = Vec<(&'static str, String)>;

/// The value of a label beyond its bound.
const OTHER: &str = "other";

/// Everything that is counted. Cheap to share.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    flows: FlowMetrics,
    enforced: Histogram,
    flow_entries: Arc<AtomicU64>,
    snapshot: Arc<Mutex<Snapshot>>,
}

impl Metrics {
    /// Begins to count; `reader` reads the maps' counters, where there are maps.
    #[must_use]
    pub fn new(reader: Option<Box<dyn Reader>>) -> Self {
        let mut registry = Registry::default();
        let build = Family::<Labels, Gauge>::default();
        let labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("abi", ABI_VERSION.to_string())];
        build.get_or_create(&labels).set(1);
        registry.register("netpol_build_info", "The agent's version; always 1", build);
        // From a label change that is all in memory to a relist of a large cluster.
        let enforced =
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        registry.register(
            "netpol_event_to_kernel_seconds",
            "From taking changes of the cluster in until all of them are in the kernel",
            enforced.clone(),
        );
        let flows = FlowMetrics::register(&mut registry);
        let flow_entries = Arc::<AtomicU64>::default();
        let snapshot = Arc::<Mutex<Snapshot>>::default();
        registry.register_collector(Box::new(SnapshotCollector::new(snapshot.clone(), flow_entries.clone())));
        registry.register_collector(Box::new(Totals::new(snapshot.clone(), reader)));
        Self(Arc::new(Inner { registry, flows, enforced, flow_entries, snapshot }))
    }

    /// Counts a flow.
    pub fn flow(&self, flow: &Flow) {
        self.0.flows.record(flow);
    }

    /// Changes are in the kernel, so long after they were taken in.
    pub fn enforced(&self, took: Duration) {
        self.0.enforced.observe(took.as_secs_f64());
    }

    /// Flow entries there were when the tables were last looked through.
    pub fn set_flow_entries(&self, entries: u64) {
        self.0.flow_entries.store(entries, Ordering::Relaxed);
    }

    /// How things are now.
    pub fn publish(&self, snapshot: Snapshot) {
        *self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Everything as OpenMetrics text. Reads maps: not for the loop.
    ///
    /// # Errors
    /// If a metric cannot be written.
    pub fn scrape(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}
