//! `demo`: build what it needs, then become it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{build, shell};

/// Options of `demo`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Leave everything up at the end and print what to try, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Measure over IPv6.
    #[arg(long)]
    ipv6: bool,
}

/// Builds the agent and the demo, and runs the latter in place of this process. Returns only if it cannot.
pub(crate) fn run(options: Options) -> Result<bool> {
    if options.json {
        shell::leave_stdout_alone();
    }
    let _object = build::run(build::Options::default())?;
    let programs = shell::target().join("debug");
    let demo = programs.join("netpol-demo");
    let mut command = if shell::is_root() { Command::new(&demo) } else { Command::new("sudo") };
    if !shell::is_root() {
        shell::say("network namespaces and BPF need root: running the demo with sudo");
        command.arg("--").arg(&demo);
    }
    let flags = [("--keep", options.keep), ("--json", options.json), ("--ipv6", options.ipv6)];
    command.args(flags.iter().filter(|(_, wanted)| *wanted).map(|(flag, _)| flag));
    // exec, so that signals reach the demo itself and it can clean up.
    Err(command.exec()).with_context(|| format!("cannot run {}", demo.display()))
}
