//! `netpol explain SRC DST[:PORT[/PROTO]]`: asks an agent, or compiles manifests by itself, and shows the answer.
//!
//! In: flags. Out: text or JSON on standard output, an exit code. What is explained, and how, is `crate::explain`'s.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use super::ask::{Answers, Asker, ClientError, NodeAnswer};
use super::cli::{EXIT_FAILURE, EXIT_OK, Output, Place};
use crate::cluster::ClusterState;
use crate::explain::{
    Explanation, Facts, FlowReport, FreshCompile, Hint, Nodes, Opinions, Question, QuestionError, SideReport, Verdict,
    explain, resolve,
};
use crate::observe::admin::Request;
use crate::source::{ManifestSource, SourceError};

/// Something is denied.
pub const EXIT_DENIED: u8 = 4;
/// The two judges disagree: a fault of netpol.
pub const EXIT_DISAGREEMENT: u8 = 6;

/// Flags of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Who: NAMESPACE/POD (or POD with -n), an address, svc/NAMESPACE/NAME (the pods behind it), node/NAME.
    #[arg(value_name = "SRC")]
    pub source: String,

    /// Whom, as SRC, with a port: shop/api:8080, shop/api:53/UDP, shop/api:http, svc/shop/api:80, 10.0.0.1:443, [fd00::1]:443,
    /// shop/api:icmp. Without a port: those that the pod or the service declares.
    #[arg(value_name = "DST[:PORT[/PROTO]]")]
    pub destination: String,

    /// Namespace of names that have none.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Judge the manifests of this directory, as `netpol-agent run --manifests` reads them, instead of asking an agent.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// With --manifests: an address of a node, which its own pods always reach and are reached from. May be repeated.
    #[arg(long, value_name = "NODE=ADDRESS", requires = "manifests", value_parser = node_address)]
    pub node_address: Vec<(String, IpAddr)>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The question cannot be read.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// The manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] SourceError),
    /// Nobody answered.
    #[error("no agent answered: {0}; give --manifests DIR to judge manifests without one")]
    NoAnswer(String),
}

fn node_address(text: &str) -> Result<(String, IpAddr), String> {
    let (node, address) = text.split_once('=').ok_or_else(|| "write NODE=ADDRESS".to_owned())?;
    Ok((node.to_owned(), address.parse().map_err(|error| format!("{address:?}: {error}"))?))
}

impl ExplainArgs {
    /// The request that the agent is sent.
    #[must_use]
    pub fn request(&self) -> Request {
        Request::Explain {
            source: self.source.clone(),
            destination: self.destination.clone(),
            namespace: self.namespace.clone(),
        }
    }
}

