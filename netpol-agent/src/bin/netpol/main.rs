//! `netpol`: what is enforced, and why; also as `kubectl netpol`, if the binary is called so. Parse, run, exit code.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use netpol_agent::client::cli::{Cli, EXIT_FAILURE};
use netpol_agent::problem::chain;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let plugin = Path::new(&name).file_stem().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("kubectl-"));
    // Its flags are Hubble's, among them some that all other commands have in another meaning.
    if std::env::args_os().nth(1).is_some_and(|command| command == "observe") {
        return observe();
    }
    let command = if plugin { Cli::command().bin_name("kubectl netpol") } else { Cli::command() };
    let mut cli = match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    cli.place.plugin = plugin;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            runtime.block_on(netpol_agent::client::run(cli)).map_err(|error| (chain(&error), error.exit_code()))
        }
        Err(error) => Err((format!("cannot start the runtime: {error}"), EXIT_FAILURE)),
    };
    match result {
        Ok(code) => code,
        Err((message, code)) => {
            fail(&message);
            ExitCode::from(code)
        }
    }
}

fn observe() -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(netpol_agent::client::observe::run(std::env::args_os().skip(1))),
        Err(error) => {
            fail(&format!("cannot start the runtime: {error}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one line in which this program fails")]
fn fail(message: &str) {
    eprintln!("Error: {message}");
}
