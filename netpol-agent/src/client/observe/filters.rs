//! Filter flags -> the whitelist and blacklist of a request, as Hubble's client builds them. Pure.
//!
//! A flag about either side makes two filters, one for the source and one for the destination; all others go into both.
//! `--not` sends the next flag to the blacklist; all negated flags share its filters.

use super::flags::Given;
use super::words;
use crate::observe::hubble::proto::flow::{
    DropReason, EventTypeFilter, FlowFilter, HttpHeader, NetworkInterface, TcpFlags, TrafficDirection, Verdict,
    flow_filter,
};

/// Why filter flags cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `--not --not`.
    #[error("consecutive --not statements")]
    NotTwice,
    /// `--not` at the end.
    #[error("trailing --not found in the arguments")]
    NotLast,
    /// Two that mean the same, or contradict each other.
    #[error("filters --{0} and --{1} cannot be combined")]
    Conflict(&'static str, &'static str),
    /// A name with a namespace that is not among those asked for.
    #[error("namespace conflict: {namespace:?} does not contain {name:?}")]
    Namespace {
        /// The namespace asked for.
        namespace: String,
        /// The name.
        name: String,
    },
    /// A value that the flag cannot have.
    #[error("invalid --{flag} value: {value:?}{hint}")]
    Value {
        /// Which.
        flag: &'static str,
        /// The value.
        value: String,
        /// What would be one.
        hint: &'static str,
    },
}

/// Flags of which one excludes the others.
const CONFLICTS: [&[&str]; 16] = [
    &["from-fqdn", "from-ip", "ip", "fqdn", "from-namespace", "namespace", "from-all-namespaces", "all-namespaces"],
    &["from-fqdn", "from-ip", "ip", "fqdn", "from-pod", "pod"],
    &["to-fqdn", "to-ip", "ip", "fqdn", "to-namespace", "namespace", "to-all-namespaces", "all-namespaces"],
    &["to-fqdn", "to-ip", "ip", "fqdn", "to-pod", "pod"],
    &["to-pod", "namespace", "all-namespaces"],
    &["from-pod", "namespace", "all-namespaces"],
    &["to-service", "namespace", "all-namespaces"],
    &["from-service", "namespace", "all-namespaces"],
    &["label", "from-label"],
    &["label", "to-label"],
    &["service", "from-service"],
    &["service", "to-service"],
    &["port", "from-port"],
    &["port", "to-port"],
    &["identity", "from-identity"],
    &["identity", "to-identity"],
];
const MORE_CONFLICTS: [&[&str]; 4] = [
    &["identity", "to-identity"],
    &["workload", "from-workload"],
    &["workload", "to-workload"],
    &["encrypted", "unencrypted"],
];

/// One list while it is built.
#[derive(Clone, Debug, Default)]
struct List {
    left: FlowFilter,
    right: FlowFilter,
    namespaces: Vec<String>,
    from_namespaces: Vec<String>,
    to_namespaces: Vec<String>,
    used: Vec<&'static str>,
}

/// The lists that flags ask for: what to show, what to hide.
///
/// # Errors
/// The first flag that cannot be used.
pub fn lists(given: &[Given]) -> Result<(Vec<FlowFilter>, Vec<FlowFilter>), FlagError> {
    let (mut allow, mut deny) = (List::default(), List::default());
    let mut negated = false;
    for Given { name, value } in given {
        match (*name, negated) {
            ("not", true) => return Err(FlagError::NotTwice),
            ("not", false) => negated = true,
            (name, negate) => {
                let list = if negate { &mut deny } else { &mut allow };
                list.set(name, value)?;
                negated = false;
            }
        }
    }
    if negated {
        return Err(FlagError::NotLast);
    }
    Ok((allow.filters()?, deny.filters()?))
}

impl List {
    fn set(&mut self, name: &'static str, value: &str) -> Result<(), FlagError> {
        self.used.push(name);
        for group in CONFLICTS.iter().chain(&MORE_CONFLICTS).filter(|group| group.contains(&name)) {
            if let Some(other) = self.used.iter().find(|other| **other != name && group.contains(*other)) {
                return Err(FlagError::Conflict(other, name));
            }
        }
        if self.set_namespace(name, value) || self.set_side(name, value)? {
            return Ok(());
        }
        let mut filter = FlowFilter::default();
        set(&mut filter, name, value)?;
        merge(&mut self.left, &filter);
        merge(&mut self.right, &filter);
        Ok(())
    }

