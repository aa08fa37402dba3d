//! NetworkPolicies, pods and namespaces of the cluster, and the pods of this node -> what the maps should hold.
//!
//! Input is a stream of cluster events and the slots of local pods; output is a [`DesiredDatapath`] that moves step by
//! step, [`Problem`]s and [`Provenance`]. Pure: no I/O, no clock, no kernel.
//!
//! **Losing input must never widen access.** An unusable peer selects nobody, an unusable policy still isolates the pods
//! that it selects, and whatever does not fit into a map is left out on the narrow side.
//!
//! [`DesiredDatapath`]: crate::datapath::desired::DesiredDatapath
//! [`Problem`]: crate::problem::Problem
//!
//! How a question becomes a table: a *criterion* is anything that a rule can ask of a peer (a pair of selectors, an
//! ipBlock, a number for a named port). The criteria that an address meets are its *signature*, and a signature has a
//! number, its identity. The policies that isolate a local pod in one direction are its *content*, and a content has a
//! number, its policy id. What a content allows a signature does not depend on anything else, so the allow table is that
//! function, written out.

mod answers;
mod cidr;
mod compile;
mod content;
mod criteria;
mod identities;
mod limits;
mod peers;
mod ports;
mod provenance;
mod subjects;
#[cfg(test)]
mod tests;

pub use compile::{Compiler, Step};
pub use limits::Limits;
pub use provenance::{Explanation, PeerDescription, Provenance, RuleReference};
