//! The smallest changes that would let a denied side through: [`Hint`]s that can be applied as they stand.
//!
//! Three kinds, in the order in which they are offered: one more port or peer in a rule that was nearest, a label on the
//! peer that such a rule waits for, and a policy of its own. A new policy selects only pods that are isolated already, so
//! that it takes nothing away from anybody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::abi::Direction;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::facts::protocol_name;
use super::naive::{PeerReason, RuleMiss};
use super::{Facts, Side, Traffic};
use crate::cluster::model::{
    Labels, NetworkPolicy, Peers, Pod, PolicyKey, PortMatch, PortRange, Ports, Requirement, Rule, Selector,
};
use crate::cluster::state::NAMESPACE_NAME_LABEL;

/// Something to do, and what it opens besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hint {
    /// In a clause.
    pub summary: String,
    /// What to do.
    pub change: Change,
    /// What else it lets through.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub caution: Option<String>,
}

/// A change to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Change {
    /// A JSON patch (RFC 6902) of a NetworkPolicy.
    PatchPolicy {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The patch.
        patch: Value,
    },
    /// A new NetworkPolicy.
    CreatePolicy {
        /// The object.
        manifest: Value,
    },
    /// Labels of a pod; what makes the pod (a Deployment's template) is to get them too.
    LabelPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The labels.
        labels: BTreeMap<String, String>,
    },
}

/// Labels that say what a pod is, the most telling first.
const TELLING: [&str; 6] = ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app", "k8s-app", "name", "run"];
/// Labels that controllers make up: they name one pod, or one version of it.
const MADE_UP: [&str; 6] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
];

/// What would let a denied side through.
#[must_use]
pub(super) fn hints(facts: &Facts<'_>, side: Side<'_>, isolated_by: &[PolicyKey], misses: &[RuleMiss]) -> Vec<Hint> {
    let mut hints = Vec::new();
    let in_place = misses.iter().find_map(|miss| add_port(facts, side, miss));
    let in_place = in_place.or_else(|| misses.iter().find_map(|miss| add_peer(facts, side, miss)));
    hints.extend(in_place);
    hints.extend(misses.iter().find_map(|miss| label_pod(facts, side, miss)));
    hints.extend(new_policy(facts, side, isolated_by));
    hints
}

/// The rule is about the peer: it lacks the port.
fn add_port(facts: &Facts<'_>, side: Side<'_>, miss: &RuleMiss) -> Option<Hint> {
    let (None, Some([_, ..])) = (&miss.peers, miss.ports.as_deref()) else { return None };
    let Traffic::Port(..) = side.traffic else { return None };
    let rule = rule_of(facts, miss)?;
    let others = match &rule.peers {
        Peers::Everyone => Some("the rule is about everyone: the port opens to all, hosts outside too".to_owned()),
        Peers::AnyOf(_) => Some("the port opens to every peer of the rule".to_owned()),
    };
    Some(Hint {
        summary: format!("add {} to the ports of {}", side.traffic, miss.rule),
        change: patch(miss, "ports", port_json(side.traffic)?),
        caution: others,
    })
}

/// The rule takes the port: it lacks the peer.
fn add_peer(facts: &Facts<'_>, side: Side<'_>, miss: &RuleMiss) -> Option<Hint> {
    let (Some([_, ..]), None) = (miss.peers.as_deref(), &miss.ports) else { return None };
    let rule = rule_of(facts, miss)?;
    let list = peers_field(side.direction);
    let more = match &rule.ports {
        Ports::Everything => Some("the rule takes every port: all of them open to this peer".to_owned()),
        Ports::AnyOf(ports) => match (ports.as_slice(), side.traffic) {
            ([PortMatch { ports: PortRange::Numbers(first, last), .. }], Traffic::Port(..)) if first == last => None,
            _ => Some("the rule's other ports open to this peer too".to_owned()),
        },
    };
    Some(Hint {
        summary: format!("add the peer to `{list}` of {}", miss.rule),
        change: patch(miss, list, peer_json(facts, side, &miss.rule.policy)),
        caution: more,
    })
}

