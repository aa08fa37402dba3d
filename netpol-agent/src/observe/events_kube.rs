//! Kubernetes Events on NetworkPolicies that are not enforced as written, so that their authors hear of it where they look.
//!
//! In: every second, the troubled policies of this node, as a value. Out: an Event for each policy and set of problems, and
//! one when they are resolved. A task of its own publishes: an API server that is slow, away or refusing delays events and
//! nothing else. What is published when is decided by [`Announcer`], which is pure; agents whose node has no pod that the
//! policy selects say nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::Api;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::problem::{Problem, chain};

/// Why an Event of type Warning was published.
pub const NOT_AS_WRITTEN: &str = "NotEnforcedAsWritten";
/// Why one of type Normal was.
pub const AS_WRITTEN: &str = "EnforcedAsWritten";
/// What the agent was doing.
const ACTION: &str = "Enforce";
/// Longest note that the API server takes.
const LONGEST_NOTE: usize = 1024;
/// Events that may be published at once, and how long it takes to earn another.
const BURST: u32 = 10;
const EARNED: Duration = Duration::from_secs(6);
/// Pause after a failure, doubled with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with a policy, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is not enforced as written; never empty.
    pub problems: Vec<Problem>,
    /// The policy selects a pod of this node.
    pub is_local: bool,
}

/// Troubled policies by `namespace/name`.
pub type Troubles = BTreeMap<String, Trouble>;

/// Publishes events; ends when dropped.
#[derive(Debug)]
pub struct PolicyEvents {
    troubles: watch::Sender<Troubles>,
    task: JoinHandle<()>,
}

impl PolicyEvents {
    /// Starts publishing in the name of `node`.
    #[must_use]
    pub fn start(client: Client, node: &str) -> Self {
        let (troubles, told) = watch::channel(Troubles::new());
        let node = if node.is_empty() { "unknown" } else { node }.to_owned();
        Self { troubles, task: tokio::spawn(publish_all(client, node, told)) }
    }

    /// Says which policies are in trouble now, all of them. Never blocks.
    pub fn tell(&self, troubles: Troubles) {
        self.troubles.send_if_modified(|known| {
            let changed = *known != troubles;
            *known = troubles;
            changed
        });
    }
}

impl Drop for PolicyEvents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Something to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Announcement {
    policy: String,
    /// Empty if they are resolved.
    problems: Vec<Problem>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    Publish(Announcement),
    Wait(Instant),
    Nothing,
}

/// Decides what is published when.
#[derive(Debug)]
struct Announcer {
    announced: BTreeMap<String, Vec<Problem>>,
    allowance: u32,
    earned: Instant,
    /// Nothing goes out before.
    not_before: Instant,
    pause: Duration,
}

impl Announcer {
    fn new(now: Instant) -> Self {
        Self { announced: BTreeMap::new(), allowance: BURST, earned: now, not_before: now, pause: FIRST_PAUSE }
    }

    fn next(&mut self, troubles: &Troubles, now: Instant) -> Next {
        let Some(announcement) = self.due(troubles) else { return Next::Nothing };
        while self.allowance < BURST && now.saturating_duration_since(self.earned) >= EARNED {
            self.allowance += 1;
            self.earned += EARNED;
        }
        if now < self.not_before {
            return Next::Wait(self.not_before);
        }
        if self.allowance == 0 { Next::Wait(self.earned + EARNED) } else { Next::Publish(announcement) }
    }

    /// What differs from what was announced, of the first policy that has such.
    fn due(&self, troubles: &Troubles) -> Option<Announcement> {
        let worse = troubles.iter().filter(|(_, trouble)| trouble.is_local);
        let mut worse = worse.filter(|(policy, trouble)| self.announced.get(*policy) != Some(&trouble.problems));
        let announcement = |policy: &String, problems: &[Problem]| Announcement {
            policy: policy.clone(),
            problems: problems.to_vec(),
        };
        let resolved = || self.announced.keys().find(|policy| !troubles.contains_key(*policy));
        match worse.next() {
            Some((policy, trouble)) => Some(announcement(policy, &trouble.problems)),
            None => resolved().map(|policy| announcement(policy, &[])),
        }
    }

