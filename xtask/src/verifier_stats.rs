//! `verifier-stats`: what the BPF programs cost on this kernel, held against the committed budget.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{build, shell};

/// The committed budget.
const BUDGET: &str = "xtask/verifier-budget.txt";

/// Options of `verifier-stats`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Make what is measured the budget.
    #[arg(long)]
    bless: bool,
    /// Sizes alone, without nanoseconds a packet.
    #[arg(long)]
    sizes_only: bool,
}

/// Builds the object, loads it, prints. True if it is within the budget.
pub(crate) fn run(options: Options) -> Result<bool> {
    let object = build::ebpf(build::EbpfOptions::default())?;
    let program = "netpol-verifier-stats";
    shell::run(shell::cargo().args(["build", "--quiet", "-p", "netpol-tests", "--bin", program]))?;
    let program = shell::target().join("debug").join(program);
    let variable = format!("{}={}", build::OBJECT_VARIABLE, object.display());
    let mut command = if shell::is_root() { Command::new("env") } else { shell::as_root("env") };
    command.arg(variable).arg(program).arg("--budget").arg(shell::root().join(BUDGET));
    let flags = [("--bless", options.bless), ("--sizes-only", options.sizes_only)];
    command.args(flags.iter().filter(|(_, wanted)| *wanted).map(|(flag, _)| flag));
    Ok(command.status()?.success())
}
