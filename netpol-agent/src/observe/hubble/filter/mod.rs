//! Which flows a request asks for: FlowFilter messages in, a [`Selection`] that says yes or no out. Pure.
//!
//! A flow is kept if any filter of the whitelist matches it (none: all do) and none of the blacklist does. Inside one
//! filter every field that has values must match, by any of its values. Lost events are not asked about.

mod checks;
mod endpoint;
mod labels;
mod names;
mod packet;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::labels::{LabelSelector, SelectorError};
pub use self::names::PatternError;
pub use self::packet::ports_of;
use super::proto::flow::{Flow, FlowFilter};

/// One field's question about a flow.
type Check = Box<dyn Fn(&Flow) -> bool + Send + Sync>;

/// Why a filter cannot be used. The clients show it as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No address, no CIDR.
    #[error("invalid IP address in filter: {0:?}")]
    Address(String),
    /// No CIDR.
    #[error("invalid CIDR in filter: {0:?}")]
    Cidr(String),
    /// A pod or service name of nothing.
    #[error("invalid filter, must be [namespace/][<name>], got {0:?}")]
    Name(String),
    /// No port.
    #[error("invalid {side} port filter: invalid port {port:?}, must be 0 to 65535")]
    Port {
        /// `source` or `destination`.
        side: &'static str,
        /// What was given.
        port: String,
    },
    /// No protocol that is known here.
    #[error(
        "unknown protocol: {0:?}, must be one of icmp, icmpv4, icmpv6, tcp, udp, sctp, vrrp, igmp, dns, http, kafka"
    )]
    Protocol(String),
    /// A label selector.
    #[error("invalid {side} label filter: {error}")]
    Label {
        /// `source`, `destination` or `node`.
        side: &'static str,
        /// What is wrong with it.
        error: SelectorError,
    },
    /// A pattern of DNS names or nodes.
    #[error("invalid {what} pattern {pattern:?} in filter: {error}")]
    Pattern {
        /// What it is a pattern of.
        what: &'static str,
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        error: PatternError,
    },
    /// An empty cluster name.
    #[error("invalid filter, name must not be empty")]
    EmptyClusterName,
    /// CEL.
    #[error("filters with a CEL expression are not supported by this server; use the other fields of the filter")]
    Expression,
}

/// Every field of one FlowFilter.
struct Filter(Vec<Check>);

impl Filter {
    fn matches(&self, flow: &Flow) -> bool {
        self.0.iter().all(|check| check(flow))
    }
}

/// A whitelist and a blacklist, ready for use.
#[derive(Default)]
pub struct Selection {
    allow: Vec<Filter>,
    deny: Vec<Filter>,
}

impl Selection {
    /// Understands both lists.
    ///
    /// # Errors
    /// If a value is nothing that its field can be compared with; a filter is never left out.
    pub fn new(whitelist: &[FlowFilter], blacklist: &[FlowFilter]) -> Result<Self, FilterError> {
        let build = |list: &[FlowFilter]| list.iter().map(checks::of).collect::<Result<Vec<_>, _>>();
        Ok(Self { allow: build(whitelist)?, deny: build(blacklist)? })
    }

    /// True if the flow is asked for.
    #[must_use]
    pub fn keeps(&self, flow: &Flow) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|filter| filter.matches(flow)))
            && !self.deny.iter().any(|filter| filter.matches(flow))
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selection({} allow, {} deny)", self.allow.len(), self.deny.len())
    }
}
