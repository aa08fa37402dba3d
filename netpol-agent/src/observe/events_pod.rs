//! Kubernetes Events on pods whose packets policy denies (`--pod-events`), so that their owners hear of it where they look.
//!
//! In: flows. Out: an Event of type Warning and reason `PacketDrop`, as Hubble's, with the policies that isolate the pod. One
//! for each pod, direction and reason in two minutes, and few altogether ([`Gate`], pure). A task of its own publishes: an
//! API server that is slow or away loses events, which are not worth waiting for, and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use netpol_common::abi::{Direction, Reason};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cluster::model::{Pod, PodKey};
use crate::flow::{End, Flow};
use crate::problem::chain;

/// Why an Event was published: Hubble's word.
pub const PACKET_DROP: &str = "PacketDrop";
/// A pod is told of the same thing again after so long.
const INTERVAL: Duration = Duration::from_secs(120);
/// Events at once, and how long it takes to earn another.
const BURST: u32 = 20;
const EARNED: Duration = Duration::from_secs(6);
/// What is remembered at most; beyond that nobody is told until some of it is old.
const MOST: usize = 4096;
/// Events that wait for the API server.
const QUEUE: usize = 64;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Publishes; ends when dropped.
#[derive(Debug)]
pub struct PodEvents {
    gate: Gate,
    told: mpsc::Sender<Told>,
    task: JoinHandle<()>,
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    pod: PodKey,
    uid: String,
    note: String,
}

/// Decides what is worth an Event.
#[derive(Debug)]
struct Gate {
    told: BTreeMap<(PodKey, Direction, Reason), Instant>,
    allowance: u32,
    earned: Instant,
}

impl PodEvents {
    /// Starts publishing in the name of `node`.
    #[must_use]
    pub fn start(client: Client, node: &str) -> Self {
        let (told, queue) = mpsc::channel(QUEUE);
        Self { gate: Gate::new(Instant::now()), told, task: tokio::spawn(publish_all(client, node.to_owned(), queue)) }
    }

    /// Tells the pod of a flow that was denied at it, now and then. Never waits.
    pub fn flow(&mut self, flow: &Flow, pod: &Pod) {
        if !is_by_policy(flow.reason) || !self.gate.opens((&pod.key, flow.direction, flow.reason), Instant::now()) {
            return;
        }
        let told = Told { pod: pod.key.clone(), uid: pod.uid.to_string(), note: note(flow) };
        if self.told.try_send(told).is_err() {
            tracing::debug!(pod = %pod.key, "no room for an Event on a pod");
        }
    }
}

impl Drop for PodEvents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    const fn new(now: Instant) -> Self {
        Self { told: BTreeMap::new(), allowance: BURST, earned: now }
    }

    fn opens(&mut self, (pod, direction, reason): (&PodKey, Direction, Reason), now: Instant) -> bool {
        let key = (pod.clone(), direction, reason);
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= INTERVAL;
        if self.told.get(&key).is_some_and(|at| !is_old(at)) {
            return false;
        }
        while self.allowance < BURST && now.saturating_duration_since(self.earned) >= EARNED {
            self.allowance += 1;
            self.earned += EARNED;
        }
        if self.told.len() >= MOST {
            self.told.retain(|_, at| !is_old(at));
        }
        if self.allowance == 0 || self.told.len() >= MOST {
            return false;
        }
        if self.allowance == BURST {
            self.earned = now;
        }
        self.allowance -= 1;
        self.told.insert(key, now);
        true
    }
}

const fn is_by_policy(reason: Reason) -> bool {
    matches!(reason, Reason::PolicyDenied | Reason::DeniedAfterTranslation | Reason::FlowRevoked)
}

