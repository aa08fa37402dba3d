//! Many ways to write the same policy.

use serde_json::{Value, json};

use super::{Random, TCP_PORT, UDP_PORT};

/// Pods that a file of policies is about, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ward {
    IngressOfBServer,
    IngressOfAServer,
    EgressOfAClient,
    EgressOfBClient,
    /// Nothing leaves the jailed pod.
    Jail,
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Namespace, app, addresses.
    Pod(&'static str, &'static str, [&'static str; 2]),
    Outside,
}

const A_CLIENT: Peer = Peer::Pod("a", "client", ["10.244.1.11/32", "fd00:10:244:1::11/128"]);
const A_SERVER: Peer = Peer::Pod("a", "server", ["10.244.1.12/32", "fd00:10:244:1::12/128"]);
const B_CLIENT: Peer = Peer::Pod("b", "client", ["10.244.1.21/32", "fd00:10:244:1::21/128"]);
const B_SERVER: Peer = Peer::Pod("b", "server", ["10.244.1.22/32", "fd00:10:244:1::22/128"]);

/// A rule: items of `from` or `to`, and of `ports`.
struct Rule {
    peers: Vec<Value>,
    ports: Value,
}

impl Ward {
    pub(super) const ALL: [Self; 5] =
        [Self::IngressOfBServer, Self::IngressOfAServer, Self::EgressOfAClient, Self::EgressOfBClient, Self::Jail];

    const fn name(self) -> &'static str {
        match self {
            Self::IngressOfBServer => "b-server-in",
            Self::IngressOfAServer => "a-server-in",
            Self::EgressOfAClient => "a-client-out",
            Self::EgressOfBClient => "b-client-out",
            Self::Jail => "jail",
        }
    }

    /// One of two files.
    pub(super) fn file(self, other: bool) -> String {
        format!("{}-{}.json", if other { 40 } else { 20 }, self.name())
    }

    /// Namespace and app of the pods.
    const fn subject(self) -> (&'static str, &'static str) {
        match self {
            Self::IngressOfBServer => ("b", "server"),
            Self::IngressOfAServer => ("a", "server"),
            Self::EgressOfAClient => ("a", "client"),
            Self::EgressOfBClient => ("b", "client"),
            Self::Jail => ("a", "jailed"),
        }
    }

    const fn is_ingress(self) -> bool {
        matches!(self, Self::IngressOfBServer | Self::IngressOfAServer)
    }

    fn peers(self) -> Vec<Peer> {
        match self {
            Self::IngressOfBServer => vec![A_CLIENT, Peer::Outside],
            Self::IngressOfAServer => vec![B_CLIENT],
            Self::EgressOfAClient => vec![B_SERVER, Peer::Outside],
            Self::EgressOfBClient => vec![A_SERVER],
            Self::Jail => Vec::new(),
        }
    }

    /// One of many sets of policies that mean the same. `serial` goes into the names.
    pub(super) fn policies(self, random: &mut Random, serial: u64) -> Vec<Value> {
        let mut rules: Vec<Rule> = self.peers().into_iter().map(|peer| peer.rule(random)).collect();
        let (_, app) = self.subject();
        let by_label = json!({"matchLabels": {"app": app}});
        let by_expression = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [app, "nobody"]}]});
        let make = |part: usize, selector: &Value, rules: &[Rule]| {
            self.policy(&format!("{}-{serial}-{part}", self.name()), selector, rules)
        };
        match random.below(5) {
            0 => vec![make(0, &by_label, &rules)],
            1 => {
                rules.reverse();
                vec![make(1, &by_expression, &rules), make(0, &by_label, &[])]
            }
            // Split by rule, and further by peer.
            2 if !rules.is_empty() => {
                rules.iter().zip(0..).map(|(rule, part)| make(part, &by_label, std::slice::from_ref(rule))).collect()
            }
            3 if !rules.is_empty() => {
                let one = |rule: &Rule| -> Vec<Rule> {
                    rule.peers
                        .iter()
                        .map(|peer| Rule { peers: vec![peer.clone()], ports: rule.ports.clone() })
                        .collect()
                };
                let rules: Vec<Rule> = rules.iter().flat_map(one).collect();
                rules.iter().zip(0..).map(|(rule, part)| make(part, &by_label, std::slice::from_ref(rule))).collect()
            }
            // A policy for either colour that the subject may have.
            _ => ["red", "blue"]
                .iter()
                .zip(0..)
                .map(|(colour, part)| make(part, &json!({"matchLabels": {"app": app, "colour": colour}}), &rules))
                .collect(),
        }
    }

    fn policy(self, name: &str, selector: &Value, rules: &[Rule]) -> Value {
        let (namespace, _) = self.subject();
        let (direction, section, peers) =
            if self.is_ingress() { ("Ingress", "ingress", "from") } else { ("Egress", "egress", "to") };
        let rules: Vec<Value> = rules.iter().map(|rule| json!({peers: rule.peers, "ports": rule.ports})).collect();
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"podSelector": selector, "policyTypes": [direction], section: rules},
        })
    }
}

