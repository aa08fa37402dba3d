//! `cargo xtask demo`: the shop before and after its policies. Exits 0 only if everything was as expected.

use std::process::ExitCode;

use clap::Parser;
use netpol_tests::demo::{self, Settings};
use netpol_tests::netns::run::note;

/// Shows a small shop's NetworkPolicies taking effect, on a node made of network namespaces.
#[derive(Debug, Parser)]
#[command(name = "netpol-demo")]
struct Arguments {
    /// Leave everything up at the end and print what to try, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Measure over IPv6.
    #[arg(long)]
    ipv6: bool,
    /// Enforce nothing: the harness alone.
    #[arg(long, hide = true)]
    no_agent: bool,
}

fn main() -> ExitCode {
    let Arguments { keep, json, ipv6, no_agent } = Arguments::parse();
    match demo::run(Settings { keep, json, ipv6, no_agent }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
