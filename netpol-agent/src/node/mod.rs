//! The node side: which interfaces are pods', whose addresses are behind them, which devices lead out, and which addresses
//! are the node's own.
//!
//! In: netlink, and the addresses that pods of this node may have. Out: a [`NodeView`], kept up to date. It attaches
//! nothing, knows no pods and enters no namespace. Start at [`Node`].

mod locate;
mod name;
mod netlink;
mod preflight;
mod state;
pub mod view;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use name::NamePattern;
pub use view::{NodeView, PodInterface, Uplink};

use tokio::task::JoinHandle;

use crate::problem::Problem;
use locate::Locator;
use netlink::{Netlink, Notice};
use state::State;

/// Everything is asked for anew this often: a safety net under the notifications.
const RESYNC: Duration = Duration::from_secs(60);
/// Pause before a new connection after one broke.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long the kernel may take to tell everything; it takes milliseconds as a rule.
const DUMP_LIMIT: Duration = Duration::from_secs(5);

/// Why netlink cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No connection.
    #[error("cannot listen to the kernel's interface notifications (netlink): {0}")]
    Connect(#[source] io::Error),
    /// A request failed.
    #[error("cannot ask the kernel for {what} (netlink): {source}; needs CAP_NET_ADMIN")]
    Dump {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// No answer.
    #[error("the kernel did not tell of all interfaces, addresses and routes (netlink) within {DUMP_LIMIT:?}")]
    Silent,
}

/// Settings of the node side.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Names of the host's ends of pod interfaces; only veths whose other end is in another namespace count.
    pub pod_interfaces: NamePattern,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { pod_interfaces: NamePattern::new("veth*") }
    }
}

/// The node, seen through netlink in the network namespace of the thread that started it.
///
/// Nothing happens in the background: the view moves in [`Node::changed`] and [`Node::settle`] only.
pub struct Node {
    pod_interfaces: NamePattern,
    netlink: Netlink,
    state: State,
    locator: Locator,
    view: NodeView,
    /// When to look again though nothing changed.
    again: Option<Instant>,
    /// When everything was asked for last; none if that is due at once.
    dumped: Option<Instant>,
    /// It is being asked for: by a task, so that a caller of [`Node::changed`] that never waits long keeps it from nothing.
    dumping: Option<Dumping>,
    /// How many times somebody wanted everything to be asked for, and how many of those were done.
    wanted_looks: u64,
    looks: u64,
    /// When to connect anew, after the connection broke.
    reconnect: Option<Instant>,
    /// The view moved and [`Node::changed`] has not said so yet.
    unreported: bool,
}

/// Everything being asked for.
struct Dumping {
    task: JoinHandle<Result<State, NodeError>>,
    until: Instant,
    /// [`Node::wanted_looks`] as it began.
    looks: u64,
}

impl Node {
    /// Subscribes, asks the kernel for everything once, and returns with the first view.
    ///
    /// # Errors
    /// If netlink cannot be used.
    pub async fn start(config: &NodeConfig) -> Result<Self, NodeError> {
        let netlink = Netlink::connect()?;
        let state = netlink.dump().await?;
        let mut node = Self {
            pod_interfaces: config.pod_interfaces.clone(),
            netlink,
            state,
            locator: Locator::default(),
            view: NodeView::default(),
            again: None,
            dumped: Some(Instant::now()),
            dumping: None,
            wanted_looks: 0,
            looks: 0,
            reconnect: None,
            unreported: false,
        };
        node.look()?;
        node.unreported = false;
        Ok(node)
    }

    /// What on this node may get in the way of judging packets by `mask` bits of their mark, with what to do: for the start.
    ///
    /// # Errors
    /// If netlink cannot be used.
    pub async fn preflight(&self, mask: u32) -> Result<Vec<Problem>, NodeError> {
        preflight::routing_rules(self.netlink.handle(), mask).await
    }

    /// Settings under which services between pods on a bridge of this node do not work; nothing where there is no bridge.
    #[must_use]
    pub fn bridge_problems(&self) -> Vec<Problem> {
        let bridged = [false, true].into_iter().filter(|ipv6| self.state.has_bridge_with(*ipv6));
        bridged.filter_map(preflight::bridge_setting).collect()
    }

    /// Sets the addresses that pods of this node may have, those of other nodes' pods may be among them. New ones are
    /// looked for at once; those left out are forgotten.
    pub fn want(&mut self, addresses: BTreeSet<IpAddr>) {
        self.locator.want(addresses);
        if let Err(error) = self.look() {
            // The next resync asks again.
            tracing::warn!(%error, "cannot look for pod addresses now");
            self.dumped = None;
        }
    }

