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
    dumping: Option<JoinHandle<Result<State, NodeError>>>,
    /// When to connect anew, after the connection broke.
    reconnect: Option<Instant>,
    /// The view moved and [`Node::changed`] has not said so yet.
    unreported: bool,
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

    /// Takes in everything that happened on the node before the call.
    pub async fn catch_up(&mut self) {
        // What was asked before is older.
        self.forget_dump();
        match self.netlink.dump().await {
            Ok(state) => {
                self.state = state;
                self.dumped = Some(Instant::now());
            }
            Err(error) => {
                tracing::warn!(%error, "cannot ask the kernel for everything now");
                self.dumped = None;
            }
        }
        if let Err(error) = self.look() {
            tracing::warn!(%error, "cannot look for pod addresses now");
            self.dumped = None;
        }
    }

    /// Waits until the view has changed. Cancel safe: nothing is lost, the next call goes on.
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
        let Some(dumped) = self.dumped else {
            let dumping = self.dumping.get_or_insert_with(|| tokio::spawn(self.netlink.dump()));
            let state = dumping.await;
            self.dumping = None;
            self.state = state.map_err(|error| NodeError::Connect(io::Error::other(error)))??;
            self.dumped = Some(Instant::now());
            return self.look();
        };
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
            dumping.abort();
        }
    }
}

#[cfg(test)]
mod tests;
