//! The API server as a source: lists and watches of four kinds -> [`Changes`], and [`SourceHealth`].
//!
//! Each kind has a task that follows it ([`follow`]) and tells the [`ledger`] what it hears; [`KubeSource`] gives out what
//! the ledger lets go, as one batch. Losing the API server changes nothing but health: the last good state goes on.
//!
//! Lists and watches are our own, on kube's client, not `kube::runtime::watcher`: that one passes over an event which it
//! cannot parse and goes on with the next, so that an object would stay as it was for good; and it begins streaming lists
//! at version 0, which lets an API server that lags behind take back what was known already.

mod backoff;
mod connection;
mod follow;
mod health;
mod interner;
mod ledger;
mod lines;
mod list;
mod resource;
mod shared;
mod trouble;
mod wire;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::core::Request;
use kube::core::params::GetParams;
use tokio::task::JoinHandle;

use self::connection::Connection;
use self::follow::Follower;
use self::resource::Resource;
use self::shared::Shared;
use self::wire::Cut;
use super::Changes;
use crate::cluster::model::{Object, Pod, PodKey};

pub use self::connection::KubeError;
pub use self::health::{Doing, KindHealth, SourceHealth};

/// How to reach the API server, and how patient to be.
#[derive(Clone, Debug, Default)]
pub struct KubeOptions {
    /// The kubeconfig; without one, the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Patience; tests have less.
    pub timing: Timing,
}

/// How patient a [`KubeSource`] is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first wait after something went wrong; each further one is twice as long.
    pub backoff_first: Duration,
    /// The longest.
    pub backoff_longest: Duration,
    /// How long an answer, or the next piece of one, may take to come.
    pub answer: Duration,
    /// How long a watch may say nothing. API servers send a bookmark every minute.
    pub silence: Duration,
    /// How long the next object of a streaming list may take to come. An API server that does not know them never ends
    /// the list; after this it is asked for an ordinary one.
    pub streaming: Duration,
    /// How long changes of one kind wait for another that is being listed.
    pub hold: Duration,
    /// How long the API server is asked to go on with a watch, up to half of it more by chance.
    pub watch: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_first: Duration::from_millis(200),
            backoff_longest: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            streaming: Duration::from_secs(15),
            hold: Duration::from_secs(2),
            watch: Duration::from_secs(300),
        }
    }
}

/// Follows NetworkPolicies, Pods, Namespaces and Services of an API server; it ends when this is dropped.
pub struct KubeSource {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    hold: Duration,
}

impl KubeSource {
    /// Begins to follow the API server, which may be away: then it is tried again until it answers.
    ///
    /// # Errors
    /// If there is no configuration, or none that can be used.
    pub async fn connect(options: &KubeOptions) -> Result<Self, KubeError> {
        let timing = options.timing;
        let connection = Arc::new(Connection::new(options.kubeconfig.as_deref(), timing.silence).await?);
        let shared = Arc::new(Shared::new());
        let follow = |resource| {
            let follower = Follower::new(resource, connection.clone(), shared.clone(), timing);
            tokio::spawn(follower.run())
        };
        let tasks = Resource::ALL.into_iter().map(follow).collect();
        Ok(Self { connection, shared, tasks, hold: timing.hold })
    }

    /// Waits until there is something to take: objects, or another state of health. Cancel safe.
    pub async fn changed(&mut self) {
        self.shared.changed(self.hold).await;
    }

    /// Takes what changed as one batch; nothing before [`is_synced`](Self::is_synced). The problems are all there are now.
    pub fn take(&mut self) -> Changes {
        self.shared.take()
    }

    /// True if every kind was listed whole once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.is_synced()
    }

    /// How following each kind goes.
    #[must_use]
    pub fn health(&self) -> SourceHealth {
        self.shared.health()
    }

    /// A client for other requests. Ask for it anew for each: another one takes its place when credentials change.
    #[must_use]
    pub fn client(&self) -> Client {
        self.connection.client()
    }

    /// Gets a pod right now, past what is followed; `None` if there is no such pod.
    ///
    /// # Errors
    /// If the API server does not answer, or with something else.
    pub async fn pod(client: Client, key: &PodKey) -> Result<Option<Pod>, KubeError> {
        let object = || format!("Pod {key}");
        let path = format!("/api/v1/namespaces/{}/pods", key.namespace);
        let failed = |source| KubeError::Get { object: object(), source: Box::new(source) };
        let request = Request::new(path).get(&key.name, &GetParams::default());
        let request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        let text = match client.request_text(request).await {
            Ok(text) => text,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let unusable = |message| KubeError::Unusable { object: object(), message };
        let cut = Cut::read(Resource::Pod, &text).map_err(|error| unusable(error.to_string()))?;
        let decoded = cut.decode(Resource::Pod);
        match decoded.object {
            Some(Object::Pod(pod)) => Ok(Some(pod)),
            Some(_) | None => {
                let problems: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
                Err(unusable(problems.join("; ")))
            }
        }
    }
}

impl Drop for KubeSource {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
