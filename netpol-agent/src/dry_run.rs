//! `run --dry-run`: which open connections of this node's pods the policies would cut, were the agent installed now.
//!
//! In: the compiled cluster, the node, and what the kernel's conntrack knows. Out: a [`Forecast`], printed. It loads and
//! attaches nothing and needs `CAP_NET_ADMIN` only. The verdicts are the datapath's own: see [`crate::datapath::seed`].

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use netpol_common::abi::{Config, PolicyWord};
use netpol_common::host::HostTables;
use serde::Serialize;

use crate::cli::{EXIT_OK, RunArgs};
use crate::cluster::ClusterState;
use crate::cluster::model::PodKey;
use crate::datapath::conntrack::{self, Connection, ConntrackError, Listed, TcpState};
use crate::datapath::desired::{PolicyIds, Tables};
use crate::datapath::flows::with_roles;
use crate::datapath::ids::NumbersInUse;
use crate::datapath::seed::{Refusal, Replay};
use crate::endpoints::Endpoints;
use crate::enforcer::{candidate_addresses, own_pod_at};
use crate::flow::sink::Format;
use crate::node::view::NodeView;
use crate::node::{Node, NodeConfig};
use crate::pipeline::feed::Feed;
use crate::pipeline::start::load_options;
use crate::policy::{Compiler, Limits};
use crate::problem::{Problem, Severity};
use crate::services;

/// How long pods are looked for.
const RESOLVE_LIMIT: Duration = Duration::from_secs(3);

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Party {
    /// The pod that has the address, if one has.
    pub pod: Option<PodKey>,
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 of a protocol without ports.
    pub port: u16,
}

/// A connection that policy would cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    /// `TCP`, `UDP`, ... or the IANA number.
    pub protocol: String,
    /// Who opened it.
    pub from: Party,
    /// What the opener asked for.
    pub to: Party,
    /// Who answers, if translation led to somebody else.
    pub backend: Option<Party>,
    /// The pod whose policies do not allow it.
    pub pod: Option<PodKey>,
    /// In which of its directions.
    pub direction: &'static str,
    /// The policies that isolate it there.
    pub isolated_by: Vec<String>,
}

/// How long the API server may take to tell of the whole cluster.
const SOURCE_LIMIT: Duration = Duration::from_secs(120);

/// What an install would do to open connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// Connections that would end.
    pub cut: Vec<Cut>,
    /// Connections of this node's pods, those among them.
    pub connections: usize,
    /// Pods of this node that were found.
    pub pods: usize,
    /// Entries of conntrack that could not be read.
    pub unreadable: u64,
    /// Conntrack told everything.
    pub complete: bool,
}

/// Forecasts, prints, and ends.
///
/// # Errors
/// If the cluster or the node cannot be read, or the report not be written.
pub async fn run(args: &RunArgs) -> Result<ExitCode> {
    let mut feed = Feed::open(args).await?;
    let changes = feed.whole(SOURCE_LIMIT).await?;
    let limits = Limits { slots: u32::from(args.max_pods) + 1, ..Limits::default() };
    let mut compiler = Compiler::new(limits, NumbersInUse::default());
    for event in changes.events {
        compiler.apply(event);
    }
    compiler.settle();
    let mut node = Node::start(&NodeConfig { pod_interfaces: args.pod_interfaces.clone() }).await?;
    node.want(candidate_addresses(compiler.state(), &args.node));
    node.settle(RESOLVE_LIMIT).await;
    let forecast = forecast(&mut compiler, node.view(), load_options(args)?.config)?;
    let mut problems = changes.problems;
    problems.extend(compiler.problems());
    problems.extend_from_slice(&node.view().problems);
    match args.output {
        Format::Text => print_text(&forecast, &problems)?,
        Format::Json => {
            let mut report = serde_json::to_value(&forecast)?;
            if let Some(fields) = report.as_object_mut() {
                fields.insert("problems".to_owned(), serde_json::to_value(&problems)?);
            }
            serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
            writeln!(io::stdout().lock())?;
        }
    }
    Ok(ExitCode::from(EXIT_OK))
}

