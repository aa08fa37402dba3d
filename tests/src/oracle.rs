//! The naive judge: NetworkPolicy semantics read off raw objects, one plain function for each rule.
//!
//! In: objects as JSON, exactly as a user or API server gives them ([`crate::judge::Change`]), and probes. Out: verdicts.
//! It shares no code with the agent, keeps no index and prepares nothing: every probe reads the objects again. Do not
//! make it clever; where it and the compiler differ, it must be the one that a reader can check with the API reference
//! beside it. The rules are those of `k8s.io/api/networking/v1` (types.go) and the concept page "Network Policies".
//!
//! Where Kubernetes leaves a choice, it takes netpol's: a pod and its own node always reach each other, hostNetwork pods
//! are node traffic, ICMP is let through by rules without `ports` only.
//!
//! It panics on objects that the API server would refuse: a judge that guesses is none. [`fault`] names deliberate faults for the test that the suites would notice them.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by a field that it lacks gives null")]
#![expect(clippy::panic, reason = "a judge that cannot read an object must stop the test")]

pub mod fault;

use std::net::IpAddr;

use serde_json::{Map, Value};

use self::fault::Fault;
use crate::judge::{Change, Judge, Name, Objects, Probe, Protocol, Side, Verdict};

/// The judge: the objects as they came, and at most one deliberate fault.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    objects: Objects,
    fault: Option<Fault>,
}

/// Which section of a policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// A rule in its context: everything that matching a peer or a port may depend on.
#[derive(Clone, Copy)]
struct Context<'a> {
    policy: &'a Value,
    /// Every block of every policy that isolates the subject in this direction; only a fault looks at it.
    all_blocks: &'a [Value],
    peer: &'a Side,
    /// Who may be reached: the subject itself for ingress, the live pods at the peer's address for egress.
    destination_pods: &'a [&'a Value],
    probe: &'a Probe,
}

impl Oracle {
    /// A judge with one deliberate fault.
    #[must_use]
    pub fn with_fault(fault: Fault) -> Self {
        Self { objects: Objects::default(), fault: Some(fault) }
    }

