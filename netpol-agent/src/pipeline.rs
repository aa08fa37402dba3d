//! The only wiring: source, node, enforcer, event ring, socket and signals in one loop.
//!
//! One task owns the state, so that no two stages can disagree about it. Everything that waits for somebody else (a reader
//! of drops, a client of the socket) has a task or thread of its own.

mod answers;
mod asking;
mod attach;
mod explain;
pub(crate) mod feed;
mod flows;
mod metering;
mod retire;
pub(crate) mod start;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netpol_common::abi::ABI_VERSION;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use self::asking::{Answer, Asking};
use self::attach::Waiting;
use self::feed::Feed;
use self::flows::Flows;
use self::metering::Metering;
use crate::attachments::Attachments;
use crate::cli::{CniArgs, EXIT_OK, RunArgs};
use crate::cni::install::CniInstaller;
use crate::cni::records::Records;
use crate::datapath::attach::Hooks;
use crate::datapath::events::EventRing;
use crate::datapath::flows::FlowTables;
use crate::datapath::housekeeping::Housekeeper;
use crate::datapath::jiffies::Jiffies;
use crate::datapath::loader::{self, Datapath};
use crate::datapath::pins::PinLock;
use crate::enforcer::Enforcer;
use crate::node::{Node, NodeConfig, NodeView};
use crate::observe::admin::{Admin, Asked, Call, Request};
use crate::observe::events_kube::PolicyEvents;
use crate::observe::export::Exporter;
use crate::observe::health::{HealthServer, Vitals};
use crate::observe::metrics::Metrics;
use crate::preflight;
use crate::problem::{Problem, Severity};

/// How long a start or `sync` waits for addresses to be found before it goes on without them.
const RESOLVE_LIMIT: Duration = Duration::from_secs(3);
/// How often flows that are over are taken out of the tables.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How often what could not be applied is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The agent's parts while it runs.
struct Pipeline {
    feed: Feed,
    /// The whole cluster was seen, and is enforced: before that nothing is known, and nothing is changed.
    begun: bool,
    /// An earlier agent's policy is in force.
    adopted: bool,
    attachments: Attachments,
    records: Records,
    cni: CniArgs,
    socket: PathBuf,
    /// Keeps the plugin where the runtime finds it.
    installer: Option<CniInstaller>,
    /// ADDs that wait for their pod.
    waiting: Vec<Waiting>,
    /// Pods that were asked for, past the source.
    asking: Asking,
    source_problems: Vec<Problem>,
    /// Other problems that the log has already.
    said: Vec<Problem>,
    node_name: String,
    enforce_own_node: bool,
    node: Node,
    enforcer: Enforcer,
    flows: Flows,
    /// What was found on the node at the start.
    preflight: Vec<Problem>,
    /// For the health checks.
    vitals: watch::Sender<Vitals>,
    /// Tells authors of policies, where there is an API server.
    policy_events: Option<PolicyEvents>,
    metering: Metering,
}

/// What the loop waits for beside the pipeline's own parts, and what lives as long as the agent.
struct Inbox {
    ring: EventRing,
    calls: mpsc::Receiver<Call>,
    asked: mpsc::Receiver<Answer>,
    _admin: Admin,
    _health: Option<HealthServer>,
    _lock: PinLock,
}

/// Runs the agent until SIGTERM or Ctrl-C.
///
/// # Errors
/// If it cannot start: no directory, no privilege, another agent on the same pins, or the kernel refuses the programs.
pub async fn run(args: &RunArgs) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let (mut pipeline, mut inbox) = assemble(args).await?;
    let retire = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        retire = pipeline.serve(&mut inbox) => Some(retire?),
    };
    if let Some(answer) = retire {
        // Its installer and its hooks must not bring back what is being removed.
        let vitals = pipeline.end();
        let places = args.places();
        retire::retire(&places, answer)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = retire::idle(&places, &mut inbox.calls, &vitals) => {}
        }
    } else {
        tracing::info!("stopping; what is enforced stays in force (remove it with `netpol-agent cleanup`)");
    }
    Ok(ExitCode::from(EXIT_OK))
}