/// `Incoming packet dropped (policy-denied) from shop/web (10.0.1.11) TCP/80; isolated for ingress by shop/deny`.
fn note(flow: &Flow) -> String {
    let (way, to, peer) = match flow.direction {
        Direction::Ingress => ("Incoming", "from", &flow.source),
        Direction::Egress => ("Outgoing", "to", &flow.destination),
    };
    let port = flow.destination.port.map_or_else(String::new, |port| format!("/{port}"));
    let mut note = format!("{way} packet dropped ({}) {to} {} {}{port}", flow.reason, name(peer), flow.protocol);
    if !flow.policies.is_empty() {
        let names: Vec<String> = flow.policies.iter().take(5).map(ToString::to_string).collect();
        let direction = flow.isolated_for.unwrap_or(flow.direction).name();
        note = format!("{note}; isolated for {direction} by {}", names.join(", "));
    }
    if !flow.hint.is_empty() {
        note = format!("{note}; {}", flow.hint);
    }
    // The API server takes 1024 bytes.
    note.chars().take(250).collect()
}

fn name(end: &End) -> String {
    match (&end.pod, end.ip) {
        (Some(pod), Some(ip)) => format!("{pod} ({ip})"),
        (None, Some(ip)) => format!("world ({ip})"),
        (Some(pod), None) => pod.to_string(),
        (None, None) => "unknown".to_owned(),
    }
}

async fn publish_all(client: Client, node: String, mut queue: mpsc::Receiver<Told>) {
    while let Some(told) = queue.recv().await {
        let pod = told.pod.clone();
        match tokio::time::timeout(PATIENCE, publish(&client, &node, told)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%pod, error = chain(&error), "cannot publish an Event on a pod"),
            Err(_elapsed) => tracing::debug!(%pod, "an Event on a pod was not taken in time"),
        }
    }
}

async fn publish(client: &Client, node: &str, told: Told) -> Result<(), kube::Error> {
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(told.pod.namespace.to_string()),
        name: Some(told.pod.name.to_string()),
        uid: Some(told.uid).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: PACKET_DROP.to_owned(),
        note: Some(told.note),
        action: "Drop".to_owned(),
        secondary: None,
    };
    // A recorder counts events of one reason as one, and keeps the first one's note: each of ours has its own.
    let reporter = Reporter { controller: "netpol-agent".to_owned(), instance: Some(node.to_owned()) };
    Recorder::new(client.clone(), reporter).publish(&event, &regarding).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Headers, Match, Who};

    #[test]
    fn a_pod_is_told_once_in_a_while_and_a_thousand_pods_are_no_flood() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        let pod = PodKey::new("shop", "api");
        let denied = (&pod, Direction::Ingress, Reason::PolicyDenied);
        assert!(gate.opens(denied, now) && !gate.opens(denied, now + INTERVAL / 2));
        assert!(gate.opens((&pod, Direction::Egress, Reason::PolicyDenied), now));
        assert!(gate.opens(denied, now + INTERVAL));
        let later = now + 10 * INTERVAL;
        let pods: Vec<PodKey> = (0..1000).map(|number| PodKey::new("x", &number.to_string())).collect();
        let opened = |gate: &mut Gate, at| {
            pods.iter().filter(|pod| gate.opens((pod, Direction::Ingress, Reason::PolicyDenied), at)).count()
        };
        assert_eq!(opened(&mut gate, later), 20);
        assert_eq!(opened(&mut gate, later + EARNED), 1);
    }

    #[test]
    fn the_note_says_who_was_dropped_and_by_whom() {
        let end = |ip: &str, port| End {
            ip: Some(ip.parse().unwrap()),
            port: Some(port),
            pod: None,
            who: Who::default(),
            service: None,
        };
        let flow = Flow {
            time: std::time::SystemTime::UNIX_EPOCH,
            pod: Some(PodKey::new("shop", "api")),
            direction: Direction::Egress,
            reason: Reason::PolicyDenied,
            drop_reason: 133,
            source: End { pod: Some(PodKey::new("shop", "api")), ..end("10.0.0.2", 40_000) },
            destination: end("10.0.0.1", 80),
            protocol: "TCP".to_owned(),
            summary: String::new(),
            policies: vec![PodKey::new("shop", "deny")],
            isolated_for: None,
            hint: String::new(),
            length: 60,
            suppressed: 0,
            ifindex: 1,
            allowed_by: Vec::new(),
            matched: Match::None,
            headers: Headers::default(),
            slot: 1,
        };
        let expected =
            "Outgoing packet dropped (policy-denied) to world (10.0.0.1) TCP/80; isolated for egress by shop/deny";
        assert_eq!(note(&flow), expected);
    }
}
