//! The CNI side: what the plugin `netpol-cni` tells the agent, and how the plugin comes to be called.
//!
//! In: the runtime's environment and standard input (the plugin), the node's CNI directories (the agent). Out: requests to
//! the agent as in [`protocol`], results for the runtime, a network configuration with our plugin in it. Nothing here knows
//! policies or maps.
//!
//! - [`plugin`]: the program that the runtime calls; [`protocol`]: what it says to the agent and hears.
//! - [`install`]: the agent keeps program and configuration in place; [`conflist`]: what that configuration is.
//! - [`cache`]: pods that were there before, from what the runtime's libcni wrote down.
//! - [`records`]: what the plugin told, kept for the next agent.
//! - `json`, `result`, `version`, `args`: CNI's own forms.

mod args;
pub mod cache;
pub mod conflist;
pub mod install;
mod json;
pub mod plugin;
pub mod protocol;
pub mod records;
mod result;
mod version;

/// File name of the plugin, and its `type` in a configuration.
pub const PLUGIN_TYPE: &str = "netpol-cni";
/// The interface that is a pod's in Kubernetes. Others (of Multus) are not policed.
pub const POD_INTERFACE: &str = "eth0";