    /// It is out, or will never be.
    fn settled(&mut self, announcement: Announcement, now: Instant) {
        if announcement.problems.is_empty() {
            self.announced.remove(&announcement.policy);
        } else {
            self.announced.insert(announcement.policy, announcement.problems);
        }
        if self.allowance == BURST {
            self.earned = now;
        }
        self.allowance = self.allowance.saturating_sub(1);
        self.pause = FIRST_PAUSE;
    }

    fn failed(&mut self, now: Instant) {
        self.not_before = now + self.pause;
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }
}

async fn publish_all(client: Client, node: String, mut told: watch::Receiver<Troubles>) {
    let mut announcer = Announcer::new(Instant::now());
    loop {
        let next = announcer.next(&told.borrow_and_update(), Instant::now());
        let changed = match next {
            Next::Nothing => told.changed().await,
            Next::Wait(until) => {
                tokio::select! {
                    changed = told.changed() => changed,
                    () = tokio::time::sleep_until(until.into()) => Ok(()),
                }
            }
            Next::Publish(announcement) => {
                let published = tokio::time::timeout(PATIENCE, publish(&client, &node, &announcement)).await;
                take_note(&mut announcer, announcement, published);
                Ok(())
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

fn take_note(
    announcer: &mut Announcer,
    announcement: Announcement,
    published: Result<Result<(), Error>, tokio::time::error::Elapsed>,
) {
    let policy = announcement.policy.clone();
    match published {
        Ok(Ok(())) => announcer.settled(announcement, Instant::now()),
        // It would be refused again, and hold up the others.
        Ok(Err(error)) if is_final(&error) => {
            tracing::warn!(policy, error = chain(&error), "the API server takes no Event about a policy");
            announcer.settled(announcement, Instant::now());
        }
        Ok(Err(error)) => {
            tracing::debug!(policy, error = chain(&error), "cannot publish an Event now; tried again");
            announcer.failed(Instant::now());
        }
        Err(_elapsed) => {
            tracing::debug!(policy, "an Event was not taken in time; tried again");
            announcer.failed(Instant::now());
        }
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error, Error::Api(status) if (400..500).contains(&status.code) && ![401, 408, 429].contains(&status.code))
}

async fn publish(client: &Client, node: &str, announcement: &Announcement) -> Result<(), Error> {
    let (namespace, name) = announcement.policy.split_once('/').unwrap_or_default();
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    let uid = match api.get_metadata_opt(name).await {
        Ok(Some(policy)) => policy.metadata.uid,
        // Deleted meanwhile: nobody looks for its events any more.
        Ok(None) => return Ok(()),
        // Without a UID it is found by name all the same.
        Err(error) if is_final(&error) => None,
        Err(error) => return Err(error),
    };
    let regarding = ObjectReference {
        api_version: Some("networking.k8s.io/v1".to_owned()),
        kind: Some("NetworkPolicy".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid,
        ..ObjectReference::default()
    };
    let (type_, reason) = match announcement.problems.as_slice() {
        [] => (EventType::Normal, AS_WRITTEN),
        _ => (EventType::Warning, NOT_AS_WRITTEN),
    };
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note(&announcement.problems)),
        action: ACTION.to_owned(),
        secondary: None,
    };
    // A recorder counts events of one reason as one, and keeps the first one's note: each of ours has its own.
    let reporter = Reporter { controller: "netpol-agent".to_owned(), instance: Some(node.to_owned()) };
    Recorder::new(client.clone(), reporter).publish(&event, &regarding).await
}

/// What is wrong, problem by problem, as far as there is room.
fn note(problems: &[Problem]) -> String {
    if problems.is_empty() {
        return "the policy is enforced as written now".to_owned();
    }
    let one = |problem: &Problem| {
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        format!("{field}{}; effect: {}", problem.message, problem.effect)
    };
    let whole = problems.iter().map(one).collect::<Vec<_>>().join(" | ");
    if whole.len() <= LONGEST_NOTE {
        return whole;
    }
    let more = " ... (`netpol policy show` has all of it)";
    let end = (0..=LONGEST_NOTE - more.len()).rev().find(|end| whole.is_char_boundary(*end)).unwrap_or(0);
    whole.get(..end).unwrap_or_default().to_owned() + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Severity;

    fn problem(message: &str) -> Problem {
        let (field, effect) = ("spec.ingress[0]".to_owned(), "nobody gets in".to_owned());
        let (origin, object) = ("api-server".to_owned(), "NetworkPolicy a/x".to_owned());
        Problem { severity: Severity::Refused, origin, object, field, message: message.to_owned(), effect }
    }

    fn troubles(all: &[(&str, &str, bool)]) -> Troubles {
        let of = |(policy, message, is_local): &(&str, &str, bool)| {
            ((*policy).to_owned(), Trouble { problems: vec![problem(message)], is_local: *is_local })
        };
        all.iter().map(of).collect()
    }

    fn publish_one(announcer: &mut Announcer, troubles: &Troubles, now: Instant) -> Option<(String, usize)> {
        match announcer.next(troubles, now) {
            Next::Publish(announcement) => {
                let said = (announcement.policy.clone(), announcement.problems.len());
                announcer.settled(announcement, now);
                Some(said)
            }
            Next::Wait(_) | Next::Nothing => None,
        }
    }

    #[test]
    fn each_set_of_problems_is_told_once_and_its_end_too() {
        let now = Instant::now();
        let mut announcer = Announcer::new(now);
        let told = Some(("a/x".to_owned(), 1));
        let bad = troubles(&[("a/x", "wrong", true)]);
        assert_eq!(publish_one(&mut announcer, &bad, now), told);
        assert_eq!(announcer.next(&bad, now), Next::Nothing);
        assert_eq!(publish_one(&mut announcer, &troubles(&[("a/x", "worse", true)]), now), told);
        assert_eq!(publish_one(&mut announcer, &Troubles::new(), now), Some(("a/x".to_owned(), 0)));
        assert_eq!(announcer.next(&Troubles::new(), now), Next::Nothing);
        assert_eq!(publish_one(&mut announcer, &bad, now), told);
    }

    #[test]
    fn a_policy_that_selects_no_pod_here_is_somebody_elses() {
        let now = Instant::now();
        let mut announcer = Announcer::new(now);
        assert_eq!(announcer.next(&troubles(&[("a/x", "wrong", false)]), now), Next::Nothing);
        publish_one(&mut announcer, &troubles(&[("a/x", "wrong", true)]), now);
        // Its pods went elsewhere: not resolved.
        assert_eq!(announcer.next(&troubles(&[("a/x", "wrong", false)]), now), Next::Nothing);
    }

    #[test]
    fn a_thousand_broken_policies_are_no_flood() {
        let now = Instant::now();
        let mut announcer = Announcer::new(now);
        let names: Vec<String> = (0..1000).map(|number| format!("a/{number}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), "wrong", true)).collect();
        let all = troubles(&all);
        let mut published = 0;
        for second in 0..60 {
            while publish_one(&mut announcer, &all, now + Duration::from_secs(second)).is_some() {
                published += 1;
            }
        }
        assert_eq!(published, BURST + 9);
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| publish_one(&mut announcer, &all, later).is_some()).count(), 10);
    }

    #[test]
    fn failures_make_pauses_longer_and_lose_nothing() {
        let now = Instant::now();
        let mut announcer = Announcer::new(now);
        let bad = troubles(&[("a/x", "wrong", true)]);
        announcer.failed(now);
        assert_eq!(announcer.next(&bad, now), Next::Wait(now + FIRST_PAUSE));
        announcer.failed(now);
        assert_eq!(announcer.next(&bad, now), Next::Wait(now + 2 * FIRST_PAUSE));
        (0..20).for_each(|_| announcer.failed(now));
        assert_eq!(announcer.next(&bad, now), Next::Wait(now + LONGEST_PAUSE));
        assert!(publish_one(&mut announcer, &bad, now + LONGEST_PAUSE).is_some());
    }

    #[test]
    fn a_note_fits() {
        assert_eq!(note(&[problem("wrong")]), "spec.ingress[0]: wrong; effect: nobody gets in");
        let long = note(&[problem(&"ä".repeat(2000))]);
        assert!(long.len() <= LONGEST_NOTE && long.ends_with("has all of it)"), "{}", long.len());
    }
}
