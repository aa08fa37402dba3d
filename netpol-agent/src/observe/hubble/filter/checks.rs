//! FlowFilter -> one check a field that has values.

use super::endpoint::{clusters, identities, label_checks, pods, services, workloads};
use super::names::{fqdns, nodes};
use super::packet::{addresses, ports, protocols, tcp_flags};
use super::{Check, Filter, FilterError};
use crate::observe::hubble::proto::flow::{self, Flow, FlowFilter};

/// Collects the checks of a filter.
#[derive(Default)]
pub(super) struct Checks(Vec<Check>);

impl Checks {
    /// Adds a check if its field has values.
    pub(super) fn add<T>(
        &mut self,
        values: &[T],
        check: impl FnOnce(Vec<T>) -> Result<Check, FilterError>,
    ) -> Result<(), FilterError>
    where
        T: Clone,
    {
        if !values.is_empty() {
            self.0.push(check(values.to_vec())?);
        }
        Ok(())
    }

    /// Adds a check that a flow's value is among those asked for.
    pub(super) fn equals<T>(&mut self, values: &[T], of: impl Fn(&Flow) -> Option<T> + Send + Sync + 'static)
    where
        T: PartialEq + Clone + Send + Sync + 'static,
    {
        if !values.is_empty() {
            let values = values.to_vec();
            self.0.push(Box::new(move |flow| of(flow).is_some_and(|value| values.contains(&value))));
        }
    }
}

/// Understands one filter. An empty one matches every flow.
pub(super) fn of(filter: &FlowFilter) -> Result<Filter, FilterError> {
    if filter.experimental.as_ref().is_some_and(|it| !it.cel_expression.is_empty()) {
        return Err(FilterError::Expression);
    }
    let mut checks = Checks::default();
    of_ends(filter, &mut checks)?;
    of_packet(filter, &mut checks)?;
    of_event(filter, &mut checks)?;
    if asks_for_requests(filter) {
        checks.0.push(Box::new(|_| false));
    }
    Ok(Filter(checks.0))
}

fn of_ends(filter: &FlowFilter, checks: &mut Checks) -> Result<(), FilterError> {
    let source: fn(&Flow) -> Option<&flow::Endpoint> = |flow| flow.source.as_ref();
    let destination: fn(&Flow) -> Option<&flow::Endpoint> = |flow| flow.destination.as_ref();
    checks.add(&filter.source_pod, |names| pods(&names, source))?;
    checks.add(&filter.destination_pod, |names| pods(&names, destination))?;
    checks.add(&filter.source_service, |names| services(&names, |flow| flow.source_service.as_ref()))?;
    checks.add(&filter.destination_service, |names| services(&names, |flow| flow.destination_service.as_ref()))?;
    checks.add(&filter.source_fqdn, |patterns| fqdns(&patterns, |flow| &flow.source_names))?;
    checks.add(&filter.destination_fqdn, |patterns| fqdns(&patterns, |flow| &flow.destination_names))?;
    label_checks(filter, checks, source, destination)?;
    checks.add(&filter.source_identity, |numbers| Ok(identities(numbers, source)))?;
    checks.add(&filter.destination_identity, |numbers| Ok(identities(numbers, destination)))?;
    checks.add(&filter.source_workload, |asked| Ok(workloads(asked, source)))?;
    checks.add(&filter.destination_workload, |asked| Ok(workloads(asked, destination)))?;
    checks.add(&filter.source_cluster_name, |names| clusters(names, source))?;
    checks.add(&filter.destination_cluster_name, |names| clusters(names, destination))
}

fn of_packet(filter: &FlowFilter, checks: &mut Checks) -> Result<(), FilterError> {
    checks.add(&filter.source_ip, |ips| addresses(&ips, |ip| &ip.source))?;
    checks.add(&filter.destination_ip, |ips| addresses(&ips, |ip| &ip.destination))?;
    checks.add(&filter.source_ip_xlated, |ips| addresses(&ips, |ip| &ip.source_xlated))?;
    checks.add(&filter.protocol, |names| protocols(&names))?;
    checks.add(&filter.source_port, |asked| ports("source", &asked, |(source, _)| source))?;
    checks.add(&filter.destination_port, |asked| ports("destination", &asked, |(_, destination)| destination))?;
    checks.add(&filter.tcp_flags, |asked| Ok(tcp_flags(asked)))?;
    checks.equals(&filter.ip_version, |flow| Some(flow.ip.as_ref().map_or(0, |ip| ip.ip_version)));
    checks.equals(&filter.encrypted, |flow| Some(flow.ip.as_ref().is_some_and(|ip| ip.encrypted)));
    Ok(())
}

fn of_event(filter: &FlowFilter, checks: &mut Checks) -> Result<(), FilterError> {
    checks.equals(&filter.verdict, |flow| Some(flow.verdict));
    checks.equals(&filter.uuid, |flow| Some(flow.uuid.clone()));
    checks.equals(&filter.traffic_direction, |flow| Some(flow.traffic_direction));
    checks.equals(&filter.drop_reason_desc, |flow| {
        (flow.verdict == i32::from(flow::Verdict::Dropped)).then_some(flow.drop_reason_desc)
    });
    // Unset says nothing of the direction, but a drop is never taken for a reply.
    checks.equals(&filter.reply, |flow| {
        flow.is_reply.or((flow.verdict == i32::from(flow::Verdict::Dropped)).then_some(false))
    });
    checks.add(&filter.event_type, |types| Ok(event_types(types)))?;
    checks.add(&filter.interface, |asked| Ok(interfaces(asked)))?;
    checks.add(&filter.node_name, |patterns| nodes(&patterns))
}

fn event_types(types: Vec<flow::EventTypeFilter>) -> Check {
    Box::new(move |flow| {
        let Some(event) = flow.event_type.as_ref() else { return false };
        types.iter().any(|asked| {
            (asked.r#type == 0 || asked.r#type == event.r#type)
                && (!asked.match_sub_type || asked.sub_type == event.sub_type)
        })
    })
}

fn interfaces(asked: Vec<flow::NetworkInterface>) -> Check {
    Box::new(move |flow| {
        let Some(interface) = flow.interface.as_ref() else { return false };
        asked.iter().any(|it| {
            (it.index == 0 || it.index == interface.index) && (it.name.is_empty() || it.name == interface.name)
        })
    })
}

/// True for a filter about requests of layer 7 or traces, which no flow of ours has.
fn asks_for_requests(filter: &FlowFilter) -> bool {
    let lists = [
        &filter.http_status_code,
        &filter.dns_query,
        &filter.http_method,
        &filter.http_path,
        &filter.http_url,
        &filter.trace_id,
    ];
    lists.iter().any(|values| !values.is_empty()) || !filter.http_header.is_empty() || !filter.ip_trace_id.is_empty()
}
