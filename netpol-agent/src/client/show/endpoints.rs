//! `netpol endpoints`: a row a pod.

use super::{Sight, or_dash, push_refused, state_cell};
use crate::client::ask::Answers;
use crate::client::table::{Cell, Style, Table};
use crate::observe::answer::{EndpointList, EndpointReport, Isolation};

/// The table.
pub(in crate::client) fn endpoints(answers: &Answers<EndpointList>, sight: Sight) -> String {
    let mut table = Table::new(["NODE", "POD", "ADDRESSES", "INTERFACE", "SLOT", "STATE", "INGRESS", "EGRESS"]);
    for (node, list) in answers.given() {
        let mut endpoints: Vec<&EndpointReport> = list.endpoints.iter().collect();
        endpoints.sort_by(|left, right| (&left.pod, &left.interface).cmp(&(&right.pod, &right.interface)));
        for endpoint in endpoints {
            let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
            table.push([
                or_dash(node),
                if endpoint.pod.is_empty() { "(not known yet)".into() } else { endpoint.pod.as_str().into() },
                or_dash(&addresses.join(",")),
                endpoint.interface.as_str().into(),
                endpoint.slot.into(),
                state_cell(&endpoint.state),
                isolation(endpoint, &endpoint.ingress),
                isolation(endpoint, &endpoint.egress),
            ]);
        }
    }
    if table.is_empty() && answers.missing() == 0 {
        return "no pods\n".to_owned();
    }
    push_refused(&mut table, answers);
    table.render(sight.colour)
}

fn isolation(endpoint: &EndpointReport, isolation: &Isolation) -> Cell {
    match (isolation.isolated, isolation.by.as_slice()) {
        _ if endpoint.pod.is_empty() => "-".into(),
        (false, _) => "open".into(),
        (true, []) => Cell::styled("all denied", Style::Bad),
        (true, policies) => policies.join(",").into(),
    }
}
