//! What the cluster is like: objects in, answers out. Pure: no I/O, no clock, no Kubernetes types.

pub mod model;
