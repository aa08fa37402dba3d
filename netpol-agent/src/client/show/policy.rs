//! `netpol policy show`: one policy as it is enforced, in words.

use super::{Sight, counted, refused_lines, state_style};
use crate::client::ask::Answers;
use crate::client::table::{Style, printable};
use crate::observe::answer::{PeerReport, PolicyAnswer, PolicyReport, RuleReport};
use crate::problem::Problem;

/// Everything about the policy: rules from the first node that knows it, pods from all.
pub(in crate::client) fn policy(answers: &Answers<PolicyAnswer>, sight: Sight) -> String {
    let mut text = String::new();
    let known: Vec<(&str, &PolicyReport)> =
        answers.given().filter_map(|(node, answer)| Some((node, answer.policy.as_ref()?))).collect();
    if let Some((_, report)) = known.first() {
        let summary = &report.summary;
        text += &format!("{}\n", sight.heading(&format!("NetworkPolicy {}/{}", summary.namespace, summary.name)));
        if let Some(version) = &summary.version {
            text += &field("Generation", &version.generation.to_string());
        }
        text += &field("Isolates for", &summary.policy_types.join(", "));
        let which = if report.selects == "{}" { "all pods".to_owned() } else { format!("pods {}", report.selects) };
        text += &field("Selects", &format!("{which} in namespace {}", summary.namespace));
        text += &pods(&known, sight);
        text += &rules("Ingress", "from", report.ingress.as_deref(), sight);
        text += &rules("Egress", "to", report.egress.as_deref(), sight);
        text += &problems(&known, sight);
    }
    for (node, answer) in answers.given() {
        if answer.policy.is_none() && !known.is_empty() {
            text += &format!("\n{node} does not know this policy (yet)\n");
        }
    }
    text + &refused_lines(answers, sight)
}

/// Names that may have been meant, for an error.
pub(in crate::client) fn hint(answers: &Answers<PolicyAnswer>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in answers.given().flat_map(|(_, answer)| &answer.similar) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    match names.as_slice() {
        [] => String::new(),
        [one] => format!(" (did you mean {one}?)"),
        many => format!(" (did you mean one of {}?)", many.join(", ")),
    }
}

fn field(name: &str, text: &str) -> String {
    format!("{name:14}{}\n", printable(text))
}

fn pods(known: &[(&str, &PolicyReport)], sight: Sight) -> String {
    let mut lines = Vec::new();
    for (node, report) in known {
        for pod in &report.summary.pods {
            let place = if node.is_empty() { String::new() } else { format!(" on {node}") };
            let state = sight.paint(&pod.state, state_style(&pod.state));
            lines.push(format!("{}{place}: {state}", printable(&pod.name)));
        }
    }
    if lines.is_empty() {
        return field("Pods", "none here: it isolates nobody now");
    }
    let name = |at: usize| if at == 0 { "Pods" } else { "" };
    lines.iter().enumerate().map(|(at, line)| format!("{:14}{line}\n", name(at))).collect()
}

fn rules(direction: &str, preposition: &str, rules: Option<&[RuleReport]>, sight: Sight) -> String {
    let Some(rules) = rules else { return String::new() };
    let mut text = format!("\n{}\n", sight.heading(&format!("{direction}, allowed only:")));
    if rules.is_empty() {
        text += "  nothing\n";
    }
    for (index, rule) in rules.iter().enumerate() {
        let peers: Vec<String> = match &rule.peers {
            None => vec!["everyone".to_owned()],
            Some(peers) if peers.is_empty() => vec!["nobody (no peer of this rule could be used)".to_owned()],
            Some(peers) => peers.iter().map(peer).collect(),
        };
        let mut lead = format!("  [{index}] {preposition} ");
        for peer in peers {
            text += &format!("{lead}{}\n", printable(&peer));
            lead = format!("      {:width$} ", "or", width = preposition.len());
        }
        let ports = match rule.ports.as_deref() {
            None => "everything, ICMP too".to_owned(),
            Some([]) => "nothing (no port of this rule could be used)".to_owned(),
            Some(ports) => ports.join(", "),
        };
        text += &format!("      on {}\n", printable(&ports));
    }
    text
}

fn peer(peer: &PeerReport) -> String {
    match (peer.pods, peer.addresses) {
        (Some(0), _) => format!("{} (none now)", peer.who),
        (Some(pods), Some(addresses)) if pods != addresses => {
            format!("{} ({}, {})", peer.who, counted(pods, "pod"), counted(addresses, "address"))
        }
        (Some(pods), _) => format!("{} ({})", peer.who, counted(pods, "pod")),
        (None, _) => peer.who.clone(),
    }
}

fn problems(known: &[(&str, &PolicyReport)], sight: Sight) -> String {
    let mut problems: Vec<&Problem> = Vec::new();
    for problem in known.iter().flat_map(|(_, report)| &report.summary.problems) {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    if problems.is_empty() {
        return String::new();
    }
    let heading = sight.paint(&format!("Not enforced as written ({}):", problems.len()), Style::Bad);
    let lines: String = problems.into_iter().map(|problem| problem_lines(problem, false)).collect();
    format!("\n{heading}\n{lines}")
}

/// Where and what in one line, the effect in a second; the object too if it is not clear.
pub(super) fn problem_lines(problem: &Problem, with_object: bool) -> String {
    let object = if with_object { problem.object.as_str() } else { "" };
    let place: String = [object, problem.field.as_str()]
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| format!("{part}: "))
        .collect();
    let origin = if problem.origin.is_empty() { String::new() } else { format!(" ({})", problem.origin) };
    let first = printable(&format!("{place}{}{origin}", problem.message));
    format!("  {first}\n    effect: {}\n", printable(&problem.effect))
}