/// Answers and prints; returns the exit code.
///
/// # Errors
/// If there is nobody to ask, nothing to read, or standard output is gone.
pub(super) async fn run(args: &ExplainArgs, place: &Place, output: Output) -> Result<u8, ClientError> {
    let question = Question::parse(&args.source, &args.destination, &args.namespace).map_err(ExplainError::from)?;
    let explanation = match &args.manifests {
        Some(directory) => from_manifests(&question, directory, &args.node_address).map_err(ExplainError::from)?,
        None => {
            let arguments = ["explain", &args.source, &args.destination, "--namespace", &args.namespace];
            merged(Asker::new(place).await?.ask(&args.request(), &arguments).await?)?
        }
    };
    let text = match output {
        Output::Table => text(&explanation),
        // As all commands write it, for the one that asked us to.
        Output::Json => {
            let answers = Answers { nodes: vec![NodeAnswer::of("", Ok(&explanation))] };
            serde_json::to_string_pretty(&answers).map_err(ClientError::Write)? + "\n"
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(ClientError::Print(error)),
        _ => {}
    }
    Ok(exit(&explanation))
}

/// One answer of those of all agents: each side as the agent says that enforces it.
fn merged(answers: Answers<Explanation>) -> Result<Explanation, ExplainError> {
    let refused: Vec<String> = answers.refused().map(|(node, why)| format!("{node}: {why}")).collect();
    let mut given = answers.nodes.into_iter().filter_map(|node| node.answer);
    let mut merged = given.next().ok_or_else(|| ExplainError::NoAnswer(refused.join("; ")))?;
    for other in given {
        for (flow, other) in merged.flows.iter_mut().zip(other.flows) {
            if (&flow.source, &flow.destination, &flow.traffic) != (&other.source, &other.destination, &other.traffic) {
                continue;
            }
            for (side, other) in [(&mut flow.egress, other.egress), (&mut flow.ingress, other.ingress)] {
                if other.enforced && !side.enforced {
                    *side = other;
                }
            }
            flow.allowed = [&flow.egress, &flow.ingress].iter().all(|side| side.verdict != Verdict::Denied);
        }
    }
    merged.notes.extend(refused.iter().map(|why| format!("not asked: {why}")));
    Ok(merged)
}

/// The exit code that says what was found: 0 all of it passes, 1 no answer, 4 something is denied, 6 the judges disagree.
#[must_use]
pub fn exit(explanation: &Explanation) -> u8 {
    if explanation.unanswerable.is_some() {
        EXIT_FAILURE
    } else if explanation.disagreements().next().is_some() {
        EXIT_DISAGREEMENT
    } else if explanation.allowed() {
        EXIT_OK
    } else {
        EXIT_DENIED
    }
}

/// Judges manifests.
///
/// # Errors
/// If there is no such directory.
pub fn from_manifests(
    question: &Question,
    directory: &Path,
    node_addresses: &[(String, IpAddr)],
) -> Result<Explanation, SourceError> {
    let (_, changes) = ManifestSource::load(directory)?;
    let mut cluster = ClusterState::default();
    for event in changes.events {
        cluster.apply(event);
    }
    let mut nodes = Nodes::of(&cluster);
    for (node, address) in node_addresses {
        nodes.add(node, [*address]);
    }
    let facts = Facts { cluster: &cluster, nodes: &nodes, enforce_own_node: false };
    let mut opinions = Opinions::default();
    if let Ok((flows, _)) = resolve(question, &facts) {
        let fresh = FreshCompile::new(&cluster, opinions.missing(&flows, &cluster));
        opinions.collect(&fresh.view(), &flows);
    }
    let mut explanation = explain(question, &facts, &opinions);
    explanation.notes.extend(changes.problems.iter().map(|problem| format!("not taken as written: {problem}")));
    Ok(explanation)
}

/// The answer for people.
#[must_use]
pub fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    if let Some(error) = &explanation.unanswerable {
        line(&mut text, format_args!("{error}"));
        if !explanation.similar.is_empty() {
            line(&mut text, format_args!("there is: {}", explanation.similar.join(", ")));
        }
    }
    let mut shown: Vec<&FlowReport> = Vec::new();
    for flow in &explanation.flows {
        // Nearly always the other address family.
        if shown.iter().any(|other| is_like(other, flow)) {
            line(&mut text, format_args!("likewise: {}", head(flow)));
            continue;
        }
        if !shown.is_empty() {
            text.push('\n');
        }
        show_flow(&mut text, flow);
        shown.push(flow);
    }
    for note in &explanation.notes {
        line(&mut text, format_args!("note: {note}"));
    }
    text
}

/// True if two flows of the same pods differ in their addresses only.
fn is_like(left: &FlowReport, right: &FlowReport) -> bool {
    let pods =
        |flow: &FlowReport| Some((flow.source.pod.clone()?, flow.destination.pod.clone()?, flow.traffic.clone()));
    let same = |left: &SideReport, right: &SideReport| {
        (left.verdict, &left.isolated_by, &left.allowed_by, &left.hints) // Hints are of the nearest rules.
            == (right.verdict, &right.isolated_by, &right.allowed_by, &right.hints)
            && left.disagreement == right.disagreement
    };
    pods(left).is_some_and(|of_left| pods(right) == Some(of_left))
        && left.notes == right.notes
        && same(&left.egress, &right.egress)
        && same(&left.ingress, &right.ingress)
}

fn head(flow: &FlowReport) -> String {
    let verdict = if flow.allowed { "ALLOWED" } else { "DENIED" };
    let service =
        flow.destination.service.as_ref().map_or_else(String::new, |service| format!(" behind svc/{service}"));
    format!("{verdict}: {} -> {}{service} {}", flow.source.name, flow.destination.name, flow.traffic)
}