    fn set_namespace(&mut self, name: &str, value: &str) -> bool {
        let list = match name.trim_start_matches("from-").trim_start_matches("to-") {
            "namespace" | "all-namespaces" => match name {
                _ if name.starts_with("from-") => &mut self.from_namespaces,
                _ if name.starts_with("to-") => &mut self.to_namespaces,
                _ => &mut self.namespaces,
            },
            _ => return false,
        };
        list.push(if name.ends_with("all-namespaces") { String::new() } else { value.to_owned() });
        true
    }

    /// Flags of which there is one for each side, and one for either.
    fn set_side(&mut self, name: &'static str, value: &str) -> Result<bool, FlagError> {
        let what = name.trim_start_matches("from-").trim_start_matches("to-");
        let (mut source, mut destination) = (FlowFilter::default(), FlowFilter::default());
        let text = value.to_owned();
        match what {
            "pod" => (source.source_pod, destination.destination_pod) = (vec![text.clone()], vec![text]),
            "service" => (source.source_service, destination.destination_service) = (vec![text.clone()], vec![text]),
            "ip" => (source.source_ip, destination.destination_ip) = (vec![text.clone()], vec![text]),
            "fqdn" => (source.source_fqdn, destination.destination_fqdn) = (vec![text.clone()], vec![text]),
            "label" => (source.source_label, destination.destination_label) = (vec![text.clone()], vec![text]),
            "port" => (source.source_port, destination.destination_port) = (vec![text.clone()], vec![text]),
            "cluster" => {
                (source.source_cluster_name, destination.destination_cluster_name) = (vec![text.clone()], vec![text]);
            }
            "identity" => {
                let number = words::identity(value).ok_or_else(|| {
                    invalid(name, value, ", expected a number or the name of a reserved identity, as world or host")
                })?;
                (source.source_identity, destination.destination_identity) = (vec![number], vec![number]);
            }
            "workload" => {
                let workload = words::workload(value);
                source.source_workload = vec![workload.clone()];
                destination.destination_workload = vec![workload];
            }
            _ => return Ok(false),
        }
        match name {
            _ if name.starts_with("from-") => [&mut self.left, &mut self.right].map(|list| merge(list, &source)),
            _ if name.starts_with("to-") => [&mut self.left, &mut self.right].map(|list| merge(list, &destination)),
            _ => {
                merge(&mut self.left, &source);
                merge(&mut self.right, &destination);
                [(), ()]
            }
        };
        Ok(true)
    }

    fn filters(mut self) -> Result<Vec<FlowFilter>, FlagError> {
        if self.used.is_empty() {
            return Ok(Vec::new());
        }
        for filter in [&mut self.left, &mut self.right] {
            if !self.to_namespaces.is_empty() {
                apply(&self.to_namespaces, &mut filter.destination_pod, &mut filter.destination_service)?;
            }
            if !self.from_namespaces.is_empty() {
                apply(&self.from_namespaces, &mut filter.source_pod, &mut filter.source_service)?;
            }
        }
        if !self.namespaces.is_empty() {
            apply(&self.namespaces, &mut self.left.source_pod, &mut self.left.source_service)?;
            apply(&self.namespaces, &mut self.right.destination_pod, &mut self.right.destination_service)?;
        }
        Ok(if self.left == self.right { vec![self.left] } else { vec![self.left, self.right] })
    }
}

/// Puts names into namespaces; where no name is asked for, the namespaces are.
fn apply(namespaces: &[String], pods: &mut Vec<String>, services: &mut Vec<String>) -> Result<(), FlagError> {
    for name in pods.iter().chain(&*services) {
        let Some((of, _)) = name.split_once('/').filter(|(of, _)| !of.is_empty()) else { continue };
        if let Some(other) = namespaces.iter().find(|namespace| *namespace != of) {
            return Err(FlagError::Namespace { namespace: other.clone(), name: name.clone() });
        }
    }
    if pods.is_empty() && services.is_empty() {
        pods.push(String::new());
    }
    for names in [pods, services] {
        *names = names
            .iter()
            .flat_map(|name| match name.contains('/') {
                true => vec![name.clone()],
                false => namespaces.iter().map(|namespace| format!("{namespace}/{name}")).collect(),
            })
            .collect();
    }
    Ok(())
}

