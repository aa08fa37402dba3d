//! Where cluster objects come from: manifests or the API server -> [`ClusterEvent`]s and [`Problem`]s.
//!
//! The edge of the pipeline: everything that names Kubernetes types or reads files is in here, and nothing here knows
//! what policies mean for packets. `decode` turns one object into the cluster model or says what is wrong with it;
//! `manifests` keeps a directory in force, [`kube`] follows an API server. Start at [`ManifestSource`] or
//! [`KubeSource`](kube::KubeSource).
//!
//! The rule of the whole module: losing input never widens access. An invalid update of a manifest leaves the last valid
//! version in force, as an API server that refuses it would; what was never valid is narrowed. What the API server has is
//! in force as it is, narrowed where it makes no sense.
//!
//! [`ClusterEvent`]: crate::cluster::model::ClusterEvent
//! [`Problem`]: crate::problem::Problem

mod decode;
mod directory;
mod document;
mod file;
pub mod kube;
mod locate;
mod manifests;
mod watch;

#[cfg(test)]
mod tests;

pub use self::decode::{Decoded, Identity, Item, Outcome, decode_value};
pub use self::manifests::{Changes, ManifestSource, SourceError};
pub use self::watch::{Watch, WatchOptions};
