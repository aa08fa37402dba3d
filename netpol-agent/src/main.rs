//! `netpol-agent`: parse, start the log, run, exit code.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};
use netpol_agent::cli::{Cli, Command, EXIT_FAILURE, EXIT_OK};
use netpol_agent::problem::chain;
use netpol_agent::{check, cleanup, dry_run, pipeline};

/// In the image only: see ARCHITECTURE.md.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", chain(error.as_ref()));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    start_log();
    match cli.command {
        Command::Run(args) if args.check => check::run(&args),
        Command::Run(args) if args.dry_run => runtime()?.block_on(dry_run::run(&args)),
        Command::Run(args) => runtime()?.block_on(pipeline::run(&args)),
        Command::Cleanup(args) => {
            cleanup::run(&args)?;
            Ok(ExitCode::from(EXIT_OK))
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "netpol-agent", &mut std::io::stdout());
            Ok(ExitCode::from(EXIT_OK))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("cannot start the runtime")
}

/// The log goes to standard error, at `info` unless RUST_LOG says otherwise; coloured on a terminal only.
fn start_log() {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_not_set| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
