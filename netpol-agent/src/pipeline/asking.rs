//! Pods asked of the API server one by one, as an ADD waits for them and the watch has not told of them yet.
//!
//! In: which pods, the answers, and what the watch says on its way to everybody else. Out: pods, and the watch's words. An
//! answer to a question that was asked before the watch spoke of the pod is older than that, and does not count: a pod that
//! is gone again would come back for good. After an answer that counts the watch is behind until it tells of the same pod (by
//! its UID): an earlier pod of the name, and its end, are no news, but for a watch that never told of the pod in between.

use std::collections::BTreeMap;
use std::sync::Arc;
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
/// How far the watch may be behind an answer: then it is believed again. It may have skipped the pod, after a new list.
const LAG: Duration = Duration::from_secs(5);

/// What the API server answered about a pod.
pub(super) struct Answer {
    key: PodKey,
    /// Of the question.
    number: u64,
    pod: Result<Option<Pod>, KubeError>,
}

/// Questions about one pod since the watch spoke of it.
#[derive(Debug)]
struct Question {
    /// Answers to this question and later ones count.
    first: u64,
    /// When it was asked last.
    at: Instant,
}

/// A pod that was taken in and that the watch did not tell of.
#[derive(Debug)]
struct Unseen {
    uid: Arc<str>,
    /// What the watch says of another pod of its name, and since when.
    other: Option<(Instant, ClusterEvent)>,
}

/// What was asked, and what of it was taken in.
pub(super) struct Asking {
    answers: mpsc::Sender<Answer>,
    asked: BTreeMap<PodKey, Question>,
    number: u64,
    unseen: BTreeMap<PodKey, Unseen>,
}

