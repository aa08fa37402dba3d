//! Records of the event ring -> flows -> who wants them: the printer and the observers. Nothing here waits for either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use kube::Client;

use super::start;
use crate::cli::RunArgs;
use crate::cluster::ClusterState;
use crate::cluster::is_live;
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod, PodKey};
use crate::enforcer::Enforcer;
use crate::flow::Flow;
use crate::flow::decode::decode;
use crate::flow::departed::Departed;
use crate::flow::enrich::{Clock, Surroundings, enrich};
use crate::flow::sink::Printer;
use crate::observe::answer::EventCounts;
use crate::observe::events_pod::PodEvents;
use crate::observe::export::Exporter;
use crate::observe::hubble::Hub;
use crate::observe::hubble::listen::{self, Served};
use crate::observe::hubble::peers::{self, Address, PeerNode};
use crate::observe::hubble::proto::flow::LostEventSource;
use crate::observe::metrics::Metrics;

/// Everything about flows that the pipeline has.
pub(super) struct Flows {
    clock: Clock,
    node: String,
    own_addresses: BTreeSet<IpAddr>,
    departed: Departed,
    printer: Printer,
    hub: Arc<Hub>,
    metrics: Metrics,
    exporter: Option<Exporter>,
    pod_events: Option<PodEvents>,
    agent_namespace: String,
    has_peers: bool,
    /// Pods of agents, or the addresses of this node, may have changed.
    peers_due: bool,
    /// Events that the programs could not hand over, as far as observers were told.
    told_lost: Option<u64>,
    told_refused: BTreeMap<u16, u64>,
    unknown: u64,
    _served: Vec<Served>,
}

impl Flows {
    /// Starts the printer, the servers, and whatever else the flags ask for; Events on pods need a client.
    pub(super) async fn start(args: &RunArgs, client: Option<Client>, metrics: Metrics) -> Result<Self> {
        let hub = Arc::new(Hub::new(&start::node_name(args), args.flow.hubble_flows));
        let advertised = args
            .flow
            .hubble_address
            .map(|address| Address { port: address.port(), tls: args.flow.hubble_tls_cert.is_some() });
        let socket = args.flow.socket(&args.socket);
        let mut served = vec![
            listen::on_socket(&socket, hub.clone(), advertised.unwrap_or_default())
                .context("cannot serve flows; give another socket with --hubble-socket")?,
        ];
        if let Some(address) = args.flow.hubble_address {
            let tls = args.flow.tls();
            let listening = listen::on_address(address, tls.as_ref(), hub.clone()).await;
            served.push(listening.context("cannot serve flows on --hubble-address")?);
        }
        Ok(Self {
            clock: start::clock()?,
            node: start::node_name(args),
            own_addresses: BTreeSet::new(),
            departed: Departed::default(),
            printer: Printer::start(args.output).context("cannot start the printer of drops")?,
            hub,
            metrics,
            exporter: args
                .export
                .config(&start::node_name(args))
                .map(Exporter::start)
                .transpose()
                .context("cannot start the export of flows")?,
            pod_events: client.filter(|_| args.export.pod_events).map(|client| PodEvents::start(client, &args.node)),
            agent_namespace: args.flow.agent_namespace.clone(),
            has_peers: advertised.is_some(),
            peers_due: true,
            told_lost: None,
            told_refused: BTreeMap::new(),
            unknown: 0,
            _served: served,
        })
    }

    /// Remembers the pods that these events take away, and whether they concern agents, before they are taken in.
    pub(super) fn remember(&mut self, events: &[ClusterEvent], cluster: &ClusterState) {
        let now = SystemTime::now();
        self.peers_due |= events.iter().any(|event| peers::concerns(event, &self.agent_namespace));
        let known = |key: &PodKey| cluster.pod(key).filter(|pod| is_live(pod));
        for event in events {
            let gone = match event {
                ClusterEvent::Delete(ObjectRef::Pod(key)) => known(key),
                ClusterEvent::Apply(Object::Pod(pod)) => known(&pod.key).filter(|before| gives_up(before, pod)),
                ClusterEvent::Delete(_) | ClusterEvent::Apply(_) => None,
            };
            if let Some(pod) = gone {
                self.departed.add(pod, now);
            }
        }
    }

