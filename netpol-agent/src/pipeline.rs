//! The only wiring: source, node, enforcer, event ring, socket and signals in one loop.
//!
//! One task owns the state, so that no two stages can disagree about it. Everything that waits for somebody else (a reader
//! of drops, a client of the socket) has a task or thread of its own.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use netpol_common::abi::{ABI_VERSION, Config, Mark, PORT_SET_BYTES, Prefix, V4, V6};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::{EXIT_OK, Pending, RunArgs};
use crate::datapath::apply::Applier;
use crate::datapath::attach::Hooks;
use crate::datapath::backstop::{self, Backstop};
use crate::datapath::desired::Tables;
use crate::datapath::events::EventRing;
use crate::datapath::flows::FlowTables;
use crate::datapath::housekeeping::Housekeeper;
use crate::datapath::installed::Installed;
use crate::datapath::loader::{self, Datapath, LoadOptions};
use crate::datapath::sizing::Sizing;
use crate::datapath::store::KernelStore;
use crate::datapath::takeover::{self, Others};
use crate::endpoints::{Endpoints, Left};
use crate::enforcer::{Enforcer, Parts};
use crate::flow::decode::decode;
use crate::flow::enrich::{Clock, enrich};
use crate::flow::sink::Printer;
use crate::node::{Node, NodeConfig};
use crate::observe::admin::{Admin, Call, Request};
use crate::observe::translation::Translation;
use crate::policy::{Compiler, Limits};
use crate::problem::{Problem, Severity};
use crate::source::{ManifestSource, Watch, WatchOptions};

/// How long a start or `sync` waits for addresses to be found before it goes on without them.
const RESOLVE_LIMIT: Duration = Duration::from_secs(3);
/// How often flows that are over are taken out of the tables.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How often what could not be applied is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The agent's parts while it runs.
struct Pipeline {
    source: ManifestSource,
    source_problems: Vec<Problem>,
    /// Other problems that the log has already.
    said: Vec<Problem>,
    node_name: String,
    node: Node,
    enforcer: Enforcer,
    clock: Clock,
    printer: Printer,
    unknown_events: u64,
    /// What was found on the node at the start.
    preflight: Vec<Problem>,
}

/// Runs the agent until SIGTERM or Ctrl-C.
///
/// # Errors
/// If it cannot start: no directory, no privilege, another agent on the same pins, or the kernel refuses the programs.
pub async fn run(args: &RunArgs) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    // The watch begins before the first read, so that nothing changes unseen in between.
    let mut watch = Watch::new(&args.manifests, WatchOptions::default())?;
    let (source, changes) = ManifestSource::load(&args.manifests)?;
    let started = Instant::now();
    let datapath = loader::open(&load_options(args)?)?;
    tracing::debug!(took = ?started.elapsed(), adopted = datapath.adopted, abi = ABI_VERSION, "programs verified");
    warn_of_what_was_kept(&datapath);
    if let Some(log) = datapath.debug_log {
        tokio::spawn(log);
    }
    keep_house(Housekeeper::open(&datapath.pins, datapath.config)?);
    let flows = FlowTables::open(&datapath.pins, datapath.config)?;
    let node_config = NodeConfig { pod_interfaces: args.pod_interfaces.clone() };
    let mut ring = EventRing::new(datapath.events).context("cannot wait on the event ring")?;
    let hooks = Hooks::new(datapath.programs, datapath.pins, args.attach);
    let mut pipeline = Pipeline {
        source,
        source_problems: Vec::new(),
        said: Vec::new(),
        node_name: args.node.clone(),
        node: Node::start(&node_config).await?,
        enforcer: enforcer(args, (datapath.store, flows), hooks, datapath.others)?,
        clock: clock()?,
        printer: Printer::start(args.output).context("cannot start the printer of drops")?,
        unknown_events: 0,
        preflight: Vec::new(),
    };
    pipeline.look_for_others(args.mark_mask).await;
    pipeline.take(changes);
    pipeline.settle().await;
    let (calls, mut called) = mpsc::channel(16);
    let _admin = Admin::start(&args.socket, calls)
        .with_context(|| format!("cannot make the socket {}; give another with --socket", args.socket.display()))?;
    tracing::info!(
        adopted = datapath.adopted,
        pods = pipeline.enforcer.statuses().len(),
        policies = pipeline.enforcer.cluster().policies().count(),
        "enforcing"
    );
    let mut retry = tokio::time::interval(RETRY);
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(call) = called.recv() => pipeline.answer(call).await,
            Some(()) = watch.changed() => pipeline.reload(),
            () = pipeline.node.changed() => pipeline.enforce(),
            records = ring.next() => pipeline.print(records.context("cannot wait on the event ring")?),
            _ = retry.tick() => pipeline.retry(),
        }
    }
    tracing::info!("stopping; what is enforced stays in force (remove it with `netpol-agent cleanup`)");
    drop(datapath.lock);
    Ok(ExitCode::from(EXIT_OK))
}

