//! `conformance`: build what it needs, then become it. Its flags are the program's own.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{build, shell};

/// Options of `conformance`.
#[derive(Clone, Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// --cases FILE_OR_DIR, --suite, --case GLOB, --plan NAME|all, --probe pod-ip|service-ip, --level pure|datapath, --jobs N,
    /// --json FILE, --list; --help says more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Builds the agent and the program, and runs the latter in place of this process. Returns only if it cannot.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let is = |what: &str| options.flags.iter().any(|flag| flag == what || flag.ends_with(&format!("={what}")));
    // These need neither packets nor privilege.
    let is_pure = ["pure", "--list", "--help", "-h"].into_iter().any(is);
    if is_pure {
        let mut cargo = shell::cargo();
        cargo.args(["build", "--quiet", "-p", "netpol-tests", "--bin", "netpol-conformance"]);
        shell::run(&mut cargo)?;
    } else {
        let _object = build::run(build::Options::default())?;
    }
    let program = shell::target().join("debug").join("netpol-conformance");
    let mut command = if is_pure || shell::is_root() { Command::new(&program) } else { Command::new("sudo") };
    if !is_pure && !shell::is_root() {
        shell::say("network namespaces and BPF need root: running the cases with sudo");
        command.arg("--").arg(&program);
    }
    // exec, so that signals reach the program itself and it can clean up.
    Err(command.args(&options.flags).exec()).with_context(|| format!("cannot run {}", program.display()))
}
