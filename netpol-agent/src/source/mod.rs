//! Where cluster objects come from: manifests or (later) the API server -> [`ClusterEvent`]s and [`Problem`]s.
//!
//! The edge of the pipeline: everything that names Kubernetes types or reads files is in here, and nothing here knows
//! what policies mean for packets. `decode` turns one object into the cluster model or says what is wrong with it;
//! `manifests` keeps a directory in force. Start at [`ManifestSource`].
//!
//! The rule of the whole module: losing input never widens access. An invalid update leaves the last valid version in
//! force, as an API server that refuses it would; what was never valid is narrowed.
//!
//! [`ClusterEvent`]: crate::cluster::model::ClusterEvent
//! [`Problem`]: crate::problem::Problem

mod decode;
mod directory;
mod document;
mod file;
mod locate;
mod manifests;
mod watch;

#[cfg(test)]
mod tests;

pub use self::decode::{Decoded, Identity, Item, Outcome, decode_value};
pub use self::manifests::{Changes, ManifestSource, SourceError};
pub use self::watch::{Watch, WatchOptions};