impl Asking {
    /// Nothing asked yet; answers come through the receiver and go to [`Self::take`].
    pub(super) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (answers, receiver) = mpsc::channel(WAITING_ANSWERS);
        (Self { answers, asked: BTreeMap::new(), number: 0, unseen: BTreeMap::new() }, receiver)
    }

    /// Asks for a pod, unless that was done a moment ago.
    pub(super) fn ask(&mut self, client: &Client, key: PodKey) {
        let Some(number) = self.question(&key, Instant::now()) else { return };
        let (client, answers) = (client.clone(), self.answers.clone());
        tokio::spawn(async move {
            let pod = KubeSource::pod(client, &key).await;
            if answers.send(Answer { key, number, pod }).await.is_err() {
                tracing::debug!("nobody waits for a pod any more");
            }
        });
    }

    /// The number of a question about this pod, if it is to be asked now.
    fn question(&mut self, key: &PodKey, now: Instant) -> Option<u64> {
        let number = self.number + 1;
        match self.asked.get_mut(key) {
            Some(asked) if now.saturating_duration_since(asked.at) < PAUSE => return None,
            Some(asked) => asked.at = now,
            None => drop(self.asked.insert(key.clone(), Question { first: number, at: now })),
        }
        self.number = number;
        Some(number)
    }

    /// What the watch says: what was asked before is older. Given back is what is news.
    pub(super) fn hear(&mut self, events: Vec<ClusterEvent>, now: Instant) -> Vec<ClusterEvent> {
        if self.asked.is_empty() && self.unseen.is_empty() {
            return events;
        }
        events.into_iter().filter_map(|event| self.hear_one(event, now)).collect()
    }

    fn hear_one(&mut self, event: ClusterEvent, now: Instant) -> Option<ClusterEvent> {
        let (key, uid) = match &event {
            ClusterEvent::Apply(Object::Pod(pod)) => (&pod.key, Some(&pod.uid)),
            ClusterEvent::Delete(ObjectRef::Pod(key)) => (key, None),
            ClusterEvent::Apply(_) | ClusterEvent::Delete(_) => return Some(event),
        };
        if let Some(unseen) = self.unseen.get_mut(key).filter(|unseen| uid != Some(&unseen.uid)) {
            let since = unseen.other.take().map_or(now, |(since, _)| since);
            unseen.other = Some((since, event));
            return None;
        }
        self.asked.remove(key);
        self.unseen.remove(key);
        Some(event)
    }

    /// What the watch says and goes on saying though an answer said otherwise.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<ClusterEvent> {
        let is_due = |unseen: &Unseen| {
            unseen.other.as_ref().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= LAG)
        };
        let due = self.unseen.extract_if(.., |_, unseen| is_due(unseen));
        let due: Vec<ClusterEvent> = due.filter_map(|(_, unseen)| unseen.other.map(|(_, event)| event)).collect();
        for event in &due {
            if let ClusterEvent::Apply(Object::Pod(Pod { key, .. })) | ClusterEvent::Delete(ObjectRef::Pod(key)) = event
            {
                self.asked.remove(key);
            }
        }
        due
    }

    /// The pod of an answer, if it is news and one that is waited for.
    pub(super) fn take(&mut self, answer: Answer, is_awaited: impl FnOnce(&Pod) -> bool) -> Option<Pod> {
        let Answer { key, number, pod } = answer;
        let asked = self.asked.get_mut(&key).filter(|asked| number >= asked.first)?;
        match pod {
            Ok(Some(pod)) if is_awaited(&pod) => {
                // One that was overtaken by this one is older.
                asked.first = number;
                // The watch says nothing twice.
                let other = self.unseen.remove(&key).and_then(|before| before.other);
                self.unseen.insert(key, Unseen { uid: pod.uid.clone(), other });
                return Some(pod);
            }
            Ok(Some(_)) => tracing::debug!(pod = %key, "the API server has another pod of this name"),
            Ok(None) => tracing::debug!(pod = %key, "the API server does not know this pod"),
            // Asked again after the pause.
            Err(error) => {
                tracing::warn!("{}", chain(&error));
                return None;
            }
        }
        self.asked.remove(&key);
        None
    }

    /// The pod's sandbox is gone: what the watch says of the name, if it never told of the pod, so that it will not tell of
    /// its end.
    pub(super) fn end(&mut self, key: &PodKey) -> Option<ClusterEvent> {
        self.asked.remove(key);
        let other = self.unseen.remove(key)?.other;
        Some(other.map_or_else(|| ClusterEvent::Delete(ObjectRef::Pod(key.clone())), |(_, event)| event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PodKey {
        PodKey::new("shop", "web-0")
    }

    fn pod(uid: &str) -> Pod {
        Pod {
            key: key(),
            uid: uid.into(),
            static_uid: "".into(),
            labels: Arc::default(),
            addresses: Vec::new(),
            named_ports: Vec::new(),
            host_ports: Vec::new(),
            node: "".into(),
            host_network: false,
            terminal: false,
            workload: None,
        }
    }

    fn applied(uid: &str) -> ClusterEvent {
        ClusterEvent::Apply(Object::Pod(pod(uid)))
    }

    fn deleted() -> ClusterEvent {
        ClusterEvent::Delete(ObjectRef::Pod(key()))
    }

    /// What of this answer is taken in, by UID.
    fn answered(asking: &mut Asking, number: u64, uid: Option<&str>) -> Option<String> {
        let answer = Answer { key: key(), number, pod: Ok(uid.map(pod)) };
        asking.take(answer, |pod| &*pod.uid != "stranger").map(|pod| pod.uid.to_string())
    }

    #[test]
    fn an_answer_to_a_question_from_before_the_watch_spoke_is_not_taken_for_a_later_ones() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        let early = asking.question(&key(), start).unwrap();
        assert_eq!(asking.question(&key(), start), None, "a moment ago");
        assert_eq!(asking.hear(vec![deleted()], start), [deleted()]);
        let late = asking.question(&key(), start).unwrap();
        assert_eq!(answered(&mut asking, early, Some("old")), None);
        assert_eq!(answered(&mut asking, late, Some("new")).as_deref(), Some("new"));
        assert_eq!(answered(&mut asking, early, Some("old")), None, "never");
    }

    #[test]
    fn an_answer_that_comes_after_the_next_question_counts_unless_it_was_overtaken() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        let first = asking.question(&key(), start).unwrap();
        let second = asking.question(&key(), start + PAUSE).unwrap();
        let third = asking.question(&key(), start + PAUSE * 2).unwrap();
        assert_eq!(answered(&mut asking, first, Some("a")).as_deref(), Some("a"));
        assert_eq!(answered(&mut asking, third, Some("c")).as_deref(), Some("c"));
        assert_eq!(answered(&mut asking, second, Some("b")), None, "the answer to the third is newer");
    }

    #[test]
    fn a_pod_that_is_not_there_or_not_the_one_is_asked_for_anew() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        for uid in [None, Some("stranger")] {
            let number = asking.question(&key(), start).unwrap();
            assert_eq!(answered(&mut asking, number, uid), None);
            assert!(asking.asked.is_empty() && asking.unseen.is_empty());
        }
    }

    #[test]
    fn a_watch_that_is_behind_an_answer_takes_nothing_back() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        let number = asking.question(&key(), start).unwrap();
        assert!(answered(&mut asking, number, Some("second")).is_some());
        // The first pod of the name changes and goes, and the second comes.
        assert_eq!(asking.hear(vec![applied("first"), deleted()], start), []);
        assert_eq!(asking.hear(vec![applied("second")], start), [applied("second")]);
        assert_eq!(asking.hear(vec![deleted()], start), [deleted()]);
        assert_eq!(asking.overdue(start + LAG), []);
    }

    #[test]
    fn a_watch_that_never_tells_of_the_pod_is_believed_in_the_end() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        let number = asking.question(&key(), start).unwrap();
        assert!(answered(&mut asking, number, Some("second")).is_some());
        assert_eq!(asking.hear(vec![deleted()], start), []);
        assert_eq!(asking.hear(vec![applied("third")], start + LAG / 2), []);
        assert_eq!(asking.overdue(start + LAG / 2), []);
        assert_eq!(asking.overdue(start + LAG), [applied("third")]);
        assert!(asking.asked.is_empty() && asking.unseen.is_empty());
    }

    #[test]
    fn another_answer_forgets_nothing_that_the_watch_said() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        let first = asking.question(&key(), start).unwrap();
        let second = asking.question(&key(), start + PAUSE).unwrap();
        assert!(answered(&mut asking, first, Some("second")).is_some());
        assert_eq!(asking.hear(vec![applied("third")], start), []);
        assert!(answered(&mut asking, second, Some("second")).is_some());
        assert_eq!(asking.overdue(start + LAG), [applied("third")]);
    }

    #[test]
    fn with_the_sandbox_what_the_watch_says_of_the_name_counts() {
        let start = Instant::now();
        let (mut asking, _answers) = Asking::new();
        assert_eq!(asking.end(&key()), None, "the watch told of the pod");
        for (heard, left) in [(vec![], deleted()), (vec![applied("third")], applied("third"))] {
            let number = asking.question(&key(), start).unwrap();
            assert!(answered(&mut asking, number, Some("second")).is_some());
            assert_eq!(asking.hear(heard, start), []);
            assert_eq!(asking.end(&key()), Some(left));
        }
    }
}