/// Takes flows that are over out of the tables now and then, away from everything that must answer at once.
fn keep_house(mut housekeeper: Housekeeper) {
    tokio::spawn(async move {
        let mut due = tokio::time::interval(HOUSEKEEPING);
        loop {
            due.tick().await;
            let sweep = move || (housekeeper.sweep(), housekeeper);
            let Ok((swept, kept)) = tokio::task::spawn_blocking(sweep).await else { return };
            housekeeper = kept;
            match swept {
                Ok(swept) => tracing::debug!(seen = swept.seen, removed = swept.removed, "flow tables swept"),
                Err(error) => tracing::warn!(%error, "cannot take flows that are over out of the tables; tried again"),
            }
        }
    });
}

/// Sizes that stay as they were, and what could not be carried over.
fn warn_of_what_was_kept(datapath: &Datapath) {
    for kept in &datapath.kept_sizes {
        tracing::warn!("{kept}");
    }
    for loss in &datapath.losses {
        tracing::warn!("{loss}");
    }
}

impl Pipeline {
    /// Looks for others that use our bits of the mark.
    async fn look_for_others(&mut self, mark_mask: u32) {
        match self.node.preflight(mark_mask).await {
            Ok(problems) => self.preflight = problems,
            Err(error) => tracing::warn!(%error, "cannot look for what uses the same bits of packet marks"),
        }
    }

    /// Takes changes of the manifests in and says what is newly wrong.
    fn take(&mut self, changes: crate::source::Changes) {
        for problem in changes.problems.iter().filter(|it| !self.source_problems.contains(it)) {
            say(problem);
        }
        self.source_problems = changes.problems;
        self.enforcer.take(changes.events);
    }

    fn reload(&mut self) {
        let changes = self.source.reload();
        self.take(changes);
        self.enforce();
    }

    fn enforce(&mut self) {
        let started = Instant::now();
        self.enforcer.enforce(self.node.view());
        self.node.want(self.enforcer.candidate_addresses(&self.node_name));
        let problems = self.problems();
        for problem in problems.iter().filter(|it| !self.said.contains(it)) {
            say(problem);
        }
        self.said = problems;
        tracing::debug!(generation = self.enforcer.generation(), took = ?started.elapsed(), "enforced");
    }

    /// What is not enforced as written, but for what the source knows.
    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.enforcer.problems();
        problems.extend_from_slice(&self.node.view().problems);
        problems.extend_from_slice(&self.preflight);
        problems.extend(self.node.bridge_problems());
        problems
    }

    /// Enforces, and waits until every pod's place is known.
    async fn settle(&mut self) {
        self.enforcer.compile();
        self.node.want(self.enforcer.candidate_addresses(&self.node_name));
        let started = Instant::now();
        self.node.settle(RESOLVE_LIMIT).await;
        tracing::debug!(took = ?started.elapsed(), unresolved = ?self.node.view().unresolved, "looked for pods");
        self.enforce();
    }

    fn retry(&mut self) {
        self.enforcer.tend();
        if self.enforcer.is_behind() || self.enforcer.wants_another_attempt() {
            self.enforce();
        }
    }

    fn print(&mut self, records: Vec<bytes::Bytes>) {
        let provenance = self.enforcer.provenance();
        for record in records {
            match decode(record) {
                Ok(event) => {
                    let flow = enrich(&event, self.clock, self.enforcer.cluster(), &provenance);
                    self.printer.flow(&flow);
                }
                Err(error) => {
                    if self.unknown_events == 0 {
                        tracing::error!(%error, "an event cannot be understood; more like it are only counted");
                    }
                    self.unknown_events += 1;
                }
            }
        }
    }

    async fn answer(&mut self, call: Call) {
        let value = match call.request {
            Request::Sync => {
                self.node.catch_up().await;
                let changes = self.source.reload();
                self.take(changes);
                self.settle().await;
                self.status()
            }
            Request::Status => self.status(),
            Request::Counters => self.counters(),
        };
        if call.answer.send(value).is_err() {
            tracing::debug!("a client did not wait for its answer");
        }
    }

    fn status(&self) -> Value {
        let mut problems = self.source_problems.clone();
        problems.extend(self.problems());
        let backstop = match backstop::dropped() {
            Ok(Some(dropped)) => json!({ "state": "in-force", "dropped": dropped }),
            Ok(None) => json!({ "state": "missing" }),
            Err(error) => json!({ "state": "missing", "error": error.to_string() }),
        };
        let lost = self.enforcer.store().events_lost().map_or(Value::Null, Value::from);
        json!({
            "settled": !self.enforcer.is_behind() && self.node.view().unresolved.is_empty(),
            "generation": self.enforcer.generation(),
            "endpoints": self.enforcer.statuses(),
            "uplinks": self.enforcer.uplinks(),
            "backstop": backstop,
            "problems": problems,
            "events": { "lost": lost, "unread": self.printer.lost(), "unknown": self.unknown_events },
        })
    }

    fn counters(&self) -> Value {
        let mut counters = Vec::new();
        let mut translation = Vec::new();
        let mut total = Translation::default();
        for local in self.enforcer.endpoints().iter() {
            let Ok(of_slot) = self.enforcer.store().counters(local.slot) else {
                return json!({ "error": format!("cannot read the counters of slot {}", local.slot) });
            };
            let of_pod = Translation::of(&of_slot);
            total = total.plus(of_pod);
            let pod = local.pod.as_ref().map(ToString::to_string).unwrap_or_default();
            if of_pod != Translation::default() {
                translation.push(json!({ "pod": pod, "packets": of_pod }));
            }
            for ((direction, reason), counter) in of_slot {
                counters.push(json!({
                    "pod": pod,
                    "direction": direction.name(),
                    "reason": reason.name(),
                    "packets": counter.packets,
                    "bytes": counter.bytes,
                }));
            }
        }
        json!({ "counters": counters, "translation": { "pods": translation, "total": total } })
    }
}

