//! Pods asked of the API server one by one, as an ADD waits for them and the watch has not told of them yet.
//!
//! An answer is older than what the watch says meanwhile: it counts only while the watch has said nothing of that pod, or a
//! pod that is gone again would come back for good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::mpsc;

use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod, PodKey};
use crate::problem::chain;
use crate::source::kube::{KubeError, KubeSource};

/// How often the same pod is asked for.
const PAUSE: Duration = Duration::from_secs(1);
/// More answers than a node has pods do not wait.
const WAITING_ANSWERS: usize = 512;

/// What the API server answered about a pod.
pub(super) struct Answer {
    key: PodKey,
    pod: Result<Option<Pod>, KubeError>,
}

/// What was asked, and what of it was taken in.
pub(super) struct Asking {
    answers: mpsc::Sender<Answer>,
    /// Asked for and not heard of by the watch, and when it was asked.
    asked: BTreeMap<PodKey, Instant>,
    /// Taken in and not heard of by the watch.
    unseen: BTreeSet<PodKey>,
}

impl Asking {
    /// Nothing asked yet; answers come through the receiver and go to [`Self::take`].
    pub(super) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (answers, receiver) = mpsc::channel(WAITING_ANSWERS);
        (Self { answers, asked: BTreeMap::new(), unseen: BTreeSet::new() }, receiver)
    }

    /// Asks for a pod, unless that was done a moment ago.
    pub(super) fn ask(&mut self, client: &Client, key: PodKey) {
        let now = Instant::now();
        if self.asked.get(&key).is_some_and(|asked| now.duration_since(*asked) < PAUSE) {
            return;
        }
        self.asked.insert(key.clone(), now);
        let (client, answers) = (client.clone(), self.answers.clone());
        tokio::spawn(async move {
            let pod = KubeSource::pod(client, &key).await;
            if answers.send(Answer { key, pod }).await.is_err() {
                tracing::debug!("nobody waits for a pod any more");
            }
        });
    }

    /// The watch has spoken: what was asked before is older.
    pub(super) fn seen(&mut self, events: &[ClusterEvent]) {
        if self.asked.is_empty() && self.unseen.is_empty() {
            return;
        }
        for event in events {
            let key = match event {
                ClusterEvent::Apply(Object::Pod(pod)) => &pod.key,
                ClusterEvent::Delete(ObjectRef::Pod(key)) => key,
                ClusterEvent::Apply(_) | ClusterEvent::Delete(_) => continue,
            };
            self.asked.remove(key);
            self.unseen.remove(key);
        }
    }

    /// The pod of an answer, if it is news.
    pub(super) fn take(&mut self, answer: Answer) -> Option<Pod> {
        let Answer { key, pod } = answer;
        if !self.asked.contains_key(&key) {
            return None;
        }
        match pod {
            Ok(Some(pod)) => {
                self.unseen.insert(key);
                Some(pod)
            }
            Ok(None) => {
                tracing::debug!(pod = %key, "the API server does not know this pod");
                None
            }
            Err(error) => {
                tracing::warn!("{}", chain(&error));
                None
            }
        }
    }

    /// The pod's sandbox is gone: true if the watch never told of the pod, so that it will not tell of its end.
    pub(super) fn end(&mut self, key: &PodKey) -> bool {
        self.asked.remove(key);
        self.unseen.remove(key)
    }
}
