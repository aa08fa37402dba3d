//! `netpol observe`: flows of one agent, of any Hubble server, of all nodes or of a file, as Hubble's client shows them.
//!
//! In: flags ([`flags`], [`request`]). Out: lines on standard output, what nodes say on standard error. Where flows come
//! from is [`server`], [`nodes`] or [`file`]; how they look is [`print`] and [`summary`], both pure.

mod columns;
mod describe;
pub mod file;
pub mod filters;
pub mod flags;
pub mod nodes;
mod paint;
pub mod print;
pub mod request;
pub mod server;
mod show;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod when;
mod words;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use tonic::Code;

use self::flags::Flags;
use self::server::Address;
use self::show::{Show, Shown};
use crate::observe::hubble::filter::{FilterError, Selection};
use crate::observe::hubble::json::JsonError;
use crate::observe::hubble::proto::observer::{GetFlowsRequest, GetFlowsResponse};
use crate::observe::hubble::reading::compare;
use crate::problem::chain;

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
    #[error(transparent)]
    Input(#[from] file::FileError),
    /// No cluster to ask.
    #[error(
        "there is no agent's socket on this machine and no cluster to ask; give --server, --socket or --kubeconfig"
    )]
    NoConfig(#[source] Box<kube::config::InferConfigError>),
    /// A kubeconfig.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server.
    #[error("cannot ask the API server")]
    Kube(#[from] kube::Error),
    /// No pod with the agents' label.
    #[error("no agents in namespace {namespace}; give theirs with --agent-namespace")]
    NoAgents {
        /// Where they were looked for.
        namespace: String,
    },
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

/// Runs the command with these arguments (its name is the first).
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = flags::command().try_get_matches_from(arguments);
    let (flags, given) = match matches.and_then(|matches| flags::read(&matches)) {
        Ok(read) => read,
        Err(error) => error.exit(),
    };
    match observe(flags, &given).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let written = writeln!(io::stderr(), "{}", chain(&error));
            ExitCode::from(if written.is_ok() { 1 } else { 2 })
        }
    }
}

async fn observe(mut flags: Flags, given: &[flags::Given]) -> Result<(), ObserveError> {
    let terminal = io::stdout().is_terminal();
    let asks_for_past = flags.last > 0 || flags.first > 0 || !flags.since.is_empty() || flags.input_file.is_some();
    flags.follow |= flags.summary && terminal && !asks_for_past;
    let mut request = request::build(&flags, given, jiff::Timestamp::now())?;
    if flags.summary && flags.follow && request.number == 0 && request.since.is_none() {
        request.number = u64::MAX;
    }
    if flags.print_raw_filters {
        return Ok(io::stdout().write_all(request::filters_as_yaml(&request)?.as_bytes())?);
    }
    let colour =
        terminal && std::env::var_os("NO_COLOR").is_none() && std::env::var_os("TERM").is_none_or(|it| it != "dumb");
    let mut show = Show::new(&flags, colour, terminal);
    if let Some(path) = &flags.input_file {
        read_file(path, &request, &mut show)?;
    } else if let Some(address) = address(&flags) {
        let mut answers = server::ask(&address, &flags, request).await?;
        loop {
            let next = show.until_due(answers.message()).await?;
            let Some(next) = next else { continue };
            match next {
                Ok(Some(response)) if show.take(&response)? == Shown::Wanted => {}
                Ok(_) => break,
                Err(status) if status.code() == Code::Cancelled => break,
                Err(status) => return Err(ObserveError::Status(Box::new(status))),
            }
        }
    } else {
        from_nodes(&flags, &request, &mut show).await?;
    }
    show.end()
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

fn read_file(path: &PathBuf, request: &GetFlowsRequest, show: &mut Show) -> Result<(), ObserveError> {
    let selection = Selection::new(&request.whitelist, &request.blacklist)?;
    let mut failed = None;
    let sink = |response: &GetFlowsResponse| match show.take(response) {
        Ok(shown) => shown == Shown::Wanted,
        Err(error) => {
            failed = Some(error);
            false
        }
    };
    if path.as_os_str() == "-" {
        file::read(io::stdin().lock(), request, &selection, sink)?;
    } else {
        let file = File::open(path).map_err(|source| ObserveError::File { path: path.clone(), source })?;
        file::read(BufReader::new(file), request, &selection, sink)?;
    }
    failed.map_or(Ok(()), Err)
}

/// All nodes: what they have is put in order of time; what they follow comes as it comes.
async fn from_nodes(flags: &Flags, request: &GetFlowsRequest, show: &mut Show) -> Result<(), ObserveError> {
    let mut answers = nodes::ask(flags, &request::as_flags(request)?).await?;
    if request.follow {
        loop {
            let Some(next) = show.until_due(answers.recv()).await? else { continue };
            match next {
                Some(response) if show.take(&response)? == Shown::Wanted => {}
                _ => return Ok(()),
            }
        }
    }
    let mut all = Vec::new();
    while let Some(response) = answers.recv().await {
        all.push(response);
    }
    all.sort_by(|one, other| compare(&one.time.unwrap_or_default(), &other.time.unwrap_or_default()));
    for response in &all {
        if show.take(response)? == Shown::NoMore {
            return Ok(());
        }
    }
    Ok(())
}