fn invalid(flag: &'static str, value: &str, hint: &'static str) -> FlagError {
    FlagError::Value { flag, value: value.to_owned(), hint }
}

/// Flags that say nothing of sides.
fn set(filter: &mut FlowFilter, name: &'static str, value: &str) -> Result<(), FlagError> {
    let text = || vec![value.to_owned()];
    match name {
        "uuid" => filter.uuid = text(),
        "snat-ip" => filter.source_ip_xlated = text(),
        "ipv4" => filter.ip_version = vec![words::ip_version("v4")],
        "ipv6" => filter.ip_version = vec![words::ip_version("v6")],
        "ip-version" => filter.ip_version = vec![words::ip_version(value)],
        "node-name" => filter.node_name = text(),
        "node-label" => filter.node_labels = text(),
        "protocol" => filter.protocol = text(),
        "trace-id" => filter.trace_id = text(),
        "http-status" => filter.http_status_code = text(),
        "http-method" => filter.http_method = text(),
        "http-path" => filter.http_path = text(),
        "http-url" => filter.http_url = text(),
        "interface" => filter.interface = vec![NetworkInterface { index: 0, name: value.to_owned() }],
        "encrypted" => filter.encrypted = vec![true],
        "unencrypted" => filter.encrypted = vec![false],
        "cel-expression" => filter.experimental = Some(flow_filter::Experimental { cel_expression: text() }),
        _ => return set_checked(filter, name, value),
    }
    Ok(())
}

/// Those whose value must be understood here.
fn set_checked(filter: &mut FlowFilter, name: &'static str, value: &str) -> Result<(), FlagError> {
    let wrong = |hint| invalid(name, value, hint);
    match name {
        "verdict" => {
            let verdict = Verdict::from_str_name(value).ok_or_else(|| wrong(", as DROPPED or FORWARDED"))?;
            filter.verdict = vec![verdict.into()];
        }
        "drop-reason-desc" => {
            let reason = DropReason::from_str_name(value).ok_or_else(|| wrong(", as POLICY_DENIED"))?;
            filter.drop_reason_desc = vec![reason.into()];
        }
        "traffic-direction" => {
            let direction = match value.to_lowercase().as_str() {
                "ingress" => TrafficDirection::Ingress,
                "egress" => TrafficDirection::Egress,
                _ => return Err(wrong(", expected ingress or egress")),
            };
            filter.traffic_direction = vec![direction.into()];
        }
        "type" => {
            let (r#type, sub_type) =
                words::event_type(value).ok_or_else(|| wrong(", expected a name as drop, or a number"))?;
            filter.event_type = vec![EventTypeFilter {
                r#type,
                match_sub_type: sub_type.is_some(),
                sub_type: sub_type.unwrap_or_default(),
            }];
        }
        "tcp-flags" => filter.tcp_flags = vec![tcp_flags(value).ok_or_else(|| wrong(", as syn,ack"))?],
        "ip-trace-id" => {
            let number = value.parse().ok().filter(|number| *number > 0_u64);
            filter.ip_trace_id = vec![number.ok_or_else(|| wrong("; must be greater than 0"))?];
        }
        "http-header" => {
            let (key, of) = value.split_once(':').ok_or_else(|| wrong(", expected name:value"))?;
            filter.http_header = vec![HttpHeader { key: key.to_owned(), value: of.to_owned() }];
        }
        _ => return Err(wrong("")),
    }
    Ok(())
}

fn tcp_flags(value: &str) -> Option<TcpFlags> {
    let mut flags = TcpFlags::default();
    for flag in value.split(',') {
        let set = match flag.to_uppercase().as_str() {
            "SYN" => &mut flags.syn,
            "FIN" => &mut flags.fin,
            "RST" => &mut flags.rst,
            "PSH" => &mut flags.psh,
            "ACK" => &mut flags.ack,
            "URG" => &mut flags.urg,
            "ECE" => &mut flags.ece,
            "CWR" => &mut flags.cwr,
            "NS" => &mut flags.ns,
            _ => return None,
        };
        *set = true;
    }
    Some(flags)
}

/// Adds one filter's values to another's: repeated fields of protobuf merge by appending.
fn merge(into: &mut FlowFilter, from: &FlowFilter) {
    use prost::Message as _;
    // Our own encoding is always one.
    if let Err(error) = into.merge(from.encode_to_vec().as_slice()) {
        tracing::error!(%error, "a filter cannot be merged");
    }
}
