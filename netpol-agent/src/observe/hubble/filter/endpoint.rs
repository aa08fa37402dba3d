//! Checks of a flow's ends: pods, services, labels, identities, workloads, clusters.

use super::checks::Checks;
use super::labels::LabelSelector;
use super::{Check, FilterError};
use crate::observe::hubble::proto::flow::{Endpoint, Flow, FlowFilter, Service, Workload};

/// Picks one end of a flow.
pub(super) type End = fn(&Flow) -> Option<&Endpoint>;

/// The namespace of a name that has none.
const DEFAULT_NAMESPACE: &str = "default";

/// `namespace/prefix`, taken apart; an empty part matches anything.
struct NamePrefix {
    namespace: String,
    prefix: String,
}

impl NamePrefix {
    fn parse(name: &str) -> Result<Self, FilterError> {
        if name.is_empty() {
            return Err(FilterError::Name(name.to_owned()));
        }
        let (namespace, prefix) = name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name));
        Ok(Self { namespace: namespace.to_owned(), prefix: prefix.to_owned() })
    }

    fn matches(&self, namespace: &str, name: &str) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace) && name.starts_with(&self.prefix)
    }
}

fn names(
    names: &[String],
    of: impl for<'f> Fn(&'f Flow) -> Option<(&'f str, &'f str)> + Send + Sync + 'static,
) -> Result<Check, FilterError> {
    let asked = names.iter().map(|name| NamePrefix::parse(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(move |flow| {
        let Some((namespace, name)) = of(flow) else { return false };
        (!namespace.is_empty() || !name.is_empty()) && asked.iter().any(|it| it.matches(namespace, name))
    }))
}

pub(super) fn pods(asked: &[String], end: End) -> Result<Check, FilterError> {
    names(asked, move |flow| end(flow).map(|it| (it.namespace.as_str(), it.pod_name.as_str())))
}

pub(super) fn services(asked: &[String], of: fn(&Flow) -> Option<&Service>) -> Result<Check, FilterError> {
    names(asked, move |flow| of(flow).map(|it| (it.namespace.as_str(), it.name.as_str())))
}

pub(super) fn identities(numbers: Vec<u32>, end: End) -> Check {
    Box::new(move |flow| end(flow).is_some_and(|it| numbers.contains(&it.identity)))
}

pub(super) fn workloads(asked: Vec<Workload>, end: End) -> Check {
    let same = |asked: &str, value: &str| asked.is_empty() || asked == value;
    Box::new(move |flow| {
        let workloads = end(flow).map(|it| it.workloads.as_slice()).unwrap_or_default();
        workloads.iter().any(|of| asked.iter().any(|it| same(&it.name, &of.name) && same(&it.kind, &of.kind)))
    })
}

pub(super) fn clusters(names: Vec<String>, end: End) -> Result<Check, FilterError> {
    if names.iter().any(String::is_empty) {
        return Err(FilterError::EmptyClusterName);
    }
    Ok(Box::new(move |flow| {
        let name = end(flow).map(|it| it.cluster_name.as_str()).unwrap_or_default();
        names.iter().any(|asked| asked == name)
    }))
}

/// The label fields of a filter; a flow without that end has no labels, which `!a` and `a!=b` match.
pub(super) fn label_checks(
    filter: &FlowFilter,
    checks: &mut Checks,
    source: End,
    destination: End,
) -> Result<(), FilterError> {
    for (side, selectors, end) in
        [("source", &filter.source_label, source), ("destination", &filter.destination_label, destination)]
    {
        let of = move |flow: &Flow, selectors: &[LabelSelector]| {
            let labels = end(flow).map(|it| it.labels.as_slice()).unwrap_or_default();
            selectors.iter().any(|selector| selector.matches(labels))
        };
        checks.add(selectors, |texts| labels(side, &texts, of))?;
    }
    checks.add(&filter.node_labels, |texts| {
        labels("node", &texts, |flow, selectors| selectors.iter().any(|it| it.matches(&flow.node_labels)))
    })
}

fn labels(
    side: &'static str,
    texts: &[String],
    matches: impl Fn(&Flow, &[LabelSelector]) -> bool + Send + Sync + 'static,
) -> Result<Check, FilterError> {
    let parse = |text: &String| LabelSelector::parse(text).map_err(|error| FilterError::Label { side, error });
    let selectors = texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(move |flow| matches(flow, &selectors)))
}
