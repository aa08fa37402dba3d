//! `status --wait`: until every agent enforces all that it has taken in and, from outside, the NetworkPolicies that the API
//! server had when the waiting began. What is still waited for is judged by [`waits_for`], which is pure.
//!
//! A policy is compared by metadata.uid and metadata.generation: the generation grows with each change of the spec and with
//! nothing else, so a policy changed once more meanwhile is waited for no longer than the version that was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::ask::{Answers, Asker, ClientError};
use super::table::printable;
use crate::observe::admin::Request;
use crate::observe::answer::{KindReport, PolicyList, PolicySummary, Status};

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(300);
/// Nobody wants to read about a shorter wait.
const SILENCE: Duration = Duration::from_secs(1);
/// How many nodes are named.
const NAMED: usize = 3;

/// Version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) uid: String,
    pub(super) generation: i64,
}

/// The API server's policies, by `namespace/name`.
pub(super) type Versions = BTreeMap<String, Version>;

/// What the API server had when the waiting began, and has now.
struct Wanted {
    first: Versions,
    now: Versions,
}

/// Waits; false if that took too long, and standard error says for what.
///
/// # Errors
/// If nobody could be asked in the first place.
pub(super) async fn until_settled(asker: &Asker, timeout: Duration) -> Result<bool, ClientError> {
    let begun = Instant::now();
    let mut progress = Progress::new(begun, timeout);
    let mut first = None;
    let mut told = false;
    let mut done = BTreeSet::new();
    loop {
        let wanted = match versions(asker).await {
            Ok(now) => now.map(|now| Wanted { first: first.get_or_insert_with(|| now.clone()).clone(), now }),
            Err(message) => {
                if !std::mem::replace(&mut told, true) {
                    warn(&format!("cannot list NetworkPolicies ({message}): waiting only for what agents have seen"));
                }
                None
            }
        };
        let waited = round(asker, wanted.as_ref(), &mut done, begun.elapsed() < SILENCE).await?;
        if waited.is_empty() {
            progress.end();
            return Ok(true);
        }
        if begun.elapsed() >= timeout {
            progress.end();
            for (node, what) in waited {
                warn(&format!("still waiting for {}{what}", on(&node)));
            }
            return Ok(false);
        }
        progress.show(&waited);
        tokio::time::sleep(PAUSE.min(timeout.saturating_sub(begun.elapsed()))).await;
    }
}

async fn versions(asker: &Asker) -> Result<Option<Versions>, String> {
    match asker {
        Asker::Socket(_) => Ok(None),
        Asker::Agents(agents) => agents.policies().await.map(Some),
    }
}

/// Asks everybody who is not done; says by node what is waited for.
async fn round(
    asker: &Asker,
    wanted: Option<&Wanted>,
    done: &mut BTreeSet<String>,
    is_first: bool,
) -> Result<Vec<(String, String)>, ClientError> {
    let answers = match ask(asker, done).await {
        Ok(answers) => answers,
        Err(error) if may_pass(&error, is_first) => return Ok(vec![(String::new(), error.to_string())]),
        Err(error) => return Err(error),
    };
    let refused = answers.refused().map(|(node, why)| (node.to_owned(), format!("an answer: {why}")));
    let mut waited: Vec<(String, String)> = refused.collect();
    for (node, list) in answers.given() {
        match waits_for(list, wanted) {
            Some(what) => waited.push((node.to_owned(), what)),
            None => _ = done.insert(node.to_owned()),
        }
    }
    Ok(waited)
}

async fn ask(asker: &Asker, done: &BTreeSet<String>) -> Result<Answers<PolicyList>, ClientError> {
    match asker {
        Asker::Socket(_) => {
            // Reads manifests now, not when the file system gets round to saying that they changed.
            asker.ask::<Status>(&Request::Sync, &[]).await?;
            asker.ask(&Request::Policies, &[]).await
        }
        Asker::Agents(agents) => Ok(Answers { nodes: agents.ask_others(&["policy", "list"], done).await? }),
    }
}