/// Opens everything, enforces what is known already, and serves the socket.
async fn assemble(args: &RunArgs) -> Result<(Pipeline, Inbox)> {
    let feed = Feed::open(args).await?;
    let datapath = open_datapath(args)?;
    let metering = Metering::start(args, &datapath.pins).await?;
    let housekeeper = Housekeeper::open(&datapath.pins, datapath.config, clock_of_programs()?)?;
    keep_house(housekeeper, metering.metrics.clone());
    let flow_tables = FlowTables::open(&datapath.pins, datapath.config, clock_of_programs()?)?;
    let node_config = NodeConfig { pod_interfaces: args.pod_interfaces.clone() };
    let ring = EventRing::new(datapath.events).context("cannot wait on the event ring")?;
    let hooks = Hooks::new(datapath.programs, datapath.pins, args.attach);
    let (asking, asked) = Asking::new();
    let (vitals, watched) = watch::channel(Vitals::default());
    let _health = HealthServer::start(args.health_address, watched).await?;
    let mut pipeline = Pipeline {
        policy_events: feed.client().map(|client| PolicyEvents::start(client, &args.node)),
        flows: Flows::start(args, feed.client(), metering.metrics.clone()).await?,
        feed,
        begun: false,
        adopted: datapath.adopted,
        attachments: Attachments::new(&args.node),
        records: Records::open(&args.state_dir)?,
        cni: args.cni.clone(),
        socket: args.socket.clone(),
        installer: None,
        waiting: Vec::new(),
        asking,
        source_problems: Vec::new(),
        said: Vec::new(),
        node_name: args.node.clone(),
        enforce_own_node: args.enforce_own_node,
        node: Node::start(&node_config).await?,
        enforcer: start::enforcer(args, (datapath.store, flow_tables), hooks, datapath.others)?,
        preflight: Vec::new(),
        vitals,
        metering,
    };
    // One that ended before it had seen the cluster left maps, and every pod as it was before netpol.
    pipeline.adopted &= pipeline.enforcer.has_policy_from_before();
    pipeline.look_for_others(args).await;
    pipeline.recall()?;
    pipeline.attachments.set_strangers(pipeline.strangers());
    pipeline.reload().await;
    let (sender, calls) = mpsc::channel(16);
    let _admin = Admin::start(&args.socket, sender)
        .with_context(|| format!("cannot make the socket {}; give another with --socket", args.socket.display()))?;
    Ok((pipeline, Inbox { ring, calls, asked, _admin, _health, _lock: datapath.lock }))
}

/// Loads the programs, and says what was kept of what an earlier agent left.
fn open_datapath(args: &RunArgs) -> Result<Datapath> {
    let started = Instant::now();
    let mut datapath = loader::open(&start::load_options(args)?)?;
    tracing::debug!(took = ?started.elapsed(), adopted = datapath.adopted, abi = ABI_VERSION, "programs verified");
    warn_of_what_was_kept(&datapath);
    if let Some(log) = datapath.debug_log.take() {
        tokio::spawn(log);
    }
    Ok(datapath)
}

fn clock_of_programs() -> Result<Jiffies> {
    Jiffies::open()
        .context("cannot read the clock that flows are stamped with (jiffies); needs CAP_BPF and CAP_NET_ADMIN")
}