    /// The node as of the last [`Node::want`], [`Node::changed`] or [`Node::settle`].
    #[must_use]
    pub const fn view(&self) -> &NodeView {
        &self.view
    }

    /// Has everything that happened on the node before the call taken in: that is done once [`Node::looks`] is the number
    /// that this returns, which [`Node::changed`] reports. Who asks while the kernel is being asked shares the next time.
    pub const fn look_anew(&mut self) -> u64 {
        self.wanted_looks += 1;
        self.wanted_looks
    }

    /// How many of those are done.
    #[must_use]
    pub const fn looks(&self) -> u64 {
        self.looks
    }

    /// Takes in everything that happened on the node before the call: true if that was done within `limit`.
    pub async fn catch_up(&mut self, limit: Duration) -> bool {
        let number = self.look_anew();
        let wait = async {
            while self.looks < number {
                self.changed().await;
            }
        };
        let is_done = tokio::time::timeout(limit, wait).await.is_ok();
        // The caller has not looked at what was reported to this.
        self.unreported = true;
        is_done
    }

    /// Waits until the view has changed, or was looked at as [`Node::look_anew`] wanted. Cancel safe: nothing is lost, the
    /// next call goes on.
    pub async fn changed(&mut self) {
        while !self.unreported {
            if let Some(due) = self.reconnect {
                tokio::time::sleep_until(due.into()).await;
                self.reconnect = None;
                self.reconnect();
            }
            if let Err(error) = self.step().await {
                tracing::warn!(%error, "listening to the kernel again");
                self.reconnect = Some(Instant::now() + RECONNECT);
            }
        }
        self.unreported = false;
    }

    /// Waits until no wanted address is being looked for any more (it was found, or nobody answers for it), at most
    /// `limit`: true if so.
    pub async fn settle(&mut self, limit: Duration) -> bool {
        let wait = async {
            while !self.view.unresolved.is_empty() {
                self.changed().await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// One notification with all that wait behind it, one question that is due, or one full dump.
    async fn step(&mut self) -> Result<(), NodeError> {
        let Some(dumped) = self.dumped.filter(|_| self.looks == self.wanted_looks) else { return self.dump().await };
        let resync = dumped + RESYNC;
        let due = self.again.map_or(resync, |again| again.min(resync));
        let notice = tokio::select! {
            notice = self.netlink.notice() => Some(notice?),
            () = tokio::time::sleep_until(due.into()) => None,
        };
        if Instant::now() >= resync {
            self.dumped = None;
        }
        let mut next = notice;
        let mut look = next.is_none();
        while let Some(notice) = next {
            look |= self.take(notice);
            next = self.netlink.waiting_notice();
        }
        if look { self.look() } else { Ok(()) }
    }

    /// Asks the kernel for everything, or goes on with that.
    async fn dump(&mut self) -> Result<(), NodeError> {
        let dumping = self.dumping.get_or_insert_with(|| Dumping {
            task: tokio::spawn(self.netlink.dump()),
            until: Instant::now() + DUMP_LIMIT,
            looks: self.wanted_looks,
        });
        let looks = dumping.looks;
        let state = tokio::time::timeout_at(dumping.until.into(), &mut dumping.task).await;
        self.forget_dump();
        let Ok(state) = state else { return Err(NodeError::Silent) };
        self.state = state.map_err(|error| NodeError::Connect(io::Error::other(error)))??;
        self.dumped = Some(Instant::now());
        // While one look follows the other nobody else takes these.
        while let Some(notice) = self.netlink.waiting_notice() {
            self.take(notice);
        }
        self.unreported |= self.looks != looks;
        self.looks = looks;
        self.look()
    }

    /// True if the node is to be looked at again.
    fn take(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::Update(update) => return self.state.apply(update),
            Notice::Nothing => {}
            Notice::Lost => self.dumped = None,
        }
        false
    }

    fn look(&mut self) -> Result<(), NodeError> {
        let look = self.locator.look(&self.state, |name| self.pod_interfaces.matches(name), Instant::now());
        self.again = look.again;
        if look.view != self.view {
            self.view = look.view;
            self.unreported = true;
        }
        look.probes.into_iter().try_for_each(|probe| self.netlink.probe(probe))
    }

    fn reconnect(&mut self) {
        match Netlink::connect() {
            Ok(netlink) => {
                self.netlink = netlink;
                self.dumped = None;
                self.forget_dump();
            }
            Err(error) => tracing::warn!(%error, "cannot reconnect"),
        }
    }

    fn forget_dump(&mut self) {
        if let Some(dumping) = self.dumping.take() {
            dumping.task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