    /// The objects as they are now.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Allowed needs the source's egress and the destination's ingress, each judged for itself.
    #[must_use]
    pub fn judge(&self, probe: &Probe) -> Verdict {
        Verdict {
            ingress: self.lets_through(Direction::Ingress, &probe.destination, &probe.source, probe),
            egress: self.has(Fault::EgressNotEnforced)
                || self.lets_through(Direction::Egress, &probe.source, &probe.destination, probe),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// What policy says to one side (the subject) about traffic with the other (the peer).
    fn lets_through(&self, direction: Direction, subject: &Side, peer: &Side, probe: &Probe) -> bool {
        let Some((namespace, pod)) = self.policed_pod(subject) else {
            return true;
        };
        if subject.address == peer.address {
            return true; // A pod always reaches its own address.
        }
        if !self.has(Fault::OwnNodeNotExempt) && self.is_node_of(pod, peer.address) {
            return true;
        }
        let isolating: Vec<&Value> = self
            .objects
            .of("NetworkPolicy")
            .map(|(_, policy)| policy)
            .filter(|policy| self.selects(policy, namespace, pod) && self.has_type(policy, direction))
            .collect();
        if isolating.is_empty() {
            return true;
        }
        let all_blocks: Vec<Value> = isolating.iter().flat_map(|policy| blocks(policy, direction)).collect();
        let destination_pods: Vec<&Value> = match direction {
            Direction::Ingress => vec![pod],
            Direction::Egress => self.owners(peer.address).into_iter().map(|(_, pod)| pod).collect(),
        };
        isolating.iter().any(|policy| {
            let context = Context { policy, all_blocks: &all_blocks, peer, destination_pods: &destination_pods, probe };
            list(&policy["spec"], section(direction))
                .iter()
                .any(|rule| self.peers_match(rule, peers_field(direction), context) && self.ports_match(rule, context))
        })
    }

    /// The pod behind a side, if policy acts on it: hostNetwork pods are node traffic, and a pod whose phase is Succeeded
    /// or Failed no longer owns its address. A terminating pod keeps both its access and its isolation.
    fn policed_pod<'a>(&'a self, side: &Side) -> Option<(&'a str, &'a Value)> {
        let (name, pod) = self.objects.0.get("Pod")?.get_key_value(side.pod.as_ref()?)?;
        (!is_host_network(pod) && !is_terminal(pod)).then_some((name.0.as_str(), pod))
    }

    /// The live pods that own an address.
    fn owners(&self, address: IpAddr) -> Vec<(&Name, &Value)> {
        self.objects
            .of("Pod")
            .filter(|(_, pod)| !is_host_network(pod) && !is_terminal(pod) && pod_addresses(pod).contains(&address))
            .collect()
    }

    /// Traffic between a pod and the node that it runs on is never policed.
    fn is_node_of(&self, pod: &Value, address: IpAddr) -> bool {
        let node = (String::new(), text(&pod["spec"]["nodeName"]).unwrap_or_default().to_owned());
        self.objects.get("Node", &node).is_some_and(|node| {
            list(&node["status"], "addresses").iter().any(|entry| parse_address(&entry["address"]) == address)
        })
    }

    /// A policy acts on the pods of its own namespace that its podSelector matches; a missing one matches all.
    fn selects(&self, policy: &Value, namespace: &str, pod: &Value) -> bool {
        text(&policy["metadata"]["namespace"]) == Some(namespace)
            && self.selector_matches(&policy["spec"]["podSelector"], &|key| label(pod, key))
    }

    /// policyTypes as written; if there are none, Ingress always and Egress if there is an egress rule.
    fn has_type(&self, policy: &Value, direction: Direction) -> bool {
        let written = list(&policy["spec"], "policyTypes");
        if !written.is_empty() {
            return written.iter().any(|name| text(name) == Some(type_name(direction)));
        }
        match direction {
            Direction::Ingress => true,
            Direction::Egress if self.has(Fault::PolicyTypesMissingIsIngressOnly) => false,
            Direction::Egress if self.has(Fault::PolicyTypesMissingIsBoth) => true,
            Direction::Egress => !list(&policy["spec"], "egress").is_empty(),
        }
    }

    /// `from`/`to`: missing, null and empty are everyone; else any item.
    fn peers_match(&self, rule: &Value, field: &str, context: Context<'_>) -> bool {
        let items = list(rule, field);
        if items.is_empty() {
            return !(self.has(Fault::EmptyFromIsNobody) && is_written(rule, field));
        }
        items.iter().any(|item| match item.get("ipBlock").filter(|block| !block.is_null()) {
            Some(block) => self.block_matches(block, context),
            None => self.selectors_match(item, context),
        })
    }

    /// podSelector and namespaceSelector of one item: both must match, and a missing namespaceSelector is the policy's
    /// own namespace. Selectors find pods only, by their address: never nodes, hostNetwork pods or outside hosts.
    fn selectors_match(&self, item: &Value, context: Context<'_>) -> bool {
        let owners = self.owners(context.peer.address);
        if owners.is_empty() {
            let everyone =
                item["namespaceSelector"].as_object().is_some_and(Map::is_empty) && is_missing(item, "podSelector");
            return everyone && self.has(Fault::EmptyNamespaceSelectorAdmitsOutsiders);
        }
        // Two live pods with one address: what only one of them may do, nobody may.
        owners.into_iter().all(|((namespace, _), pod)| {
            let in_namespace = if is_missing(item, "namespaceSelector") {
                text(&context.policy["metadata"]["namespace"]) == Some(namespace)
                    || self.has(Fault::PodSelectorAcrossNamespaces)
            } else {
                self.selector_matches(&item["namespaceSelector"], &|key| self.namespace_label(namespace, key))
            };
            let by_pod = self.selector_matches(&item["podSelector"], &|key| label(pod, key));
            if self.has(Fault::AndAsOr) && !is_missing(item, "namespaceSelector") && !is_missing(item, "podSelector") {
                return in_namespace || by_pod;
            }
            in_namespace && by_pod
        })
    }

    /// A label of a namespace; `kubernetes.io/metadata.name` is on every one.
    fn namespace_label<'a>(&'a self, namespace: &'a str, key: &str) -> Option<&'a str> {
        if key == "kubernetes.io/metadata.name" {
            return Some(namespace);
        }
        label(self.objects.get("Namespace", &(String::new(), namespace.to_owned()))?, key)
    }

    /// ipBlock goes by address, whoever has it; `except` cuts out of this block only.
    fn block_matches(&self, block: &Value, context: Context<'_>) -> bool {
        let address = context.peer.address;
        if self.has(Fault::BlockNotForPods) && !self.owners(address).is_empty() {
            return false;
        }
        if self.has(Fault::LongestPrefixShadows) && !fault::is_longest(block, context.all_blocks, address) {
            return false;
        }
        let excepted = list(block, "except").iter().any(|except| contains(except, address));
        contains(&block["cidr"], address) && (self.has(Fault::ExceptIgnored) || !excepted)
    }

    /// `ports`: missing, null and empty are every port of every protocol; else any item.
    fn ports_match(&self, rule: &Value, context: Context<'_>) -> bool {
        let items = list(rule, "ports");
        if items.is_empty() {
            return !(self.has(Fault::EmptyPortsIsNone) && is_written(rule, "ports"));
        }
        items.iter().any(|item| {
            // A missing protocol is TCP.
            let protocol = Protocol::from_name(text(&item["protocol"]).unwrap_or("TCP"));
            self.protocol_matches(protocol, context.probe.protocol) && self.port_matches(item, protocol, context)
        })
    }

    fn protocol_matches(&self, of_item: Option<Protocol>, of_probe: Protocol) -> bool {
        match of_item {
            Some(_) if self.has(Fault::ProtocolIgnored) => of_probe != Protocol::Icmp,
            Some(Protocol::Sctp) if self.has(Fault::SctpTakenAsTcp) => of_probe == Protocol::Tcp,
            of_item => of_item == Some(of_probe),
        }
    }

    /// A missing port is every port; a number reaches up to endPort; a name is the number under which the *destination*
    /// pod declares it for this protocol.
    fn port_matches(&self, item: &Value, protocol: Option<Protocol>, context: Context<'_>) -> bool {
        let probed = u64::from(context.probe.port);
        match &item["port"] {
            Value::Null => true,
            Value::Number(number) => {
                let first = number.as_u64();
                let last = if self.has(Fault::EndPortIgnored) { None } else { item["endPort"].as_u64() };
                first.is_some_and(|first| (first..=last.unwrap_or(first)).contains(&probed))
            }
            Value::String(name) if self.has(Fault::NamedPortsOncePerCluster) => {
                let mut declared = self.objects.of("Pod").filter_map(|(_, pod)| declared_port(pod, name, protocol));
                declared.next() == Some(probed)
            }
            Value::String(name) => {
                let pods = context.destination_pods;
                !pods.is_empty() && pods.iter().all(|pod| declared_port(pod, name, protocol) == Some(probed))
            }
            other @ (Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
                panic!("port is neither number nor name: {other}")
            }
        }
    }

    /// All requirements of a label selector hold; a missing or empty selector matches everything.
    fn selector_matches<'a>(&self, selector: &Value, label: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        let value_of =
            |key: &str| label(key).filter(|value| !(value.is_empty() && self.has(Fault::EmptyValueIsAbsent)));
        let by_labels = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, wanted)| {
            let both_empty = self.has(Fault::EmptyValueIsAbsent) && text(wanted) == Some("");
            let found = value_of(key);
            found == text(wanted) || (found.is_none() && both_empty)
        });
        let by_expressions = list(selector, "matchExpressions").iter().all(|requirement| {
            let found = value_of(text(&requirement["key"]).unwrap_or_default());
            let is_listed = found.is_some() && list(requirement, "values").iter().any(|value| text(value) == found);
            match text(&requirement["operator"]) {
                Some("In") => is_listed,
                Some("NotIn") if self.has(Fault::NotInFailsOnAbsentKey) => found.is_some() && !is_listed,
                Some("NotIn") => !is_listed, // An object without the key has none of the values.
                Some("Exists") => found.is_some(),
                Some("DoesNotExist") => found.is_none(),
                other => panic!("no operator of a label selector: {other:?}"),
            }
        });
        by_labels && (by_expressions || self.has(Fault::MatchExpressionsIgnored))
    }
}