/// Takes flows that are over out of the tables now and then, away from everything that must answer at once.
fn keep_house(mut housekeeper: Housekeeper, metrics: Metrics) {
    tokio::spawn(async move {
        let mut due = tokio::time::interval(HOUSEKEEPING);
        loop {
            due.tick().await;
            let sweep = move || (housekeeper.sweep(), housekeeper);
            let Ok((swept, kept)) = tokio::task::spawn_blocking(sweep).await else { return };
            housekeeper = kept;
            match swept {
                Ok(swept) => {
                    metrics.set_flow_entries(swept.seen.saturating_sub(swept.removed));
                    tracing::debug!(seen = swept.seen, removed = swept.removed, "flow tables swept");
                }
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
    /// The loop; it ends when somebody wants the agent to retire, who is to be answered.
    async fn serve(&mut self, inbox: &mut Inbox) -> Result<oneshot::Sender<Value>> {
        let mut retry = tokio::time::interval(RETRY);
        loop {
            if self.begun && self.installer.is_none() {
                self.install_plugin();
            }
            self.beat();
            // In no order: whatever always has something new, as the objects of a tenant who changes them without end, must not
            // keep the others from their turn.
            tokio::select! {
                Some(call) = inbox.calls.recv() => if let Some(answer) = self.answer(call).await {
                    return Ok(answer);
                },
                () = self.feed.changed() => self.reload().await,
                Some(pod) = inbox.asked.recv() => self.take_asked(pod),
                () = installer_changed(&mut self.installer) => self.tell_problems(),
                () = self.node.changed() => self.enforce(),
                records = inbox.ring.next() => {
                    self.flows.take(records.context("cannot wait on the event ring")?, &self.enforcer);
                }
                _ = retry.tick() => self.retry(),
            }
        }
    }

    /// Ends everything that acts by itself; what health says goes on.
    fn end(self) -> watch::Sender<Vitals> {
        self.vitals
    }

    /// Looks for others that use our bits of the mark.
    async fn look_for_others(&mut self, args: &RunArgs) {
        match self.node.preflight(args.mark_mask).await {
            Ok(problems) => self.preflight = problems,
            Err(error) => tracing::warn!(%error, "cannot look for what uses the same bits of packet marks"),
        }
        self.preflight.extend(preflight::at_start(args));
    }

    /// Takes changes of the manifests in and says what is newly wrong.
    fn take(&mut self, changes: crate::source::Changes) {
        for problem in changes.problems.iter().filter(|it| !self.source_problems.contains(it)) {
            say(problem);
        }
        self.source_problems = changes.problems;
        self.asking.seen(&changes.events);
        if !changes.events.is_empty() {
            self.metering.taken();
        }
        let events: Vec<_> = changes.events.into_iter().map(|event| self.attachments.take(event)).collect();
        self.flows.remember(&events, self.enforcer.cluster());
        self.enforcer.take(events);
    }

    /// Takes in what is new in the source, and enforces it as soon as the whole cluster was seen once.
    async fn reload(&mut self) {
        let changes = self.feed.take();
        self.take(changes);
        if self.begun {
            self.enforce();
        } else {
            self.begin().await;
        }
    }

    /// Begins to enforce, if the whole cluster was seen. Until then interfaces that came while no agent ran are held.
    async fn begin(&mut self) {
        if self.feed.is_whole() {
            self.begun = true;
            self.settle().await;
            let (pods, policies) = (self.enforcer.statuses().len(), self.enforcer.cluster().policies().count());
            tracing::info!(pods, policies, "enforcing");
        } else {
            self.enforce();
        }
    }

    fn enforce(&mut self) {
        if !self.begun {
            // Where nothing was enforced before, nothing is to be cut off for want of knowledge.
            if self.adopted {
                self.enforcer.hold(&self.view());
            }
            return;
        }
        let started = Instant::now();
        self.attachments.look(self.node.view(), started);
        self.flows.set_own_addresses(&self.node.view().own_addresses);
        self.enforcer.enforce(&self.view());
        self.metering.applied(self.enforcer.is_behind());
        self.look_for_pods();
        self.tell_problems();
        tracing::debug!(generation = self.enforcer.generation(), took = ?started.elapsed(), "enforced");
        self.answer_waiting();
    }

    /// Says what is newly wrong.
    fn tell_problems(&mut self) {
        let problems = self.problems();
        for problem in problems.iter().filter(|it| !self.said.contains(it)) {
            say(problem);
        }
        self.said = problems;
    }

    /// The node as netlink shows it, each interface bound to its pod where the plugin told whose it is.
    fn view(&self) -> NodeView {
        self.attachments.bind(self.node.view())
    }

    /// Has pods looked for whose place nobody told.
    fn look_for_pods(&mut self) {
        self.node.want(self.attachments.unplaced());
    }

    /// What is not enforced as written, but for what the source knows.
    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.enforcer.problems();
        problems.extend(self.view().problems);
        problems.extend_from_slice(&self.preflight);
        problems.extend(self.installer.iter().flat_map(CniInstaller::problems).cloned());
        problems.extend(self.node.bridge_problems());
        problems.extend(self.flows.exporter().and_then(Exporter::problem));
        problems
    }

    /// Enforces, and waits until every pod's place is known.
    async fn settle(&mut self) {
        self.enforcer.compile();
        self.look_for_pods();
        let started = Instant::now();
        self.node.settle(RESOLVE_LIMIT).await;
        tracing::debug!(took = ?started.elapsed(), unresolved = ?self.node.view().unresolved, "looked for pods");
        self.enforce();
    }

    fn retry(&mut self) {
        self.flows.tend(&self.enforcer);
        self.enforcer.tend();
        if self.enforcer.is_behind() || self.enforcer.wants_another_attempt() {
            self.enforce();
        }
        self.tend_attachments();
        self.tell_authors();
        self.publish_metrics();
    }

    /// Answers a call; that of somebody who wants the agent to retire is given back.
    async fn answer(&mut self, call: Call) -> Option<oneshot::Sender<Value>> {
        let value = match call.asked {
            Asked::Operator(Request::Retire) => return Some(call.answer),
            Asked::Plugin(request) => {
                self.serve_plugin(request, call.answer).await;
                return None;
            }
            Asked::Operator(Request::Sync) => {
                self.node.catch_up().await;
                let changes = self.feed.take();
                self.take(changes);
                if self.begun {
                    self.settle().await;
                } else {
                    self.begin().await;
                }
                self.status()
            }
            Asked::Operator(Request::Status) => self.status(),
            Asked::Operator(Request::Counters) => self.counters(),
            Asked::Operator(Request::Explain { source, destination, namespace }) => {
                self.explain((&source, &destination, &namespace), call.answer);
                return None;
            }
            Asked::Operator(Request::Endpoints) => self.endpoint_list(),
            Asked::Operator(Request::Policies) => self.policy_list(),
            Asked::Operator(Request::Policy { namespace, name }) => self.policy(&namespace, &name),
        };
        if call.answer.send(value).is_err() {
            tracing::debug!("a client did not wait for its answer");
        }
        None
    }
}

/// Waits until the installer has found something out. Cancel safe.
async fn installer_changed(installer: &mut Option<CniInstaller>) {
    match installer {
        Some(installer) => installer.changed().await,
        None => std::future::pending().await,
    }
}

fn say(problem: &Problem) {
    match problem.severity {
        Severity::Refused => tracing::error!("{problem}"),
        Severity::Note => tracing::warn!("{problem}"),
    }
}
