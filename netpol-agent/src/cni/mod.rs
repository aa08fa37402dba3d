//! The CNI side: what the plugin `netpol-cni` tells the agent, and how the plugin comes to be called.
//!
//! In: the runtime's environment and standard input (the plugin), the node's CNI directories (the agent). Out: requests to
//! the agent as in [`protocol`], results for the runtime. Nothing here knows policies or maps.

pub mod protocol;
pub mod records;
