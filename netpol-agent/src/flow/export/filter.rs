//! Which flows are exported: Hubble's FlowFilter as JSON, allow lists and deny lists. Inside a filter every field must match,
//! by any of its values; a flow is taken if some filter of the allow list matches (or there is none) and none of the deny
//! list. A field that is not known here is refused rather than passed over.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::flow::{End, Flow};

/// Both lists.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// One of these must match, if there are any.
    pub allow: Vec<FlowFilter>,
    /// None of these may.
    pub deny: Vec<FlowFilter>,
}

/// Why a filter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No JSON, or not of a filter.
    #[error("not a flow filter: {0}; write e.g. {{\"source_pod\":[\"shop/\"],\"destination_port\":[\"443\"]}}")]
    Json(String),
    /// A value.
    #[error("{0:?} is no address, block or port")]
    Value(String),
}

/// The fields of Hubble's FlowFilter that can tell our flows apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    source_pod: Vec<String>,
    destination_pod: Vec<String>,
    source_ip: Vec<String>,
    destination_ip: Vec<String>,
    source_port: Vec<String>,
    destination_port: Vec<String>,
    protocol: Vec<String>,
    verdict: Vec<String>,
    traffic_direction: Vec<String>,
    /// Ours: the reason by its name.
    reason: Vec<String>,
}

impl FromStr for FlowFilter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let filter: Self = serde_json::from_str(text).map_err(|error| FilterError::Json(error.to_string()))?;
        for block in filter.source_ip.iter().chain(&filter.destination_ip) {
            if block.parse::<IpAddr>().is_err() && block.parse::<IpNet>().is_err() {
                return Err(FilterError::Value(block.clone()));
            }
        }
        match filter.source_port.iter().chain(&filter.destination_port).find(|port| port.parse::<u16>().is_err()) {
            Some(port) => Err(FilterError::Value(port.clone())),
            None => Ok(filter),
        }
    }
}

impl Filters {
    /// Whether a flow is wanted.
    #[must_use]
    pub fn take(&self, flow: &Flow) -> bool {
        let any = |filters: &[FlowFilter]| filters.iter().any(|filter| filter.matches(flow));
        (self.allow.is_empty() || any(&self.allow)) && !any(&self.deny)
    }
}

impl FlowFilter {
    fn matches(&self, flow: &Flow) -> bool {
        let (source, destination) = (&flow.source, &flow.destination);
        let verdict = if flow.reason.is_drop() { "DROPPED" } else { "FORWARDED" };
        let equal = |values: &[String], found: &str| values.iter().any(|value| value.eq_ignore_ascii_case(found));
        let holds = |values: &[String], matches: &dyn Fn(&[String]) -> bool| values.is_empty() || matches(values);
        holds(&self.source_pod, &|values| pod(values, source))
            && holds(&self.destination_pod, &|values| pod(values, destination))
            && holds(&self.source_ip, &|values| address(values, source))
            && holds(&self.destination_ip, &|values| address(values, destination))
            && holds(&self.source_port, &|values| port(values, source))
            && holds(&self.destination_port, &|values| port(values, destination))
            && holds(&self.protocol, &|values| protocol(values, &flow.protocol))
            && holds(&self.verdict, &|values| equal(values, verdict))
            && holds(&self.traffic_direction, &|values| equal(values, flow.direction.name()))
            && holds(&self.reason, &|values| equal(values, flow.reason.name()))
    }
}

/// `namespace/prefix`; no slash is namespace `default`; `namespace/` all of it; `/prefix` any namespace.
fn pod(values: &[String], end: &End) -> bool {
    let Some(pod) = &end.pod else { return false };
    values.iter().any(|value| {
        let (namespace, prefix) = value.split_once('/').unwrap_or(("default", value));
        (namespace.is_empty() || *namespace == *pod.namespace) && pod.name.starts_with(prefix)
    })
}

fn address(values: &[String], end: &End) -> bool {
    let Some(address) = end.ip else { return false };
    values.iter().any(|value| match (value.parse::<IpNet>(), value.parse::<IpAddr>()) {
        (Ok(block), _) => block.contains(&address),
        (Err(_), Ok(one)) => one == address,
        (Err(_), Err(_)) => false,
    })
}

fn port(values: &[String], end: &End) -> bool {
    end.port.is_some_and(|port| values.iter().any(|value| value.parse() == Ok(port)))
}

fn protocol(values: &[String], found: &str) -> bool {
    let is_icmp = found.starts_with("ICMP");
    values.iter().any(|value| value.eq_ignore_ascii_case(found) || (is_icmp && value.eq_ignore_ascii_case("icmp")))
}
