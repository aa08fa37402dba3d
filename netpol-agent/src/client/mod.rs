//! The `netpol` command: asks agents what they enforce, and shows it.
//!
//! In: flags ([`cli`]). Out: tables or JSON on standard output, progress and errors on standard error, an exit code. It asks
//! either the agent of this machine through its socket (`socket`), or all agents of a cluster through the API server
//! (`agents`): there it runs itself in each agent's pod, so that no port is open and RBAC decides who may ask. `wait` judges
//! what is still waited for, `show` makes tables; both are pure. Nothing here changes anything but `cleanup`.

mod agents;
mod ask;
pub mod cli;
pub mod explain;
pub mod observe;
mod show;
mod socket;
mod table;
mod wait;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::CommandFactory as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::ask::{Answers, Asker};
use self::cli::{Cli, Command, EXIT_FAILURE, EXIT_NO_ANSWER, EXIT_NOT_SETTLED, EXIT_OK, Output, PolicyCommand};
use self::show::Sight;
use crate::observe::admin::Request;
use crate::observe::answer::{EndpointList, PolicyAnswer, PolicyList, Retired, Status};

pub use self::ask::ClientError;

/// Namespaces that are named in place of one that nobody knows.
const MOST_NAMED: usize = 10;

/// Carries out what the flags say.
///
/// # Errors
/// If nobody could be asked, or standard output cannot be written to.
pub async fn run(cli: Cli) -> Result<ExitCode, ClientError> {
    let Cli { command, place, output, .. } = cli;
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "netpol", &mut io::stdout());
            Ok(ExitCode::from(EXIT_OK))
        }
        Command::Explain(args) => explain::run(&args, &place, output).await.map(ExitCode::from),
        Command::Observe { arguments } => Ok(observe::run(std::iter::once("observe".into()).chain(arguments)).await),
        Command::Status { wait, timeout } => {
            let asker = Asker::new(&place).await?;
            let waited = if wait { wait::until_settled(&asker, timeout).await? } else { true };
            let answers: Answers<Status> = asker.ask(&Request::Status, &["status"]).await?;
            print(&answers, output, show::status)?;
            let settled = waited && answers.all(|status| status.settled);
            Ok(code(&answers, if settled { EXIT_OK } else { EXIT_NOT_SETTLED }))
        }
        Command::Cleanup { .. } => {
            let asker = Asker::new(&place).await?;
            let answers: Answers<Retired> = asker.ask(&Request::Retire, &["cleanup", "--yes"]).await?;
            print(&answers, output, show::retired)?;
            Ok(code(&answers, EXIT_OK))
        }
        Command::Endpoints { namespace } => {
            let asker = Asker::new(&place).await?;
            let mut answers: Answers<EndpointList> = asker.ask(&Request::Endpoints, &["endpoints"]).await?;
            if let Some(namespace) = namespace {
                keep_endpoints_of(&namespace, &mut answers);
            }
            print(&answers, output, show::endpoints)?;
            Ok(code(&answers, EXIT_OK))
        }
        Command::Policy { command: PolicyCommand::List { namespace } } => {
            let asker = Asker::new(&place).await?;
            let mut answers: Answers<PolicyList> = asker.ask(&Request::Policies, &["policy", "list"]).await?;
            if let Some(namespace) = namespace {
                let names =
                    answers.given().flat_map(|(_, list)| list.policies.iter().map(|it| it.namespace.to_string()));
                say_if_absent("NetworkPolicies", &namespace, names);
                answers.each(|list| list.policies.retain(|it| it.namespace == namespace));
            }
            print(&answers, output, show::policies)?;
            Ok(code(&answers, EXIT_OK))
        }
        Command::Policy { command: PolicyCommand::Show { policy } } => {
            let asker = Asker::new(&place).await?;
            let request = Request::Policy { namespace: policy.namespace.clone(), name: policy.name.clone() };
            let name = policy.to_string();
            let answers: Answers<PolicyAnswer> = asker.ask(&request, &["policy", "show", &name]).await?;
            let known = answers.any(|answer| answer.policy.is_some());
            if !known && output == Output::Table && answers.any(|_| true) {
                return Err(ClientError::NoSuchPolicy { policy: name, hint: show::hint(&answers) });
            }
            print(&answers, output, show::policy)?;
            Ok(code(&answers, if known { EXIT_OK } else { EXIT_FAILURE }))
        }
    }
}

fn keep_endpoints_of(namespace: &str, answers: &mut Answers<EndpointList>) {
    let of = |pod: &str| pod.split_once('/').map_or("", |(namespace, _)| namespace).to_owned();
    let names = answers.given().flat_map(|(_, list)| list.endpoints.iter().map(|it| of(&it.pod)));
    say_if_absent("pods", namespace, names);
    answers.each(|list| list.endpoints.retain(|it| of(&it.pod) == namespace));
}

/// A line on standard error if nothing is of a namespace: an empty table does not say why it is one.
fn say_if_absent(what: &str, namespace: &str, known: impl Iterator<Item = String>) {
    let known: BTreeSet<String> = known.filter(|name| !name.is_empty()).collect();
    if known.contains(namespace) {
        return;
    }
    let more = known.len().saturating_sub(MOST_NAMED);
    let others: Vec<String> = known.into_iter().take(MOST_NAMED).collect();
    let others = match (others.is_empty(), more) {
        (true, _) => "nor of any other".to_owned(),
        (false, 0) => format!("there are some of {}", others.join(", ")),
        (false, more) => format!("there are some of {} and {more} more", others.join(", ")),
    };
    let written =
        writeln!(io::stderr(), "Warning: the agents that answered know no {what} of namespace {namespace}; {others}");
    tracing::trace!(written = written.is_ok(), "said that a namespace is empty");
}

/// An agent that did not answer outweighs what the others said.
fn code<T>(answers: &Answers<T>, otherwise: u8) -> ExitCode {
    ExitCode::from(match (answers.missing(), answers.nodes.len()) {
        (0, _) => otherwise,
        (missing, asked) if missing == asked => EXIT_FAILURE,
        _ => EXIT_NO_ANSWER,
    })
}

fn print<T: Serialize + DeserializeOwned>(
    answers: &Answers<T>,
    output: Output,
    show: impl Fn(&Answers<T>, Sight) -> String,
) -> Result<(), ClientError> {
    let stdout = io::stdout();
    let text = match output {
        Output::Table => {
            show(answers, Sight { colour: stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none() })
        }
        Output::Json => serde_json::to_string_pretty(answers).map_err(ClientError::Write)? + "\n",
    };
    match stdout.lock().write_all(text.as_bytes()) {
        // `netpol endpoints | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(ClientError::Print),
    }
}
