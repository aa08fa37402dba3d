//! What the loop tells the metrics: flows as they come, how long changes take, and once a second how things are.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use netpol_common::abi::capacity;

use super::Pipeline;
use crate::cli::RunArgs;
use crate::datapath::figures::Figures;
use crate::datapath::pins::PinDir;
use crate::observe::export::Exporter;
use crate::observe::health::HealthAddress;
use crate::observe::metrics::{Metrics, MetricsServer, Sizes, Snapshot};

/// The metrics, and what the loop keeps for them.
pub(super) struct Metering {
    pub(super) metrics: Metrics,
    server: Option<MetricsServer>,
    /// Since when something taken in is not in the kernel.
    since: Option<Instant>,
    /// Sizes as of a generation: counting them walks everything.
    sizes: Option<(u64, Sizes)>,
    flow_capacity: u64,
}

impl Metering {
    /// Begins to count, and serves if that is asked for.
    ///
    /// # Errors
    /// If the counters cannot be opened, or nobody can listen at the address.
    pub(super) async fn start(args: &RunArgs, pins: &PinDir) -> Result<Self> {
        let metrics = Metrics::new(Some(Box::new(Figures::open(pins)?)));
        let server = MetricsServer::start(args.metrics_address, metrics.clone()).await?;
        if let (Some(server), HealthAddress::At(_)) = (&server, args.metrics_address) {
            tracing::info!(address = %server.address(), "serving metrics");
        }
        let per_pod = u64::from(capacity::FLOWS_PER_POD + capacity::UNANSWERED_PER_POD);
        let flow_capacity = 2 * per_pod * u64::from(args.max_pods);
        Ok(Self { metrics, server, since: None, sizes: None, flow_capacity })
    }

    /// Changes were taken in, now.
    pub(super) fn taken(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// The kernel was brought up to date, if `behind` is false.
    pub(super) fn applied(&mut self, behind: bool) {
        if !behind && let Some(since) = self.since.take() {
            self.metrics.enforced(since.elapsed());
        }
    }
}

impl Pipeline {
    /// Publishes how things are, where somebody may ask.
    pub(super) fn publish_metrics(&mut self) {
        let Some(standing) = self.standing.as_ref().filter(|_| self.metering.server.is_some()) else { return };
        let generation = self.enforcer.enforced_generation();
        let sizes = match self.metering.sizes.take() {
            Some((of, sizes)) if of == generation => sizes,
            _ => Sizes::of(self.enforcer.cluster(), self.enforcer.desired()),
        };
        self.metering.sizes = Some((generation, sizes.clone()));
        let namespace = |pod: Option<&crate::cluster::model::PodKey>| {
            pod.map_or_else(|| Arc::from(""), |key| key.namespace.clone())
        };
        let slots = self.enforcer.endpoints().iter().map(|local| (local.slot, namespace(local.pod.as_ref()))).collect();
        let counts = self.flows.counts(None);
        self.metering.metrics.publish(Snapshot {
            sizes,
            endpoints: standing.pods,
            problems: standing.problems,
            source: self.feed.report(),
            behind: self.enforcer.is_behind(),
            unresolved: self.node.view().unresolved.len(),
            untold: counts.unread + counts.refused,
            missed: counts.missed,
            unknown: counts.unknown,
            export_lost: self.flows.exporter().map_or(0, Exporter::lost),
            slots,
            flow_capacity: self.metering.flow_capacity,
        });
    }
}
