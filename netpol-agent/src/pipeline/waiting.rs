//! ADDs that wait until their pod's policy is in force on its interface, and when they are answered. Pure but for the answer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::cni::protocol::{AttachmentKey, CniAnswer};

/// How long an ADD waits; runtimes give up after minutes, and the kubelet tries again.
const ADD_LIMIT: Duration = Duration::from_secs(20);
/// How long the kernel may take to tell of the interface, which was there before the ADD.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// "Try again later" (CNI spec 1.1, "Error").
pub(super) const TRY_AGAIN: u32 = 11;

/// What a request of the plugin came to: done, or code and message.
pub(super) type Outcome = Result<(), (u32, String)>;

/// An ADD that waits for its pod.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Which.
    pub(super) key: AttachmentKey,
    answer: oneshot::Sender<Value>,
    since: Instant,
    /// The look at the node that began after it; what was known before may be an earlier interface of the same name.
    look: u64,
}

/// How the node and the pod are.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The looks at the node that are done.
    pub(super) looks: u64,
    /// What is missing until the policy is in force; nothing if it is.
    pub(super) missing: Option<String>,
}

impl Waiting {
    /// An ADD that came now, and for which look `look` at the node was asked for.
    pub(super) const fn new(key: AttachmentKey, answer: oneshot::Sender<Value>, (since, look): (Instant, u64)) -> Self {
        Self { key, answer, since, look }
    }

    /// Answers it if it can be; gives it back if it has to wait on.
    pub(super) fn judge(self, progress: Progress, now: Instant) -> Option<Self> {
        let waited = now.saturating_duration_since(self.since);
        let outcome = match progress.missing {
            _ if progress.looks < self.look => (waited >= LOOK_LIMIT).then(|| {
                Err(format!("the kernel did not tell of the node's interfaces (netlink) within {LOOK_LIMIT:?}"))
            }),
            None => Some(Ok(())),
            Some(why) => (waited >= ADD_LIMIT).then(|| Err(format!("not in force within {ADD_LIMIT:?}: {why}"))),
        };
        match outcome {
            Some(outcome) => tell(self.answer, outcome.map_err(|message| (TRY_AGAIN, message))),
            // Its plugin was killed: the runtime sends a DEL.
            None if self.answer.is_closed() => {}
            None => return Some(self),
        }
        None
    }
}

/// Answers a plugin.
pub(super) fn tell(answer: oneshot::Sender<Value>, outcome: Outcome) {
    let answered = match outcome {
        Ok(()) => CniAnswer::Done,
        Err((code, message)) => CniAnswer::Failed { code, message },
    };
    let value = serde_json::to_value(&answered)
        .unwrap_or_else(|error| json!({ "result": "failed", "code": TRY_AGAIN, "message": error.to_string() }));
    if answer.send(value).is_err() {
        tracing::debug!("a plugin did not wait for its answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(since: Instant) -> (Waiting, oneshot::Receiver<Value>) {
        let (answer, answered) = oneshot::channel();
        let key = AttachmentKey { container_id: "c".to_owned(), ifname: "eth0".to_owned() };
        (Waiting::new(key, answer, (since, 7)), answered)
    }

    fn progress(looks: u64, missing: Option<&str>) -> Progress {
        Progress { looks, missing: missing.map(ToOwned::to_owned) }
    }

    #[test]
    fn an_add_is_answered_once_the_node_was_looked_at_after_it_and_the_policy_is_in_force() {
        let start = Instant::now();
        let (waiting, mut answered) = waiting(start);
        let waiting = waiting.judge(progress(6, None), start).unwrap();
        let waiting = waiting.judge(progress(7, Some("no pod")), start + LOOK_LIMIT).unwrap();
        assert!(answered.try_recv().is_err());
        assert!(waiting.judge(progress(7, None), start + LOOK_LIMIT).is_none());
        assert_eq!(answered.try_recv().unwrap()["result"], "done");
    }

    #[test]
    fn an_add_whose_time_is_up_is_told_what_is_missing() {
        let start = Instant::now();
        for (looks, limit, missing) in [(6, LOOK_LIMIT, "netlink"), (7, ADD_LIMIT, "no pod")] {
            let (waiting, mut answered) = waiting(start);
            let waiting =
                waiting.judge(progress(looks, Some("no pod")), start + limit - Duration::from_millis(1)).unwrap();
            assert!(waiting.judge(progress(looks, Some("no pod")), start + limit).is_none());
            let answer = answered.try_recv().unwrap();
            assert_eq!(answer["code"], TRY_AGAIN);
            assert!(answer["message"].as_str().unwrap().contains(missing), "{answer}");
        }
    }

    #[test]
    fn one_whose_plugin_was_killed_is_forgotten() {
        let (waiting, answered) = waiting(Instant::now());
        drop(answered);
        assert!(waiting.judge(progress(7, Some("no pod")), Instant::now()).is_none());
    }
}