fn show_flow(text: &mut String, flow: &FlowReport) {
    line(text, format_args!("{}", head(flow)));
    let (source, destination) = (&flow.source.name, &flow.destination.name);
    show_side(text, ("egress", source), &flow.egress);
    show_side(text, ("ingress", destination), &flow.ingress);
    for note in &flow.notes {
        line(text, format_args!("  note: {note}"));
    }
}

fn show_side(text: &mut String, (direction, subject): (&str, &str), side: &SideReport) {
    let verdict = match side.verdict {
        Verdict::Allowed => "allowed",
        Verdict::Denied => "DENIED",
        Verdict::NotIsolated => "allowed, not isolated",
        Verdict::Exempt => "not judged by policy",
    };
    line(text, format_args!("  {direction} of {subject}: {verdict}: {}", side.reason));
    if !side.isolated_by.is_empty() {
        line(text, format_args!("    isolated by {}", side.isolated_by.join(", ")));
    }
    if side.allowed_by.len() > 1 {
        line(text, format_args!("    allowed by {}", side.allowed_by.join(", ")));
    }
    for miss in &side.nearest {
        let what = match (miss.peer_matches, miss.port_matches) {
            (true, false) => "is about this peer, but not this port",
            (false, true) => "takes the port, but not from this peer",
            _ => "is about another peer and port",
        };
        let what = if direction == "egress" { what.replace("from this peer", "to this peer") } else { what.to_owned() };
        line(text, format_args!("    {} {what}", miss.rule));
        for reason in &miss.because {
            line(text, format_args!("      {reason}"));
        }
    }
    for (index, hint) in side.hints.iter().enumerate() {
        show_hint(text, if index == 0 { "to allow it" } else { "or" }, hint);
    }
    if let Some(disagreement) = &side.disagreement {
        line(text, format_args!("    !!! THE JUDGES DISAGREE: {disagreement}"));
    }
}

fn show_hint(text: &mut String, lead: &str, hint: &Hint) {
    line(text, format_args!("    {lead}: {}", hint.summary));
    if let Some(caution) = &hint.caution {
        line(text, format_args!("      ({caution})"));
    }
    let (command, input) = hint.change.command();
    let Some(input) = input else { return line(text, format_args!("      {command}")) };
    line(text, format_args!("      {command} <<EOF"));
    // YAML that cannot be written is written as JSON, which is YAML too.
    let document = serde_saphyr::to_string(input).unwrap_or_else(|_no_yaml| format!("{input}\n"));
    // At the margin, so that it can be pasted.
    text.push_str(&document);
    if !document.ends_with('\n') {
        text.push('\n');
    }
    line(text, format_args!("EOF"));
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    let written = writeln!(text, "{line}");
    debug_assert!(written.is_ok(), "a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::EndReport;

    #[test]
    fn the_other_address_family_is_one_line_unless_it_fares_otherwise() {
        let end = |name: &str| EndReport { name: name.to_owned(), pod: Some("a/x".to_owned()), ..EndReport::default() };
        let flow = |name: &str, verdict| FlowReport {
            source: end(name),
            destination: end(name),
            traffic: "TCP 80".to_owned(),
            allowed: true,
            ingress: SideReport { verdict, ..SideReport::default() },
            ..FlowReport::default()
        };
        let shown = |flows: [FlowReport; 2]| text(&Explanation { flows: flows.into(), ..Explanation::default() });
        let alike = shown([flow("v4", Verdict::Allowed), flow("v6", Verdict::Allowed)]);
        assert!(alike.ends_with("\nlikewise: ALLOWED: v6 -> v6 TCP 80\n"), "{alike}");
        assert!(!shown([flow("v4", Verdict::Allowed), flow("v6", Verdict::Denied)]).contains("likewise"));
        let nothing = Explanation { unanswerable: Some("no".to_owned()), ..Explanation::default() };
        assert_eq!((exit(&nothing), exit(&Explanation::default())), (EXIT_FAILURE, EXIT_DENIED));
    }
}
