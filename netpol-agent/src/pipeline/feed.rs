//! Where cluster objects come from while the agent runs: manifests in a directory, or the API server.

use std::time::Duration;

use anyhow::{Result, bail};
use kube::Client;

use crate::cli::RunArgs;
use crate::observe::answer::{KindReport, SourceReport};
use crate::source::kube::{Doing, KindHealth, KubeOptions, KubeSource, SourceHealth};
use crate::source::{Changes, ManifestSource, Watch, WatchOptions};

/// The source, with its way to say that there is something new.
pub(crate) enum Feed {
    /// A directory.
    Manifests {
        /// What is in force of it.
        source: ManifestSource,
        /// Says when to look.
        watch: Watch,
        /// What the first look found.
        first: Option<Changes>,
    },
    /// The API server.
    Kube(KubeSource),
}

impl Feed {
    /// Opens what the flags name.
    ///
    /// # Errors
    /// If there is no such directory, or no way to an API server is known.
    pub(crate) async fn open(args: &RunArgs) -> Result<Self> {
        let Some(directory) = &args.manifests else {
            if args.node.is_empty() {
                bail!(
                    "without --manifests DIR an API server is followed, which names pods by node, and this node's name is \
                     not known; give --node NAME, or set NODE_NAME from spec.nodeName in the DaemonSet"
                );
            }
            let options = KubeOptions { kubeconfig: args.kubeconfig.clone(), ..KubeOptions::default() };
            return Ok(Self::Kube(KubeSource::connect(&options).await?));
        };
        // The watch begins before the first read, so that nothing changes unseen in between.
        let watch = Watch::new(directory, WatchOptions::default())?;
        let (source, first) = ManifestSource::load(directory)?;
        Ok(Self::Manifests { source, watch, first: Some(first) })
    }

    /// Waits until there may be something new. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        match self {
            Self::Manifests { watch, .. } => {
                if watch.changed().await.is_none() {
                    std::future::pending().await
                }
            }
            Self::Kube(source) => source.changed().await,
        }
    }

    /// What is new.
    pub(crate) fn take(&mut self) -> Changes {
        match self {
            Self::Manifests { source, first, .. } => first.take().unwrap_or_else(|| source.reload()),
            Self::Kube(source) => source.take(),
        }
    }

    /// Waits until all there is was seen, and returns it.
    ///
    /// # Errors
    /// If the API server does not tell all of it within `limit`.
    pub(crate) async fn whole(&mut self, limit: Duration) -> Result<Changes> {
        let wait = async {
            while !self.is_whole() {
                self.changed().await;
            }
            self.take()
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(changes) => Ok(changes),
            Err(_elapsed) => bail!("the API server did not tell all of the cluster within {limit:?}{}", self.why_not()),
        }
    }

    /// What keeps the API server from telling.
    fn why_not(&self) -> String {
        let Self::Kube(source) = self else { return String::new() };
        let errors =
            source.health().kinds.into_iter().filter_map(|kind| Some(format!("; {}: {}", kind.kind, kind.error?)));
        errors.collect()
    }

    /// True once all there is was seen: nothing may be enforced before.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Manifests { .. } => true,
            Self::Kube(source) => source.is_synced(),
        }
    }

    /// A client to ask the API server with, if that is where objects come from.
    pub(crate) fn client(&self) -> Option<Client> {
        match self {
            Self::Manifests { .. } => None,
            Self::Kube(source) => Some(source.client()),
        }
    }

    /// Where that is and how fresh it is.
    pub(super) fn report(&self) -> SourceReport {
        match self {
            Self::Manifests { source, .. } => {
                let from = source.directory().display().to_string();
                SourceReport { kind: "manifests".to_owned(), from, synced: self.is_whole(), kinds: Vec::new() }
            }
            Self::Kube(source) => {
                let SourceHealth { synced, kinds } = source.health();
                let kinds = kinds.into_iter().map(kind_report).collect();
                SourceReport { kind: "kubernetes".to_owned(), from: String::new(), synced, kinds }
            }
        }
    }
}

fn kind_report(health: KindHealth) -> KindReport {
    let doing = match health.doing {
        Doing::Connecting => "connecting",
        Doing::Listing => "listing",
        Doing::Watching => "watching",
        Doing::Waiting => "waiting before the next try",
    };
    KindReport {
        kind: health.kind.to_owned(),
        synced: health.synced,
        // A clock that was set back does not make it fresh.
        stale_for_seconds: health.stale_since.map(|since| since.elapsed().map_or(0, |stale| stale.as_secs())),
        error: health.error,
        doing: Some(doing.to_owned()),
    }
}