/// What the policies of a compiled cluster would do to the open connections of the pods in `view`. It gives the pods slots of
/// its own.
///
/// # Errors
/// If conntrack cannot be listed.
pub fn forecast(compiler: &mut Compiler, view: &NodeView, config: Config) -> Result<Forecast, ConntrackError> {
    let slots = u16::try_from(config.slots).unwrap_or(u16::MAX);
    let mut endpoints = Endpoints::new(slots, true);
    endpoints.follow(view, |address| own_pod_at(compiler.state(), address));
    compiler.set_local(endpoints.slots());
    compiler.settle();
    let roles = services::address_roles(compiler.state(), &view.own_addresses);
    let node_ports = services::node_ports(compiler.state());
    let mut replay = Replay::new(with_roles(HostTables::new(config), &roles, &node_ports));
    let pods = || endpoints.iter().filter(|local| local.pod.is_some()).map(|local| local.endpoint);
    replay.set_pods(pods().map(|endpoint| (endpoint, PolicyWord::default())));
    let listed = conntrack::list(|connection| replay.concerns(connection))?;
    listed.connections.iter().for_each(|connection| replay.open(connection));
    replay.set_policy(|tables| fill(tables, &compiler.desired().tables));
    let words = &compiler.desired().words;
    replay.set_pods(pods().map(|endpoint| {
        let ids = words.get(&endpoint.slot).copied().unwrap_or(PolicyIds::DENY);
        (endpoint, PolicyWord::new(ids.ingress, ids.egress, 1))
    }));
    let Listed { connections, unreadable, complete } = listed;
    let alive: BTreeSet<Connection> = connections.into_iter().filter(|it| it.tcp != Some(TcpState::Over)).collect();
    let cut = |connection: &Connection| Some(told(compiler, connection, replay.refusal(connection)?));
    let mut cut: Vec<Cut> = alive.iter().filter_map(cut).collect();
    cut.sort_unstable();
    Ok(Forecast { cut, connections: alive.len(), pods: pods().count(), unreadable, complete })
}

/// Makes the decision's tables those that the compiler wants.
fn fill(tables: &mut HostTables, desired: &Tables) {
    tables.allow = desired.allow_entries().collect();
    tables.port_sets = desired.port_sets.iter().map(|(&number, bits)| (number, bits.to_vec())).collect();
    for (&address, &identity) in &desired.addresses {
        tables.set_identity(address, identity);
    }
    for (block, &identity) in &desired.cidrs {
        tables.set_cidr(block.addr(), block.prefix_len(), identity);
    }
}

fn told(compiler: &Compiler, connection: &Connection, refusal: Refusal) -> Cut {
    let Connection { protocol, original, reply, .. } = connection;
    let Refusal { slot, direction, .. } = refusal;
    let state = compiler.state();
    let provenance = compiler.provenance();
    let ids = compiler.desired().words.get(&slot).copied().unwrap_or(PolicyIds::DENY);
    let is_translated = (reply.source, reply.source_port) != (original.destination, original.destination_port);
    Cut {
        protocol: protocol_name(*protocol),
        from: party(state, original.source, original.source_port),
        to: party(state, original.destination, original.destination_port),
        backend: is_translated.then(|| party(state, reply.source, reply.source_port)),
        pod: provenance.pod(slot).cloned(),
        direction: direction.name(),
        isolated_by: provenance.isolated_by(ids.get(direction)).map(ToString::to_string).collect(),
    }
}

fn party(state: &ClusterState, address: IpAddr, port: u16) -> Party {
    Party { pod: own_pod_at(state, address).map(|pod| pod.key.clone()), address, port }
}

fn protocol_name(number: u8) -> String {
    use netpol_common::packet::protocol;
    match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        protocol::ICMP => "ICMP".to_owned(),
        protocol::ICMPV6 => "ICMPv6".to_owned(),
        other => format!("protocol {other}"),
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, address, port } = self;
        match (pod, address) {
            (Some(pod), _) => write!(f, "{pod} ({address})")?,
            (None, IpAddr::V6(_)) if *port != 0 => write!(f, "[{address}]")?,
            (None, _) => write!(f, "{address}")?,
        }
        if *port == 0 { Ok(()) } else { write!(f, ":{port}") }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, from, to, backend, pod, direction, isolated_by } = self;
        write!(f, "{protocol} {from} -> {to}")?;
        if let Some(backend) = backend {
            write!(f, ", answered by {backend}")?;
        }
        let pod = pod.as_ref().map_or_else(|| "a pod".to_owned(), ToString::to_string);
        write!(f, "; not among the {direction} of {pod} that is allowed by {}", isolated_by.join(", "))
    }
}

fn print_text(forecast: &Forecast, problems: &[Problem]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for problem in problems {
        let kind = if problem.severity == Severity::Refused { "problem" } else { "note" };
        writeln!(out, "{kind}: {problem}")?;
    }
    let Forecast { cut, connections, pods, unreadable, complete } = forecast;
    for cut in cut {
        writeln!(out, "would be cut: {cut}")?;
    }
    if !complete || *unreadable > 0 {
        writeln!(out, "note: conntrack's list is incomplete ({unreadable} entries could not be read)")?;
    }
    let go_on = connections.saturating_sub(cut.len());
    writeln!(out, "{connections} open connections of {pods} pods: {} would be cut, {go_on} would go on", cut.len())
}
