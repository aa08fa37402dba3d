//! `netpol observe`: flows of one agent, of any Hubble server, of all nodes or of a file, as Hubble's client shows them.
//!
//! In: flags ([`flags`], [`request`]). Out: lines on standard output, what nodes say on standard error. Where flows come
//! from is [`server`], [`nodes`] or [`file`]; how they look is [`print`] and [`summary`], both pure.

mod columns;
mod describe;
pub mod file;
pub mod filters;
pub mod flags;
mod merge;
mod nodes;
mod paint;
pub mod print;
pub mod request;
pub mod server;
mod show;
mod stop;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod when;
mod words;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use tonic::Code;

use self::flags::Flags;
use self::server::Address;
use self::show::{Show, Shown};
use super::ask::ClientError;
use super::cli::{EXIT_FAILURE, EXIT_NO_ANSWER, EXIT_OK, EXIT_USAGE};
use crate::observe::hubble::filter::{FilterError, Selection};
use crate::observe::hubble::json::JsonError;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use crate::observe::hubble::proto::observer::{GetFlowsRequest, GetFlowsResponse};
use crate::observe::hubble::proto::relay::NodeState;
use crate::problem::chain;

/// As a shell has it of what SIGINT ends.
const EXIT_INTERRUPTED: u8 = 130;

/// Why flows cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The flags.
    #[error(transparent)]
    Request(#[from] request::RequestError),
    /// A filter, here; a server says it itself.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Nobody listens there.
    #[error("cannot connect to {server}{}", connect_hint(server))]
    Connect {
        /// Where.
        server: String,
        /// Why.
        #[source]
        error: tonic::transport::Error,
    },
    /// What the server says.
    #[error("{}", status_text(.0))]
    Status(Box<tonic::Status>),
    /// A file of flags.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The input.
    #[error("{}", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: file::FileError,
    },
    /// No cluster to ask.
    #[error("no agent on this machine ({} is not there) and no cluster to ask; give --server, --socket or --kubeconfig", socket.display())]
    Nowhere {
        /// Where the socket would be.
        socket: PathBuf,
        /// Why there is no cluster.
        source: Box<ClientError>,
    },
    /// The agents cannot be found.
    #[error(transparent)]
    Agents(#[from] Box<ClientError>),
    /// No agent answered; what each said was printed.
    #[error("no agent answered")]
    NoAnswer,
    /// A response without JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Standard output.
    #[error("cannot print")]
    Print(#[from] io::Error),
}

/// The socket of an agent is root's.
fn connect_hint(server: &str) -> &'static str {
    let Some(path) = server.strip_prefix("unix://") else { return "" };
    let denied = std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if denied { " (only root may ask it: use sudo, or ask through the API server with --all-nodes)" } else { "" }
}

/// As Hubble's client: the text alone of an error that the server made up itself.
fn status_text(status: &tonic::Status) -> String {
    if status.code() == Code::Unknown {
        return status.message().to_owned();
    }
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

impl ObserveError {
    /// What was typed is no question, or what was asked for failed.
    const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Request(_) | Self::Filter(_)) { EXIT_USAGE } else { EXIT_FAILURE }
    }
}

/// How it ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Well,
    /// Some nodes could not be asked.
    Partly,
    /// By Ctrl-C, before everything was shown.
    Interrupted,
}

/// Runs the command with these arguments (its name is the first).
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = flags::command().try_get_matches_from(arguments);
    let (flags, given) = match matches.and_then(|matches| flags::read(&matches)) {
        Ok(read) => read,
        Err(error) => error.exit(),
    };
    ExitCode::from(match observe(flags, &given).await {
        Ok(Ended::Well) => EXIT_OK,
        Ok(Ended::Partly) => EXIT_NO_ANSWER,
        Ok(Ended::Interrupted) => EXIT_INTERRUPTED,
        Err(error) => {
            complain(&format!("Error: {}", chain(&error)));
            error.exit_code()
        }
    })
}

/// A line on standard error; who does not read it does not miss it.
fn complain(line: &str) {
    let written = writeln!(io::stderr(), "{line}");
    tracing::trace!(written = written.is_ok(), "complained");
}