/// A rule takes the port and waits for labels that the one pod at the peer's address could have.
fn label_pod(facts: &Facts<'_>, side: Side<'_>, miss: &RuleMiss) -> Option<Hint> {
    let (Some(peers), None) = (miss.peers.as_deref(), &miss.ports) else { return None };
    let pod = sole_owner(facts, side.peer.address)?;
    let labels = peers.iter().find_map(|peer| {
        let wanted = peer.because.iter().map(|reason| match reason {
            PeerReason::PodLabel(_, Requirement::In(key, values), _) => {
                Some((key.to_string(), values.first()?.to_string()))
            }
            PeerReason::PodLabel(_, Requirement::Exists(key), _) => Some((key.to_string(), "true".to_owned())),
            PeerReason::PodLabel(..)
            | PeerReason::NotAPod
            | PeerReason::OtherNamespace(_)
            | PeerReason::NamespaceLabel(..)
            | PeerReason::OutsideBlock(_)
            | PeerReason::Excepted(..) => None,
        });
        let wanted: BTreeMap<String, String> = wanted.collect::<Option<_>>()?;
        // A key that two requirements give different values, or that another one forbids, is no way through.
        let mut after = Labels::clone(&pod.labels);
        after.extend(wanted.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())));
        let taken = wanted.len() == peer.because.len() && !wanted.is_empty();
        (taken && suits(facts, miss, &after)).then_some(wanted)
    })?;
    let shown: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Some(Hint {
        summary: format!("label pod {} with {}, which {} waits for", pod.key, shown.join(", "), miss.rule),
        change: Change::LabelPod { namespace: pod.key.namespace.to_string(), name: pod.key.name.to_string(), labels },
        caution: Some(
            "services, controllers and other policies go by labels too; a pod that is made anew gets its template's"
                .to_owned(),
        ),
    })
}

/// Whether some podSelector of the rule matches these labels.
fn suits(facts: &Facts<'_>, miss: &RuleMiss, labels: &Labels) -> bool {
    let Some(Rule { peers: Peers::AnyOf(peers), .. }) = rule_of(facts, miss) else { return false };
    peers.iter().any(|peer| match peer {
        crate::cluster::model::Peer::Pods { pods, .. } => pods.matches(labels),
        crate::cluster::model::Peer::IpBlock(_) => false,
    })
}

/// A policy of its own, for pods that one of the isolating policies selects already.
fn new_policy(facts: &Facts<'_>, side: Side<'_>, isolated_by: &[PolicyKey]) -> Option<Hint> {
    let subject = facts.cluster.pod(side.subject.pod.as_ref()?)?;
    // The narrowest of them: the one that asks most.
    let policies = isolated_by.iter().filter_map(|key| facts.cluster.policy(key));
    let isolating = policies.max_by_key(|policy| policy.subjects.requirements.len())?;
    let mut rule = json!({ peers_field(side.direction): [peer_json(facts, side, &isolating.key)] });
    let ports = port_json(side.traffic);
    if let Some(port) = ports.clone() {
        set(&mut rule, "ports", json!([port]));
    }
    let (section, policy_type) = match side.direction {
        Direction::Ingress => ("ingress", "Ingress"),
        Direction::Egress => ("egress", "Egress"),
    };
    let name = free_name(facts, side, subject);
    let mut spec = json!({
        "podSelector": selector_json(&isolating.subjects, telling(&subject.labels)),
        "policyTypes": [policy_type],
    });
    set(&mut spec, section, json!([rule]));
    Some(Hint {
        summary: format!("create NetworkPolicy {}/{name}", subject.key.namespace),
        change: Change::CreatePolicy {
            manifest: json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": { "name": name, "namespace": &*subject.key.namespace },
                "spec": spec,
            }),
        },
        caution: ports
            .is_none()
            .then(|| "only a rule without ports lets ICMP through: every port opens to this peer as well".to_owned()),
    })
}

fn rule_of<'a>(facts: &Facts<'a>, miss: &RuleMiss) -> Option<&'a Rule> {
    let policy = facts.cluster.policy(&miss.rule.policy)?;
    let rules = match miss.rule.direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    };
    rules?.get(miss.rule.index)
}

const fn peers_field(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

fn patch(miss: &RuleMiss, list: &str, item: Value) -> Change {
    let path = format!("/spec/{}/{}/{list}/-", miss.rule.direction.name(), miss.rule.index);
    Change::PatchPolicy {
        namespace: miss.rule.policy.namespace.to_string(),
        name: miss.rule.policy.name.to_string(),
        patch: json!([{ "op": "add", "path": path, "value": item }]),
    }
}

fn port_json(traffic: Traffic) -> Option<Value> {
    match traffic {
        Traffic::Port(protocol, port) => Some(json!({ "protocol": protocol_name(protocol), "port": port })),
        Traffic::Other => None,
    }
}

/// The peer, as a policy in `policy`'s namespace names it: a pod by what it is, all else by address.
fn peer_json(facts: &Facts<'_>, side: Side<'_>, policy: &PolicyKey) -> Value {
    // Of several pods with one address a selector would have to match all.
    let Some(pod) = sole_owner(facts, side.peer.address) else {
        let bits = if side.peer.address.is_ipv4() { 32 } else { 128 };
        return json!({ "ipBlock": { "cidr": format!("{}/{bits}", side.peer.address) } });
    };
    let mut peer = json!({ "podSelector": selector_json(&Selector::default(), telling(&pod.labels)) });
    if pod.key.namespace != policy.namespace {
        let name = BTreeMap::from([(NAMESPACE_NAME_LABEL, &*pod.key.namespace)]);
        set(&mut peer, "namespaceSelector", json!({ "matchLabels": name }));
    }
    peer
}

fn sole_owner<'a>(facts: &Facts<'a>, address: IpAddr) -> Option<&'a Arc<Pod>> {
    let mut owners = facts.cluster.claimants(address);
    let first = owners.next()?;
    if owners.next().is_some() { None } else { facts.cluster.pod(first) }
}