/// An agent that starts, or an API server that was there a moment ago, is waited for.
fn may_pass(error: &ClientError, is_first: bool) -> bool {
    match error {
        ClientError::Socket(error) => error.may_pass(),
        ClientError::List { .. } | ClientError::NoAgents(_) => !is_first,
        ClientError::Nowhere { .. }
        | ClientError::Kubeconfig { .. }
        | ClientError::NoSuchPolicy { .. }
        | ClientError::Request(_)
        | ClientError::Explain(_)
        | ClientError::Print(_)
        | ClientError::Write(_) => false,
    }
}

/// What an agent still has to do; none if it enforces everything.
fn waits_for(list: &PolicyList, wanted: Option<&Wanted>) -> Option<String> {
    if !list.source.synced {
        let unread: Vec<&str> = list.source.kinds.iter().filter(|it| !it.synced).map(|it| it.kind.as_str()).collect();
        let why = list.source.kinds.iter().find_map(|it: &KindReport| it.error.as_ref());
        let why = why.map_or_else(String::new, |error| format!(": {error}"));
        return Some(format!("the agent to see the whole cluster ({} not read yet{why})", unread.join(", ")));
    }
    // Manifests have no versions to compare.
    let wanted = wanted.filter(|_| list.source.kind != "manifests");
    if let Some(what) = wanted.and_then(|wanted| unseen(&list.policies, wanted)) {
        return Some(what);
    }
    if list.enforced < list.generation {
        let (seen, enforced) = (list.generation, list.enforced);
        return Some(format!("changes to be applied (generation {enforced} of {seen}; `netpol status` says why not)"));
    }
    match list.unresolved.as_slice() {
        [] if list.settled => None,
        [] => Some("the agent to settle".to_owned()),
        [one] => Some(format!("the pod of address {one} to be found")),
        [one, rest @ ..] => Some(format!("the pods of {one} and {} more addresses to be found", rest.len())),
    }
}

/// A policy that the agent has not seen in the version wanted, or that is gone and it has not seen that.
fn unseen(policies: &[PolicySummary], wanted: &Wanted) -> Option<String> {
    let known: BTreeMap<String, Option<Version>> = policies
        .iter()
        .map(|policy| {
            let version = policy.version.clone().map(|it| Version { uid: it.uid, generation: it.generation });
            (format!("{}/{}", policy.namespace, policy.name), version)
        })
        .collect();
    for (key, version) in &wanted.first {
        // What was deleted or made anew meanwhile is wanted no more.
        if wanted.now.get(key).is_none_or(|now| now.uid != version.uid) {
            continue;
        }
        match known.get(key) {
            None => return Some(format!("NetworkPolicy {key} to be seen")),
            Some(Some(seen)) if seen.uid != version.uid || seen.generation < version.generation => {
                return Some(format!("generation {} of NetworkPolicy {key} to be seen", version.generation));
            }
            // An agent that does not say is believed.
            Some(_) => {}
        }
    }
    let gone = |key: &&String| !wanted.now.contains_key(*key);
    known.keys().find(gone).map(|key| format!("the end of NetworkPolicy {key}, which is deleted, to be seen"))
}

/// Says on standard error what is waited for: on a terminal in one line that changes, else a line for each change.
struct Progress {
    begun: Instant,
    timeout: Duration,
    is_terminal: bool,
    last: String,
}

impl Progress {
    fn new(begun: Instant, timeout: Duration) -> Self {
        Self { begun, timeout, is_terminal: io::stderr().is_terminal(), last: String::new() }
    }

    fn show(&mut self, waited: &[(String, String)]) {
        if self.begun.elapsed() < SILENCE {
            return;
        }
        let named: Vec<String> =
            waited.iter().take(NAMED).map(|(node, what)| format!("{}{}", on(node), printable(what))).collect();
        let more = match waited.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("; and {more} more nodes"),
        };
        let text = format!("waiting for {}{more}", named.join("; "));
        if self.is_terminal {
            let (spent, limit) = (self.begun.elapsed().as_secs(), self.timeout.as_secs());
            say(&format!("\r\u{1b}[K{text} ({spent} s of {limit} s)"));
        } else if self.last != text {
            say(&format!("{text}\n"));
        }
        self.last = text;
    }

    fn end(&self) {
        if self.is_terminal && !self.last.is_empty() {
            say("\r\u{1b}[K");
        }
    }
}