async fn observe(mut flags: Flags, given: &[flags::Given]) -> Result<Ended, ObserveError> {
    let terminal = io::stdout().is_terminal();
    let asks_for_past = flags.last > 0 || flags.first > 0 || !flags.since.is_empty() || flags.input_file.is_some();
    flags.follow |= flags.summary && terminal && !asks_for_past;
    let mut request = request::build(&flags, given, jiff::Timestamp::now())?;
    if flags.summary && flags.follow && request.number == 0 && request.since.is_none() {
        request.number = u64::MAX;
    }
    if flags.print_raw_filters {
        io::stdout().write_all(request::filters_as_yaml(&request)?.as_bytes())?;
        return Ok(Ended::Well);
    }
    let colour =
        terminal && std::env::var_os("NO_COLOR").is_none() && std::env::var_os("TERM").is_none_or(|it| it != "dumb");
    let mut show = Show::new(&flags, colour, terminal);
    let ended = if let Some(path) = &flags.input_file {
        read_file(path, &request, &mut show)?
    } else {
        let interrupted = stop::interrupted();
        let stdin_ended = stop::stdin_ended(flags.until_stdin_ends);
        tokio::select! {
            ended = ask(&flags, request, &mut show) => ended?,
            () = interrupted => if flags.follow { Ended::Well } else { Ended::Interrupted },
            () = stdin_ended => Ended::Well,
        }
    };
    show.end()?;
    Ok(ended)
}

/// Asks the one server that is meant, or all nodes.
async fn ask(flags: &Flags, request: GetFlowsRequest, show: &mut Show) -> Result<Ended, ObserveError> {
    let Some(address) = address(flags) else { return from_nodes(flags, &request, show).await };
    let mut answers = server::ask(&address, flags, request).await?;
    loop {
        let next = show.until_due(answers.message()).await?;
        let Some(next) = next else { continue };
        match next {
            Ok(Some(response)) if show.take(&response)? == Shown::Wanted => {}
            Ok(_) => return Ok(Ended::Well),
            Err(status) if status.code() == Code::Cancelled => return Ok(Ended::Well),
            Err(status) => return Err(ObserveError::Status(Box::new(status))),
        }
    }
}

/// The one server to ask; none asks all nodes.
fn address(flags: &Flags) -> Option<Address> {
    if flags.all_nodes {
        return None;
    }
    if let Some(server) = &flags.server {
        return Some(Address::parse(server, flags.tls));
    }
    let named = flags.kubeconfig.is_some() || flags.context.is_some();
    (flags.local || flags.socket.exists() && !named).then(|| Address::Socket(flags.socket.clone()))
}

fn read_file(path: &PathBuf, request: &GetFlowsRequest, show: &mut Show) -> Result<Ended, ObserveError> {
    let selection = Selection::new(&request.whitelist, &request.blacklist)?;
    let mut failed = None;
    let sink = |response: &GetFlowsResponse| match show.take(response) {
        Ok(shown) => shown == Shown::Wanted,
        Err(error) => {
            failed = Some(error);
            false
        }
    };
    let input = |source| ObserveError::Input { path: path.clone(), source };
    let foreign = if path.as_os_str() == "-" {
        file::read(io::stdin().lock(), request, &selection, sink).map_err(input)?
    } else {
        let file = File::open(path).map_err(|source| ObserveError::File { path: path.clone(), source })?;
        file::read(BufReader::new(file), request, &selection, sink).map_err(input)?
    };
    if foreign > 0 {
        let lines = if foreign == 1 { "line is" } else { "lines are" };
        complain(&format!("Warning: {foreign} {lines} no flow as -o jsonpb writes them, and passed over"));
    }
    failed.map_or(Ok(Ended::Well), Err)
}

/// All nodes. Fails if none of them answers.
async fn from_nodes(flags: &Flags, request: &GetFlowsRequest, show: &mut Show) -> Result<Ended, ObserveError> {
    let is_named = flags.kubeconfig.is_some() || flags.context.is_some();
    let nowhere = |error: ClientError| {
        let source = Box::new(error);
        if matches!(*source, ClientError::Kubeconfig { .. }) && !is_named {
            return ObserveError::Nowhere { socket: flags.socket.clone(), source };
        }
        ObserveError::Agents(source)
    };
    let (mut answers, asked) = nodes::ask(flags, request).await.map_err(nowhere)?;
    let mut silent = BTreeSet::new();
    loop {
        let Some(next) = show.until_due(answers.next()).await? else { continue };
        let Some(response) = next else { break };
        if let Some(ResponseTypes::NodeStatus(status)) = &response.response_types
            && status.state_change() == NodeState::NodeError
        {
            silent.extend(status.node_names.iter().cloned());
        }
        if show.take(&response)? == Shown::NoMore {
            return Ok(Ended::Well);
        }
    }
    match silent.len() {
        0 => Ok(Ended::Well),
        all if all == asked => Err(ObserveError::NoAnswer),
        _ => Ok(Ended::Partly),
    }
}
