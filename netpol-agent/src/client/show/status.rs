//! `netpol status`: a row a node, more about a node that is asked alone, and everything that is not enforced as written.

use std::collections::BTreeMap;

use super::{Sight, counted, or_dash, push_refused};
use crate::client::ask::Answers;
use crate::client::table::{Cell, Style, Table};
use crate::observe::answer::{SourceReport, Status};
use crate::problem::{Problem, Severity};

/// How many nodes are named beside a problem.
const NAMED: usize = 3;

/// The table, and what is beneath it.
pub(in crate::client) fn status(answers: &Answers<Status>, sight: Sight) -> String {
    let header = ["NODE", "STATE", "PODS", "PENDING", "FAILED", "POLICIES", "PROBLEMS", "SOURCE", "VERSION"];
    let mut table = Table::new(header);
    for (node, status) in answers.given() {
        let problems = status.problem_counts.refused;
        table.push([
            or_dash(node),
            state(status),
            status.pods.enforced.into(),
            unwanted(status.pods.pending, Style::Warning),
            unwanted(status.pods.failed, Style::Bad),
            status.policies.into(),
            unwanted(problems, Style::Bad),
            source(&status.source),
            status.version.as_str().into(),
        ]);
    }
    push_refused(&mut table, answers);
    let mut text = table.render(sight.colour);
    if let [_] = answers.nodes.as_slice() {
        text += &answers.given().map(|(_, status)| details(status)).collect::<String>();
    }
    text + &problems(answers, sight)
}

fn unwanted(number: usize, style: Style) -> Cell {
    Cell::styled(number, if number == 0 { Style::Plain } else { style })
}

fn state(status: &Status) -> Cell {
    if !status.source.synced {
        Cell::styled("starting", Style::Warning)
    } else if status.enforced < status.generation {
        Cell::styled("applying", Style::Warning)
    } else if !status.unresolved.is_empty() {
        Cell::styled("finding pods", Style::Warning)
    } else if status.settled {
        Cell::styled("enforced", Style::Good)
    } else {
        Cell::styled("applying", Style::Warning)
    }
}

fn source(source: &SourceReport) -> Cell {
    let stale = source.kinds.iter().filter_map(|kind| kind.stale_for_seconds).max();
    match (stale, source.synced) {
        (Some(seconds), _) => Cell::styled(format!("{}, stale for {seconds}s", source.kind), Style::Warning),
        (None, true) => source.kind.as_str().into(),
        (None, false) => Cell::styled(format!("{}, not read yet", source.kind), Style::Warning),
    }
}

/// What a table of many nodes has no room for.
fn details(status: &Status) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    lines.push(("Source", format!("{} {}", status.source.kind, status.source.from)));
    for kind in &status.source.kinds {
        let stale = kind.stale_for_seconds.map(|seconds| format!("stale for {seconds} s"));
        let synced = if kind.synced { None } else { Some("not read yet".to_owned()) };
        let parts = [synced, stale, kind.error.clone(), kind.doing.clone()];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if !parts.is_empty() {
            lines.push(("", format!("{}: {}", kind.kind, parts.join("; "))));
        }
    }
    lines.push(("Generation", format!("{} enforced of {} seen", status.enforced, status.generation)));
    if let [first, rest @ ..] = status.unresolved.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        lines.push(("Looking for", format!("{first}{more}")));
    }
    let uplink = |it: &crate::observe::answer::UplinkReport| {
        if it.state == "attached" { it.name.clone() } else { format!("{} ({})", it.name, it.state) }
    };
    let uplinks: Vec<String> = status.uplinks.iter().map(uplink).collect();
    lines.push(("Uplinks", if uplinks.is_empty() { "none".to_owned() } else { uplinks.join(", ") }));
    lines.push(("Backstop", backstop(status)));
    if !status.cni.state.is_empty() {
        let more = status.cni.message.as_ref().map_or_else(String::new, |message| format!(": {message}"));
        lines.push(("CNI plugin", status.cni.state.clone() + &more));
    }
    let lost = status.events.lost.unwrap_or_default() + status.events.unread + status.events.unknown;
    if lost > 0 {
        lines.push(("Drop events", format!("{lost} lost")));
    }
    let line = |(name, text): (&str, String)| {
        let text = crate::client::table::printable(&text);
        format!("{name:12}{text}").trim_end().to_owned() + "\n"
    };
    format!("\n{}", lines.into_iter().map(line).collect::<String>())
}

fn backstop(status: &Status) -> String {
    let packets = status.backstop.dropped.as_ref().and_then(|dropped| dropped.get("packets")?.as_u64());
    let error = status.backstop.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    let dropped = packets.map_or_else(String::new, |packets| format!(", {packets} packets dropped"));
    status.backstop.state.replace('-', " ") + &dropped + &error
}

/// Problems, each once with the nodes that have it.
fn problems(answers: &Answers<Status>, sight: Sight) -> String {
    let mut by_problem: BTreeMap<&Problem, Vec<&str>> = BTreeMap::new();
    for (node, status) in answers.given() {
        for problem in &status.problems {
            by_problem.entry(problem).or_default().push(node);
        }
    }
    let several = answers.nodes.len() > 1;
    let mut text = String::new();
    for (severity, title) in [(Severity::Refused, "Not enforced as written"), (Severity::Note, "Worth knowing")] {
        let of_severity: Vec<_> = by_problem.iter().filter(|(problem, _)| problem.severity == severity).collect();
        if of_severity.is_empty() {
            continue;
        }
        let style = if severity == Severity::Refused { Style::Bad } else { Style::Warning };
        text += &format!("\n{}\n", sight.paint(&format!("{title} ({}):", of_severity.len()), style));
        for (problem, nodes) in of_severity {
            text += &super::policy::problem_lines(problem, true);
            if several {
                text += &format!("    on {}\n", names(nodes));
            }
        }
    }
    text
}

fn names(nodes: &[&str]) -> String {
    let named = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match nodes.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {}", counted(more, "more node")),
    }
}
