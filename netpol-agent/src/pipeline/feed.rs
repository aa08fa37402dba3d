//! Where cluster objects come from while the agent runs: manifests in a directory, or the API server.

use anyhow::Result;

use crate::cli::RunArgs;
use crate::source::{Changes, ManifestSource, Watch, WatchOptions};

/// The source, with its way to say that there is something new.
pub(super) enum Feed {
    /// A directory.
    Manifests {
        /// What is in force of it.
        source: ManifestSource,
        /// Says when to look.
        watch: Watch,
        /// What the first look found.
        first: Option<Changes>,
    },
}

impl Feed {
    /// Opens what the flags name.
    ///
    /// # Errors
    /// If there is no such directory.
    pub(super) fn open(args: &RunArgs) -> Result<Self> {
        // The watch begins before the first read, so that nothing changes unseen in between.
        let watch = Watch::new(&args.manifests, WatchOptions::default())?;
        let (source, first) = ManifestSource::load(&args.manifests)?;
        Ok(Self::Manifests { source, watch, first: Some(first) })
    }

    /// Waits until there may be something new. Cancel safe.
    pub(super) async fn changed(&mut self) {
        match self {
            Self::Manifests { watch, .. } => {
                if watch.changed().await.is_none() {
                    std::future::pending().await
                }
            }
        }
    }

    /// What is new.
    pub(super) fn take(&mut self) -> Changes {
        match self {
            Self::Manifests { source, first, .. } => first.take().unwrap_or_else(|| source.reload()),
        }
    }

    /// True once all there is was seen: nothing may be enforced before.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Manifests { .. } => true,
        }
    }
}