fn on(node: &str) -> String {
    if node.is_empty() { String::new() } else { format!("{node}: ") }
}

fn warn(text: &str) {
    say(&format!("{}\n", printable(text)));
}

/// Progress that cannot be shown is no failure.
fn say(text: &str) {
    _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::answer::{SourceReport, VersionReport};

    fn versions(all: &[(&str, &str, i64)]) -> Versions {
        let of = |(key, uid, generation): &(&str, &str, i64)| {
            ((*key).to_owned(), Version { uid: (*uid).to_owned(), generation: *generation })
        };
        all.iter().map(of).collect()
    }

    fn list(all: &[(&str, &str, i64)]) -> PolicyList {
        let policies = all.iter().map(|(key, uid, generation)| {
            let (namespace, name) = key.split_once('/').unwrap();
            let version = Some(VersionReport { uid: (*uid).into(), generation: *generation });
            PolicySummary { namespace: namespace.into(), name: name.into(), version, ..PolicySummary::default() }
        });
        let source = SourceReport { kind: "kubernetes".into(), synced: true, ..SourceReport::default() };
        PolicyList { settled: true, source, policies: policies.collect(), ..PolicyList::default() }
    }

    fn waits(list: &PolicyList, first: &[(&str, &str, i64)], now: &[(&str, &str, i64)]) -> String {
        let wanted = Wanted { first: versions(first), now: versions(now) };
        waits_for(list, Some(&wanted)).unwrap_or_default()
    }

    #[test]
    fn a_policy_is_waited_for_until_it_is_seen_in_the_version_asked_for() {
        let wanted: &[_] = &[("a/x", "1", 2)];
        assert_eq!(waits(&list(&[]), wanted, wanted), "NetworkPolicy a/x to be seen");
        assert_eq!(waits(&list(&[("a/x", "1", 1)]), wanted, wanted), "generation 2 of NetworkPolicy a/x to be seen");
        assert_eq!(waits(&list(&[("a/x", "0", 7)]), wanted, wanted), "generation 2 of NetworkPolicy a/x to be seen");
        assert_eq!(waits(&list(&[("a/x", "1", 2)]), wanted, wanted), "");
        assert_eq!(waits(&list(&[("a/x", "1", 3)]), wanted, &[("a/x", "1", 3)]), "");
    }

    #[test]
    fn what_changes_meanwhile_prolongs_nothing() {
        let wanted: &[_] = &[("a/x", "1", 2)];
        assert_eq!(waits(&list(&[]), wanted, &[]), "");
        assert_eq!(waits(&list(&[]), wanted, &[("a/x", "2", 1)]), "");
        assert_eq!(waits(&list(&[("a/x", "1", 2)]), wanted, &[("a/x", "1", 9), ("a/new", "3", 1)]), "");
    }

    #[test]
    fn a_deleted_policy_is_waited_for_until_nobody_enforces_it() {
        let expected = "the end of NetworkPolicy a/old, which is deleted, to be seen";
        assert_eq!(waits(&list(&[("a/old", "1", 1)]), &[], &[]), expected);
        assert_eq!(waits(&list(&[("a/old", "1", 1)]), &[], &[("a/old", "1", 1)]), "");
    }

    #[test]
    fn an_agent_is_waited_for_until_it_has_carried_everything_out() {
        let ready = list(&[]);
        assert_eq!(waits_for(&ready, None), None);
        let behind = PolicyList { generation: 9, enforced: 7, ..ready.clone() };
        assert!(waits_for(&behind, None).unwrap().contains("generation 7 of 9"));
        let looking = PolicyList { unresolved: vec!["10.0.0.1".parse().unwrap()], settled: false, ..ready.clone() };
        assert_eq!(waits_for(&looking, None).unwrap(), "the pod of address 10.0.0.1 to be found");
        let kinds = vec![KindReport { kind: "Pod".into(), error: Some("refused".into()), ..KindReport::default() }];
        let source = SourceReport { kinds, synced: false, ..SourceReport::default() };
        let starting = waits_for(&PolicyList { source, ..ready }, None).unwrap();
        assert!(starting.contains("Pod not read yet: refused"), "{starting}");
    }
}