fn say(problem: &Problem) {
    match problem.severity {
        Severity::Refused => tracing::error!("{problem}"),
        Severity::Note => tracing::warn!("{problem}"),
    }
}

/// What to load, as the flags say.
pub(crate) fn load_options(args: &RunArgs) -> Result<LoadOptions> {
    let mut config = loader::default_config()?.with_mark_mask(args.mark_mask);
    let slots_in_mark = Mark::slots(args.mark_mask);
    if u32::from(args.max_pods) > slots_in_mark {
        bail!(
            "--max-pods {} does not fit into --mark-mask {:#x}, which holds {} pods; give a wider mask or fewer pods",
            args.max_pods,
            args.mark_mask,
            slots_in_mark
        );
    }
    set_service_ranges(&mut config, &args.service_cidr)?;
    for (set, flag) in [
        (args.strict_tcp, Config::STRICT_TCP),
        (args.enforce_own_node, Config::ENFORCE_OWN_NODE),
        (args.allow_any_source, Config::ANY_SOURCE),
    ] {
        config.flags |= if set { flag } else { 0 };
    }
    let sizing = Sizing { slots: u32::from(args.max_pods) + 1, ..Sizing::default() };
    Ok(LoadOptions { bpffs: args.bpffs.clone(), config, sizing })
}

/// One service range a family.
fn set_service_ranges(config: &mut Config, ranges: &[IpNet]) -> Result<()> {
    for range in ranges {
        let taken = match range {
            IpNet::V4(range) => {
                let (address, mask) = (V4::from(range.network()), V4::from(range.netmask()));
                std::mem::replace(&mut config.services_v4, Prefix { address: [address.0], mask: [mask.0] })
                    != Prefix::NONE
            }
            IpNet::V6(range) => {
                let (address, mask) = (V6::from(range.network()), V6::from(range.netmask()));
                std::mem::replace(&mut config.services_v6, Prefix { address: address.0, mask: mask.0 }) != Prefix::NONE
            }
        };
        if taken {
            bail!("--service-cidr {range} is the second range of its family; give one IPv4 and one IPv6 range");
        }
        if range.prefix_len() == 0 {
            bail!(
                "--service-cidr {range} is every address; give the range of kube-apiserver's --service-cluster-ip-range"
            );
        }
    }
    Ok(())
}

fn enforcer(
    args: &RunArgs,
    (mut store, flows): (KernelStore, FlowTables),
    hooks: Hooks,
    others: Others,
) -> Result<Enforcer> {
    let left = takeover::left(&mut store, &others, &hooks)?;
    let actual = store.actual()?;
    let slots = u16::try_from(store.slots()).context("more slots than a flow key can name")?;
    let numbers = actual.port_sets();
    let mut tables = Tables { addresses: actual.addresses, cidrs: actual.cidrs, ..Tables::default() };
    for (key, value) in actual.allow {
        tables.allow.entry(key.policy).or_default().insert(key.identity, value);
    }
    for number in numbers {
        let bits: Arc<[u8; PORT_SET_BYTES]> = store.port_set(number)?.into();
        tables.port_sets.insert(number, bits);
    }
    let installed = Installed { tables, words: actual.words };
    let limits = Limits { slots: u32::from(slots), ..Limits::default() };
    let mut endpoints = Endpoints::new(slots, args.pending_pods == Pending::Deny);
    let adopted = left.endpoints.iter().map(|(&ifindex, &endpoint)| Left { ifindex, endpoint });
    endpoints.adopt(adopted, installed.words.keys().copied().chain(left.freed));
    Ok(Enforcer::new(Parts {
        compiler: Compiler::new(limits, installed.numbers()),
        applier: Applier::new(installed, args.on_apply_failure.into()),
        store,
        hooks,
        endpoints,
        flows,
        backstop: Backstop::new(args.mark_mask),
        live: left.live,
        others,
    }))
}

/// Wall-clock time at the zero of CLOCK_MONOTONIC, which events are stamped with.
fn clock() -> Result<Clock> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("cannot read CLOCK_MONOTONIC")?;
    let zero = SystemTime::now().checked_sub(Duration::from(now)).context("the wall clock is before the boot")?;
    Ok(Clock { zero })
}
