//! What the cluster is like: objects in, answers out. Pure: no I/O, no clock, no Kubernetes types.
//!
//! [`model`] holds the objects, `selector` the matching of labels, [`state`] what is known now. Start at
//! [`ClusterState`].

pub mod model;
mod selector;
pub mod state;
#[cfg(test)]
mod tests;

pub use state::{Change, ClusterState, is_live};