/// The labels that say what a pod is; if none is known to, all but those that controllers make up.
fn telling(labels: &Labels) -> BTreeMap<&str, &str> {
    let all = || labels.iter().map(|(key, value)| (&**key, &**value));
    let known: BTreeMap<&str, &str> = all().filter(|(key, _)| TELLING.contains(key)).collect();
    if known.is_empty() { all().filter(|(key, _)| !MADE_UP.contains(key)).collect() } else { known }
}

/// A label selector of these requirements and labels.
fn selector_json(selector: &Selector, labels: BTreeMap<&str, &str>) -> Value {
    let mut match_labels: BTreeMap<&str, &str> = labels;
    let mut expressions = Vec::new();
    for requirement in &selector.requirements {
        let (key, operator, values) = match requirement {
            Requirement::In(key, values) => (key, "In", values.as_slice()),
            Requirement::NotIn(key, values) => (key, "NotIn", values.as_slice()),
            Requirement::Exists(key) => (key, "Exists", [].as_slice()),
            Requirement::DoesNotExist(key) => (key, "DoesNotExist", [].as_slice()),
        };
        match (operator, values) {
            ("In", [value]) => _ = match_labels.insert(key, value),
            ("In" | "NotIn", values) => {
                let values: Vec<&str> = values.iter().map(|value| &**value).collect();
                expressions.push(json!({ "key": &**key, "operator": operator, "values": values }));
            }
            _ => expressions.push(json!({ "key": &**key, "operator": operator })),
        }
    }
    let mut written = json!({});
    if !match_labels.is_empty() {
        set(&mut written, "matchLabels", json!(match_labels));
    }
    if !expressions.is_empty() {
        set(&mut written, "matchExpressions", Value::Array(expressions));
    }
    written
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Value::Object(fields) = object {
        Map::insert(fields, field.to_owned(), value);
    }
}

/// `allow-api-from-web`, with a number behind it if that exists.
fn free_name(facts: &Facts<'_>, side: Side<'_>, subject: &Pod) -> String {
    let word = |pod: &Pod| {
        let known = TELLING.iter().find_map(|key| pod.labels.get(*key));
        known.map_or_else(|| pod.key.name.to_string(), ToString::to_string)
    };
    let peer = match sole_owner(facts, side.peer.address) {
        Some(pod) => word(pod),
        None => side.peer.address.to_string(),
    };
    let link = match side.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let base = as_name(&format!("allow-{}-{link}-{peer}", word(subject)));
    let is_free = |name: &String| {
        let key = PolicyKey::new(&subject.key.namespace, name);
        facts.cluster.policy(&key).map(Arc::as_ref).map(|it: &NetworkPolicy| &it.key).is_none()
    };
    let numbered = (2..1000).map(|number| format!("{base}-{number}"));
    std::iter::once(base.clone()).chain(numbered).find(is_free).unwrap_or(base)
}

/// What a DNS label may be, short enough for a number behind it.
fn as_name(text: &str) -> String {
    let lower = text.to_lowercase();
    let sound = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let name: String = lower.chars().map(sound).take(58).collect();
    name.trim_matches('-').to_owned()
}

impl Change {
    /// What to type: a command, and what goes to its standard input.
    #[must_use]
    pub fn command(&self) -> (String, Option<&Value>) {
        match self {
            Self::PatchPolicy { namespace, name, patch } => {
                (format!("kubectl patch networkpolicy -n {namespace} {name} --type=json -p '{patch}'"), None)
            }
            Self::CreatePolicy { manifest } => ("kubectl apply -f -".to_owned(), Some(manifest)),
            Self::LabelPod { namespace, name, labels } => {
                let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                (format!("kubectl label pod -n {namespace} {name} --overwrite {}", labels.join(" ")), None)
            }
        }
    }
}