    /// The addresses of this node, from now on.
    pub(super) fn set_own_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        if self.own_addresses != *addresses {
            self.peers_due = true;
            self.own_addresses.clone_from(addresses);
        }
    }

    /// Tells of what the programs saw.
    pub(super) fn take(&mut self, records: Vec<Bytes>, enforcer: &Enforcer) {
        let provenance = enforcer.provenance();
        for record in records {
            let event = match decode(record) {
                Ok(event) => event,
                Err(error) => {
                    if self.unknown == 0 {
                        tracing::error!(%error, "an event cannot be understood; more like it are only counted");
                    }
                    self.unknown += 1;
                    continue;
                }
            };
            let flow = enrich(
                &event,
                Surroundings {
                    clock: self.clock,
                    cluster: enforcer.cluster(),
                    departed: &self.departed,
                    provenance: &provenance,
                    node: &self.node,
                    own_addresses: &self.own_addresses,
                },
            );
            self.tell(&flow, enforcer.cluster());
        }
    }

    /// Hands a flow to all who want flows; none of them makes it wait.
    fn tell(&mut self, flow: &Flow, cluster: &ClusterState) {
        let told = self.hub.take(flow);
        self.metrics.flow(flow);
        if let Some(exporter) = &self.exporter {
            told.iter().for_each(|entry| exporter.take(entry));
        }
        if !self.exporter.as_ref().is_some_and(Exporter::has_stdout) {
            self.printer.flow(flow);
        }
        let pod = flow.pod.as_ref().and_then(|key| cluster.pod(key));
        if let (Some(events), Some(pod)) = (&mut self.pod_events, pod) {
            events.flow(flow, pod);
        }
    }

    /// The export to a file or standard output, if there is one.
    pub(super) const fn exporter(&self) -> Option<&Exporter> {
        self.exporter.as_ref()
    }

    /// Tells observers what the programs could not hand over, and who their peers are; to be called every second or so.
    pub(super) fn tend(&mut self, enforcer: &Enforcer) {
        self.departed.expire(SystemTime::now());
        if let Ok(lost) = enforcer.store().events_lost() {
            let told = self.told_lost.replace(lost);
            self.tell_lost(LostEventSource::PerfEventRingBuffer, told.map_or(0, |told| lost.saturating_sub(told)));
        }
        let newly_refused = enforcer.endpoints().iter().map(|local| self.newly_refused(local.slot, enforcer)).sum();
        self.tell_lost(LostEventSource::ObserverEventsQueue, newly_refused);
        if self.has_peers && std::mem::take(&mut self.peers_due) {
            let mut peers = peers::of_cluster(enforcer.cluster(), &self.agent_namespace);
            // Without a pod of its own it is a peer all the same.
            let own = self.own_addresses.first().filter(|_| !peers.iter().any(|peer| *peer.name == *self.node));
            peers.extend(own.map(|&address| PeerNode { name: self.node.as_str().into(), address }));
            self.hub.set_peers(peers);
        }
    }

    fn tell_lost(&self, source: LostEventSource, count: u64) {
        if let (Some(lost), Some(exporter)) = (self.hub.lost(source, count), &self.exporter) {
            exporter.take(&lost);
        }
    }

    /// Events of a slot beyond its share since it was last asked for.
    fn newly_refused(&mut self, slot: u16, enforcer: &Enforcer) -> u64 {
        let Ok(refused) = enforcer.store().events_refused(slot) else { return 0 };
        // The agent before told of what there was when this one came.
        let told = self.told_refused.insert(slot, refused);
        told.map_or(0, |told| refused.saturating_sub(told))
    }

    /// Figures for the socket.
    pub(super) fn counts(&self, lost: Option<u64>) -> EventCounts {
        let ring = self.hub.ring();
        EventCounts {
            lost,
            unread: self.printer.lost(),
            unknown: self.unknown,
            seen: ring.seen(),
            missed: ring.missed(),
            refused: self.told_refused.values().sum(),
        }
    }
}

/// True if a pod has no longer what it was known by.
fn gives_up(before: &Pod, after: &Pod) -> bool {
    !is_live(after) || before.uid != after.uid || before.addresses != after.addresses
}
