//! The client of the API server: from a kubeconfig or the service account of the pod, and made anew when it is refused.
//!
//! kube reads a service account's token and CA again every minute; a client certificate, or a token in a kubeconfig, only
//! when the client is made. So on 401 the client is made again from its files.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The kubeconfig cannot be used.
    #[error("cannot use kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// This is no pod with a service account.
    #[error("no service account of a pod is here: {0}; give --kubeconfig (or --manifests) outside a cluster")]
    InCluster(#[source] InClusterError),
    /// The client cannot be made of the configuration.
    #[error("cannot make a client of the API server: {0}")]
    Client(#[source] kube::Error),
    /// A single object could not be had.
    #[error("cannot get {object}: {source}")]
    Get {
        /// Which.
        object: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// A single object makes no sense.
    #[error("cannot make anything of {object}: {message}")]
    Unusable {
        /// Which.
        object: String,
        /// Why not.
        message: String,
    },
}

/// How the API server is reached, and the client for it as of now.
pub(super) struct Connection {
    kubeconfig: Option<PathBuf>,
    /// Longest that a connection may say nothing.
    silence: Duration,
    client: Mutex<Client>,
}

impl Connection {
    /// Reads the configuration. Connects to nothing yet.
    pub(super) async fn new(kubeconfig: Option<&Path>, silence: Duration) -> Result<Self, KubeError> {
        let client = Mutex::new(client(kubeconfig, silence).await?);
        Ok(Self { kubeconfig: kubeconfig.map(Path::to_owned), silence, client })
    }

    pub(super) fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads credentials again. If that does not work the old ones stay.
    pub(super) async fn renew(&self) -> Result<(), KubeError> {
        let renewed = client(self.kubeconfig.as_deref(), self.silence).await?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }
}

async fn client(kubeconfig: Option<&Path>, silence: Duration) -> Result<Client, KubeError> {
    let mut config = match kubeconfig {
        None => Config::incluster().map_err(KubeError::InCluster)?,
        Some(path) => {
            let wrong = |source| KubeError::Kubeconfig { path: path.to_owned(), source };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)?
        }
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    config.write_timeout = Some(Duration::from_secs(30));
    // The last resort below the limits of the requests themselves: no read ever waits for ever.
    config.read_timeout = Some(silence + Duration::from_secs(30));
    config.reset_reader_on_write = true;
    // Tries again are ours, as health tells of them.
    config.default_retry = false;
    Client::try_from(config).map_err(KubeError::Client)
}
