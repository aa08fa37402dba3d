//! Responses -> text, byte for byte as Hubble's client prints them. Lines go to standard output, what nodes say to standard
//! error; the caller writes them.

use super::columns::Columns;
use super::describe::{Ends, Names, flow_type, node_names, policies, verdict_word};
use super::flags::{Colour, Flags, Output};
use super::paint::Paint;
use super::when::Layout;
use crate::observe::hubble::json;
use crate::observe::hubble::proto::flow::{AuthType, Flow, LostEvent, LostEventSource, Verdict};
use crate::observe::hubble::proto::observer::GetFlowsResponse;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use crate::observe::hubble::proto::relay::{NodeState, NodeStatusEvent};

const SEPARATOR: &str = "------------\n";

/// What a response comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
}

impl Printed {
    fn out(out: String) -> Self {
        Self { out, err: String::new() }
    }

    fn err(err: String) -> Self {
        Self { out: String::new(), err }
    }
}

/// The printer.
#[derive(Debug)]
pub struct Printer {
    output: Output,
    layout: Layout,
    names: Names,
    paint: Paint,
    node_name: bool,
    policy_names: bool,
    debug: bool,
    silent: bool,
    lines: u64,
    columns: Columns,
}

impl Printer {
    /// Prints as the flags say; `terminal` is what standard output is.
    #[must_use]
    pub fn new(flags: &Flags, terminal: bool) -> Self {
        let colour = match flags.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal,
        };
        Self {
            output: flags.output,
            layout: Layout::named(&flags.time_format),
            names: if flags.numeric || !flags.ip_translation { Names::Addresses } else { Names::Translated },
            // Columns are counted in characters.
            paint: Paint { on: colour && flags.output != Output::Table },
            node_name: flags.print_node_name,
            policy_names: flags.print_policy_names,
            debug: flags.debug,
            silent: flags.silent_errors,
            lines: 0,
            columns: Columns::default(),
        }
    }

    /// A response in words.
    ///
    /// # Errors
    /// If it has no JSON.
    pub fn print(&mut self, response: &GetFlowsResponse) -> Result<Printed, json::JsonError> {
        let Some(content) = &response.response_types else { return Ok(Printed::default()) };
        if let ResponseTypes::NodeStatus(status) = content {
            return self.node_status(response, status);
        }
        if matches!(self.output, Output::Json | Output::Jsonpb) {
            return Ok(Printed::out(json::to_line(response)? + "\n"));
        }
        let text = match content {
            ResponseTypes::Flow(flow) => match self.output {
                Output::Compact => self.compact(flow),
                Output::Dict => self.dict(flow),
                Output::Table | Output::Json | Output::Jsonpb => self.row(flow),
            },
            ResponseTypes::LostEvents(lost) => self.lost(response, lost),
            ResponseTypes::NodeStatus(_) => String::new(),
        };
        self.lines += 1;
        Ok(Printed::out(text))
    }

    /// What is printed when there is nothing more.
    pub fn end(&mut self) -> String {
        self.columns.take()
    }

    fn compact(&self, flow: &Flow) -> String {
        let Ends { mut source, mut destination } = Ends::of(flow, self.names, self.paint);
        let node = if self.node_name { format!(" [{}]", flow.node_name) } else { String::new() };
        let arrow = match flow.is_reply {
            None => "<>",
            Some(false) => "->",
            Some(true) => {
                std::mem::swap(&mut source, &mut destination);
                "<-"
            }
        };
        let line = format!(
            "{}{node}: {} {} {arrow} {} {} {} {} ({})",
            self.layout.format(flow.time.as_ref()),
            source.host,
            source.identity,
            destination.host,
            destination.identity,
            flow_type(flow),
            self.verdict(flow),
            self.summary(flow),
        );
        self.paint.safe(&line) + "\n"
    }

    fn dict(&self, flow: &Flow) -> String {
        let ends = Ends::of(flow, self.names, self.paint);
        let mut lines = vec![("TIMESTAMP", self.layout.format(flow.time.as_ref()))];
        if self.node_name {
            lines.push(("NODE", flow.node_name.clone()));
        }
        lines.extend([
            ("SOURCE", ends.source.host),
            ("DESTINATION", ends.destination.host),
            ("TYPE", flow_type(flow)),
            ("VERDICT", self.verdict(flow)),
            ("SUMMARY", self.summary(flow)),
        ]);
        self.block(&lines)
    }

    fn block(&self, lines: &[(&str, String)]) -> String {
        let separator = if self.lines == 0 { "" } else { SEPARATOR };
        let lines: String =
            lines.iter().map(|(key, value)| format!("{key:>11}: {}\n", self.paint.safe(value))).collect();
        format!("{separator}{lines}")
    }

    fn head(&mut self) {
        if self.columns.is_empty() {
            let node = self.node_name.then_some("NODE");
            let names =
                ["TIMESTAMP"].into_iter().chain(node).chain(["SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"]);
            self.columns.add(names.map(ToOwned::to_owned).collect());
        }
    }

    fn row(&mut self, flow: &Flow) -> String {
        self.head();
        let ends = Ends::of(flow, self.names, self.paint);
        let node = self.node_name.then(|| flow.node_name.clone());
        let rest = [ends.source.host, ends.destination.host, flow_type(flow), self.verdict(flow), self.summary(flow)];
        let cells = [self.layout.format(flow.time.as_ref())].into_iter().chain(node).chain(rest);
        let cells = cells.map(|cell| self.paint.safe(&cell)).collect();
        self.columns.add(cells);
        String::new()
    }

    fn lost(&mut self, response: &GetFlowsResponse, lost: &LostEvent) -> String {
        let source = LostEventSource::try_from(lost.source)
            .map_or_else(|_| lost.source.to_string(), |it| it.as_str_name().to_owned());
        let time = self.layout.format(response.time.as_ref());
        let between = match (&lost.first, &lost.last) {
            (Some(first), Some(last)) => {
                format!(" (first: {}, last: {})", self.layout.format(Some(first)), self.layout.format(Some(last)))
            }
            _ => String::new(),
        };
        let (cpu, count) = (lost.cpu.unwrap_or_default(), lost.num_events_lost);
        let summary = format!("CPU({cpu}) - {count}{between}");
        let node = self.node_name.then(|| response.node_name.clone());
        match self.output {
            Output::Compact => format!("{time} EVENTS LOST: {source} CPU({cpu}) {count}{between}\n"),
            Output::Dict => {
                let mut lines = vec![("TIMESTAMP", time)];
                lines.extend(node.map(|node| ("NODE", node)));
                lines.extend([
                    ("SOURCE", source),
                    ("TYPE", "EVENTS LOST".to_owned()),
                    ("VERDICT", "-".to_owned()),
                    ("SUMMARY", summary),
                ]);
                self.block(&lines)
            }
            Output::Table | Output::Json | Output::Jsonpb => {
                self.head();
                let rest = [source, "-".to_owned(), "EVENTS LOST".to_owned(), "-".to_owned(), summary];
                self.columns.add([time].into_iter().chain(node).chain(rest).collect());
                String::new()
            }
        }
    }

    fn node_status(
        &mut self,
        response: &GetFlowsResponse,
        status: &NodeStatusEvent,
    ) -> Result<Printed, json::JsonError> {
        let state = NodeState::try_from(status.state_change).unwrap_or_default();
        let is_trouble = matches!(state, NodeState::NodeError | NodeState::NodeUnavailable);
        if self.silent || !(is_trouble || self.debug) {
            return Ok(Printed::default());
        }
        if matches!(self.output, Output::Json | Output::Jsonpb) {
            return Ok(Printed::err(json::to_line(response)? + "\n"));
        }
        let time = self.layout.format(response.time.as_ref());
        let names = node_names(&status.node_names);
        let message = format!("{:?}", status.message);
        if self.output == Output::Dict {
            let message = if status.message.is_empty() { "N/A".to_owned() } else { message };
            let lines = [
                ("TIMESTAMP", time),
                ("STATE", state.as_str_name().to_owned()),
                ("NODES", names),
                ("MESSAGE", message),
            ];
            let text = self.block(&lines);
            self.lines = self.lines.max(1);
            return Ok(Printed::err(text));
        }
        let count = status.node_names.len();
        let said = match state {
            NodeState::NodeConnected => format!("Receiving flows from {count} nodes: {names}"),
            NodeState::NodeUnavailable => format!("{count} nodes are unavailable: {names}"),
            NodeState::NodeGone => format!("{count} nodes removed from cluster: {names}"),
            NodeState::NodeError => format!("Error {message} on {count} nodes: {names}"),
            NodeState::UnknownNodeState => format!("unknown node status event: {names}"),
        };
        Ok(Printed::err(self.paint.safe(&format!("{time} [{}]: {said}", response.node_name)) + "\n"))
    }

    fn verdict(&self, flow: &Flow) -> String {
        let mut word = verdict_word(flow);
        if self.policy_names {
            word.push_str(&policies(flow));
        }
        match flow.verdict() {
            Verdict::Forwarded | Verdict::Redirected => self.paint.green(&word),
            Verdict::Dropped | Verdict::Error => self.paint.red(&word),
            Verdict::Audit | Verdict::Traced | Verdict::Translated => self.paint.yellow(&word),
            Verdict::Unknown => word,
        }
    }

    #[expect(deprecated, reason = "the last column is made by the server")]
    fn summary(&self, flow: &Flow) -> String {
        let trace = flow.ip_trace_id.as_ref().filter(|it| it.trace_id > 0);
        let trace = trace.map(|it| format!("IP Trace ID: {}; ", it.trace_id)).unwrap_or_default();
        let auth = match flow.auth_type() {
            AuthType::Disabled => String::new(),
            AuthType::TestAlwaysFail => format!("; {}", self.paint.red(AuthType::TestAlwaysFail.as_str_name())),
            other => format!("; {}", self.paint.green(other.as_str_name())),
        };
        format!("{trace}{}{auth}", flow.summary)
    }
}