impl Judge for Oracle {
    fn change(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        changes.iter().for_each(|change| self.objects.change(change));
        Ok(())
    }

    fn verdict(&mut self, probe: &Probe) -> anyhow::Result<Verdict> {
        Ok(self.judge(probe))
    }
}

const fn section(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

const fn peers_field(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

const fn type_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// A list; missing and null are empty.
fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

fn is_written(object: &Value, field: &str) -> bool {
    object[field].is_array()
}

fn is_missing(object: &Value, field: &str) -> bool {
    object[field].is_null()
}

fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    text(object["metadata"]["labels"].get(key)?)
}

fn is_host_network(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"].as_bool() == Some(true)
}

fn is_terminal(pod: &Value) -> bool {
    matches!(text(&pod["status"]["phase"]), Some("Succeeded" | "Failed"))
}

/// status.podIPs, or status.podIP where an older writer gives only that.
fn pod_addresses(pod: &Value) -> Vec<IpAddr> {
    let listed = list(&pod["status"], "podIPs");
    if listed.is_empty() {
        return pod["status"]["podIP"].as_str().map(|_| parse_address(&pod["status"]["podIP"])).into_iter().collect();
    }
    listed.iter().map(|entry| parse_address(&entry["ip"])).collect()
}

/// The number that a pod declares for a port name and protocol: containers, and init containers that stay (sidecars).
fn declared_port(pod: &Value, name: &str, protocol: Option<Protocol>) -> Option<u64> {
    let sidecars = list(&pod["spec"], "initContainers").iter().filter(|c| text(&c["restartPolicy"]) == Some("Always"));
    let mut ports = list(&pod["spec"], "containers").iter().chain(sidecars).flat_map(|c| list(c, "ports"));
    let wanted = ports.find(|port| {
        text(&port["name"]) == Some(name) && Protocol::from_name(text(&port["protocol"]).unwrap_or("TCP")) == protocol
    })?;
    wanted["containerPort"].as_u64()
}

/// The ipBlocks of one section of a policy.
fn blocks(policy: &Value, direction: Direction) -> Vec<Value> {
    let rules = list(&policy["spec"], section(direction));
    let peers = rules.iter().flat_map(|rule| list(rule, peers_field(direction)));
    peers.filter(|peer| !is_missing(peer, "ipBlock")).map(|peer| peer["ipBlock"].clone()).collect()
}

fn parse_address(value: &Value) -> IpAddr {
    let parsed = text(value).and_then(|address| address.parse().ok());
    parsed.unwrap_or_else(|| panic!("no IP address: {value}"))
}

/// Whether a CIDR holds an address: the first bits are equal. Host bits in the CIDR do not count, families never mix.
fn contains(cidr: &Value, address: IpAddr) -> bool {
    let written = text(cidr).unwrap_or_else(|| panic!("no CIDR: {cidr}"));
    let (network, length) = written.split_once('/').unwrap_or_else(|| panic!("no CIDR: {written}"));
    let length: u32 = length.parse().unwrap_or_else(|_| panic!("no prefix length: {written}"));
    match (parse_address(&Value::from(network)), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (0..length).all(|bit| {
            let mask = 1_u32 << (31 - bit);
            u32::from(network) & mask == u32::from(address) & mask
        }),
        (IpAddr::V6(network), IpAddr::V6(address)) => (0..length).all(|bit| {
            let mask = 1_u128 << (127 - bit);
            u128::from(network) & mask == u128::from(address) & mask
        }),
        _ => false,
    }
}
