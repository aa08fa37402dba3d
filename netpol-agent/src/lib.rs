//! The netpol node agent as a pipeline of named values.
//!
//! ```text
//! kube watch ─┐
//!             ├─> source ─> cluster ─> policy ─> desired ─> diff ─> Plan ─> apply ─> maps, links
//! manifests ──┘   (edge)    (pure)     (pure)    (value)    (pure)  (value) (edge)
//! ring buffer ─> flow::decode ─> flow::enrich ─> sinks
//! ```
//!
//! Start at `pipeline`, the one module that joins two stages.

#[cfg(all(feature = "next-abi", not(debug_assertions)))]
compile_error!("the feature `next-abi` is for tests of upgrades and never shipped: build without it");

pub mod access;
pub mod allocator;
pub mod attachments;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod cni;
pub mod datapath;
pub mod dry_run;
pub mod endpoints;
pub mod enforcer;
pub mod explain;
pub mod flow;
pub mod near;
pub mod node;
pub mod observe;
pub mod pipeline;
pub mod policy;
pub mod preflight;
pub mod problem;
pub mod services;
pub mod socket;
pub mod source;

#[cfg(test)]
mod testing;
