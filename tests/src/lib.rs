//! netpol's judges and harnesses.
//!
//! - `netns`, `node`, `servers`, `probe`, `connection`, `agent`: a node made of network namespaces, real servers and clients in
//!   its pods, the real agent beside them.
//! - `table`: reachability tables, as written by hand and as measured.
//! - `shop`: a case directory as a node that can be measured; `demo`: the shop, before and after its policies.

pub mod agent;
pub mod connection;
pub mod demo;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod probe;
pub mod servers;
pub mod shop;
pub mod table;
