//! Random NetworkPolicies in every form that the API server takes, or once took.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::{CROWDED, NAMESPACE_KEYS, NAMESPACES, OUTSIDE, POD_KEYS, PORTS, VALUES, around, object_of, pods};

pub(super) fn policies() -> impl Strategy<Value = Vec<Value>> {
    vec(policy(), 0..=6).prop_map(|policies| {
        let named = policies.into_iter().enumerate();
        named.map(|(number, (namespace, spec))| policy_object(namespace, &format!("np{number}"), &spec)).collect()
    })
}

/// A policy's namespace and spec.
pub(super) fn policy() -> impl Strategy<Value = (&'static str, Value)> {
    (select(&CROWDED[..]), spec())
}

pub(super) fn policy_object(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name }, "spec": spec,
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Value::Null)),
        1 => Just(Some(json!([]))),
        2 => Just(Some(json!(["Ingress"]))),
        2 => Just(Some(json!(["Egress"]))),
        3 => Just(Some(json!(["Ingress", "Egress"])))
    ];
    let subjects = prop_oneof![1 => nothing(), 4 => selector(POD_KEYS).prop_map(Some)];
    (subjects, types, list(rule("from"), 1..=3), list(rule("to"), 1..=3)).prop_map(
        |(subjects, types, ingress, egress)| {
            object_of([("podSelector", subjects), ("policyTypes", types), ("ingress", ingress), ("egress", egress)])
        },
    )
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    (list(peer(), 1..=3), list(port(), 1..=3))
        .prop_map(move |(peer_items, ports)| object_of([(peers, peer_items), ("ports", ports)]))
}

/// Missing, or null.
fn nothing() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![Just(None), Just(Some(Value::Null))]
}

/// A list in one of its forms: missing, null, empty, or with items.
fn list(
    item: impl Strategy<Value = Value> + 'static,
    size: std::ops::RangeInclusive<usize>,
) -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        1 => nothing(),
        1 => Just(Some(json!([]))),
        6 => vec(item, size).prop_map(|items| Some(Value::Array(items)))
    ]
    .boxed()
}

fn peer() -> impl Strategy<Value = Value> {
    let pods = || selector(POD_KEYS).prop_map(Some);
    let namespaces = || selector(NAMESPACE_KEYS).prop_map(Some);
    let selectors = |pods: Option<Value>, namespaces: Option<Value>| {
        object_of([("podSelector", pods), ("namespaceSelector", namespaces)])
    };
    prop_oneof![
        3 => (pods(), nothing()).prop_map(move |(pods, namespaces)| selectors(pods, namespaces)),
        3 => (nothing(), namespaces()).prop_map(move |(pods, namespaces)| selectors(pods, namespaces)),
        3 => (pods(), namespaces()).prop_map(move |(pods, namespaces)| selectors(pods, namespaces)),
        4 => block().prop_map(|block| json!({ "ipBlock": block }))
    ]
}

fn selector(keys: [&'static str; 2]) -> impl Strategy<Value = Value> {
    let values = || vec(select(&VALUES[..]), 1..=2);
    let name = prop_oneof![1 => select(&NAMESPACES[..]).prop_map(Some), 9 => Just(None)];
    let match_labels =
        (keys.map(|_| option::weighted(0.3, select(&VALUES[..]))), name).prop_map(move |(values, name)| {
            let by_name =
                name.filter(|_| keys == NAMESPACE_KEYS).map(|name| ("kubernetes.io/metadata.name", Value::from(name)));
            let by_key = keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, Value::from(value?))));
            Some(super::object(by_key.chain(by_name)))
        });
    let requirement = (select(keys.to_vec()), select(&["In", "NotIn", "Exists", "DoesNotExist"][..]), values())
        .prop_map(|(key, operator, values)| match operator {
            "In" | "NotIn" => json!({ "key": key, "operator": operator, "values": values }),
            operator => json!({ "key": key, "operator": operator }),
        });
    let expressions = vec(requirement, 1..=2).prop_map(|items| Some(Value::Array(items)));
    (prop_oneof![1 => nothing(), 2 => match_labels], prop_oneof![2 => nothing(), 2 => expressions]).prop_map(
        |(match_labels, expressions)| object_of([("matchLabels", match_labels), ("matchExpressions", expressions)]),
    )
}

/// Addresses that blocks are made around: of pods, nodes and hosts outside.
fn interesting_addresses() -> Vec<IpAddr> {
    let of_pods = (1..=2).flat_map(|node| (1..=8).flat_map(move |number| pods::addresses(node, number)));
    let of_nodes = (1..=2).flat_map(pods::node_addresses);
    of_pods.chain(of_nodes).chain(OUTSIDE.iter().filter_map(|address| address.parse().ok())).collect()
}

/// A block around such an address, with exceptions strictly inside it; objects older than the validation may have host bits.
fn block() -> impl Strategy<Value = Value> {
    let except = (any::<Index>(), 1..=128_u8);
    (any::<Index>(), any::<Index>(), proptest::bool::weighted(0.1), vec(except, 0..=2)).prop_map(
        |(address, length, host_bits, excepts)| {
            let all = interesting_addresses();
            let address = *address.get(&all);
            let lengths: &[u8] = match address {
                IpAddr::V4(_) => &[0, 1, 8, 16, 22, 24, 28, 29, 30, 31, 32],
                IpAddr::V6(_) => &[0, 1, 8, 48, 62, 64, 120, 124, 125, 127, 128],
            };
            let length = *length.get(lengths);
            let Some(block) = around(address, length) else { return Value::Null };
            let inside: Vec<IpAddr> = all.iter().copied().filter(|address| block.contains(address)).collect();
            let longest = block.max_prefix_len();
            let excepts = excepts.iter().filter(|_| length < longest).filter_map(|(at, extra)| {
                // Mostly a little longer than the block, or a single address.
                let extra = if extra % 3 == 0 { longest - length } else { extra % (longest - length) + 1 };
                around(*at.get(&inside), length + extra).map(|except| except.to_string())
            });
            let excepts: Vec<String> = excepts.collect();
            let cidr = if host_bits { format!("{address}/{length}") } else { block.to_string() };
            match excepts.is_empty() {
                true => json!({ "cidr": cidr }),
                false => json!({ "cidr": cidr, "except": excepts }),
            }
        },
    )
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop_oneof![
        1 => nothing(),
        2 => Just(Some(json!("TCP"))),
        1 => Just(Some(json!("UDP"))),
        1 => Just(Some(json!("SCTP")))
    ];
    let number = (select(&PORTS[..]), option::weighted(0.3, 0..=400_u16)).prop_map(|(first, more)| {
        let last = more.map(|more| Value::from(first.saturating_add(more)));
        (Some(Value::from(first)), last)
    });
    let name = select(&["web", "dns", "gone"][..]).prop_map(|name| (Some(Value::from(name)), None));
    let port = prop_oneof![1 => nothing().prop_map(|port| (port, None)), 4 => number, 2 => name];
    (protocol, port).prop_map(|(protocol, (port, end_port))| {
        object_of([("protocol", protocol), ("port", port), ("endPort", end_port)])
    })
}