impl Peer {
    fn rule(self, random: &mut Random) -> Rule {
        let (peers, by_name) = match self {
            Self::Pod(namespace, app, addresses) => pod_peers(random, namespace, app, addresses),
            Self::Outside => (outside_peers(random), false),
        };
        Rule { peers, ports: ports(random, by_name) }
    }
}

/// Items that select one pod and nobody who must stay out; true if they are selectors, with which a port may be named.
fn pod_peers(random: &mut Random, namespace: &str, app: &str, addresses: [&str; 2]) -> (Vec<Value>, bool) {
    let by_name = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    let teams = [format!("{namespace}1"), format!("{namespace}2")];
    let other_side = if namespace == "a" { "b" } else { "a" };
    let items = match random.below(6) {
        0 => vec![json!({"namespaceSelector": by_name, "podSelector": {"matchLabels": {"app": app}}})],
        1 => vec![json!({
            "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": teams}]},
            "podSelector": {"matchLabels": {"app": app}},
        })],
        2 => ["red", "blue"]
            .map(|colour| {
                json!({"namespaceSelector": by_name, "podSelector": {"matchLabels": {"app": app, "colour": colour}}})
            })
            .to_vec(),
        3 => vec![json!({
            "namespaceSelector": {},
            "podSelector": {"matchExpressions": [
                {"key": "app", "operator": "In", "values": [app]},
                {"key": "side", "operator": "NotIn", "values": [other_side]},
            ]},
        })],
        4 => teams
            .map(|team| {
                json!({
                    "namespaceSelector": {"matchLabels": {"team": team}},
                    "podSelector": {"matchExpressions": [
                        {"key": "app", "operator": "In", "values": [app]}, {"key": "noise", "operator": "Exists"},
                    ]},
                })
            })
            .to_vec(),
        _ => return (addresses.map(|cidr| json!({"ipBlock": {"cidr": cidr}})).to_vec(), false),
    };
    (items, true)
}

/// Items that hold the outside host's first addresses and not the stranger's, nor a pod's.
fn outside_peers(random: &mut Random) -> Vec<Value> {
    let blocks: &[(&str, &[&str])] = match random.below(4) {
        0 => &[("192.0.2.0/24", &[]), ("2001:db8::/64", &[])],
        1 => &[("0.0.0.0/0", &["198.51.100.0/24", "10.0.0.0/8"]), ("::/0", &["2001:db8:100::/48", "fd00::/8"])],
        2 => &[("192.0.2.96/27", &["192.0.2.112/28"]), ("2001:db8::100/120", &[])],
        _ => &[("192.0.2.0/25", &["192.0.2.0/26"]), ("192.0.2.128/25", &[]), ("2001:db8::/32", &["2001:db8:100::/40"])],
    };
    blocks.iter().map(|(cidr, except)| json!({"ipBlock": {"cidr": cidr, "except": except}})).collect()
}

fn ports(random: &mut Random, by_name: bool) -> Value {
    match random.below(if by_name { 4 } else { 3 }) {
        0 => json!([
            {"protocol": "TCP", "port": 7000, "endPort": 7003},
            {"protocol": "UDP", "port": 7000, "endPort": 7003},
        ]),
        1 => json!([{"port": TCP_PORT}, {"protocol": "UDP", "port": UDP_PORT}]),
        2 => json!([
            {"protocol": "UDP", "port": UDP_PORT}, {"protocol": "UDP", "port": 7002},
            {"protocol": "TCP", "port": 6990, "endPort": 7008},
        ]),
        _ => json!([{"port": "web"}, {"protocol": "UDP", "port": UDP_PORT}]),
    }
}

/// The client is isolated for ingress and hears replies only.
pub(super) fn mute() -> Vec<Value> {
    vec![json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "mute", "namespace": "a"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress"]},
    })]
}

/// Rules about a port that nobody uses, which tell apart who was alike before: every identity gets another number.
pub(super) fn noise(random: &mut Random) -> Vec<Value> {
    let noise = random.number(5).to_string();
    let block = match random.below(4) {
        0 => json!({"cidr": "10.244.1.0/28"}),
        1 => json!({"cidr": "10.244.0.0/16", "except": ["10.244.1.16/28"]}),
        2 => json!({"cidr": "192.0.2.64/26", "except": ["192.0.2.100/32"]}),
        _ => json!({"cidr": "2001:db8::/48", "except": ["2001:db8::/72"]}),
    };
    let of = |namespace: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "noise", "namespace": namespace},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "policyTypes": ["Ingress"],
                "ingress": [{
                    "from": [
                        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"noise": noise}}},
                        {"ipBlock": block},
                    ],
                    "ports": [{"port": 6000}],
                }],
            },
        })
    };
    ["a", "b"].map(of).to_vec()
}
