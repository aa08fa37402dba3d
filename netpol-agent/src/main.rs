//! `netpol-agent`: parse, start the log, run, exit code.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};
use netpol_agent::allocator::{self, Allocator};
use netpol_agent::cli::{Cli, Command, EXIT_FAILURE, EXIT_OK, EXIT_PROBLEMS, PreflightArgs};
use netpol_agent::preflight::Standing;
use netpol_agent::problem::chain;
use netpol_agent::{check, cleanup, dry_run, pipeline, preflight};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    allocator::return_soon();
    let cli = Cli::parse();
    // What runs for good has a log, which is read by machines too; everything else says it as `netpol` does.
    let has_log = matches!(&cli.command, Command::Run(args) if !args.check && !args.dry_run);
    match run(cli) {
        Ok(code) => code,
        Err(error) if has_log => {
            tracing::error!("{}", chain(error.as_ref()));
            ExitCode::from(EXIT_FAILURE)
        }
        Err(error) => {
            fail(&chain(error.as_ref()));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one line in which a command fails")]
fn fail(message: &str) {
    eprintln!("Error: {message}");
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
        Command::Preflight(args) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?
            .block_on(look(args)),
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

/// Prints each finding as it is made.
async fn look(args: PreflightArgs) -> Result<ExitCode> {
    let PreflightArgs { output, bpffs, mark_mask, cni_conf_dir, cni_bin_dir } = args;
    let options = preflight::Options { bpffs, mark_mask, cni_conf_dir, cni_bin_dir, proc: "/proc".into() };
    let mut printed = Ok(());
    let findings = preflight::run(&options, |finding| {
        printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| preflight::print(finding, output));
    })
    .await;
    // Whoever reads the first lines only (`| head`) still gets the exit code of all of them.
    if let Err(error) = printed
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(error).context("cannot print");
    }
    let failed = preflight::worst(&findings) == Standing::Fail;
    Ok(ExitCode::from(if failed { EXIT_PROBLEMS } else { EXIT_OK }))
}

/// The log goes to standard error, at `info` unless RUST_LOG says otherwise; coloured on a terminal only, and not with
/// NO_COLOR.
fn start_log() {
    use std::io::IsTerminal as _;
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let mut filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_not_set| tracing_subscriber::EnvFilter::new("info"));
    // kube's client logs "failed with error ..." for each request, without saying which; the agent tells of it itself, once.
    let told = ["kube_client", "debug", "trace"].iter().any(|word| wanted.contains(word));
    if !told && let Ok(directive) = "kube_client::client::builder=off".parse() {
        filter = filter.add_directive(directive);
    }
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
}
