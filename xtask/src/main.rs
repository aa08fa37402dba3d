//! netpol's developer commands. `cargo xtask` alone lists them.
//!
//! One command a module. Commands call programs through [`shell`] and say what they do; none of them decides anything
//! about the product.

mod build;
mod chart;
mod check;
mod conformance;
mod demo;
mod image;
mod kernels;
mod kind;
mod mutants;
mod setup;
mod shell;
mod test;
mod tidy;
mod verifier_stats;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// netpol's developer commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring this machine to where everything builds and runs.
    Setup(setup::Options),
    /// Build the BPF object, and every program with the object inside.
    Build(build::Options),
    /// Build the BPF object alone, to target/bpf.
    BuildEbpf(build::EbpfOptions),
    /// Hold the Helm chart against Helm, Kubernetes' types and the agent's flags; --bless writes deploy/netpol.yaml.
    Chart(chart::Options),
    /// What must hold before a commit: format, clippy, tidy.
    Check,
    /// Run the tests: all levels in their quick form, or one of them.
    Test(test::Options),
    /// Watch the NetworkPolicies of a small shop take effect, on nodes made of network namespaces.
    Demo(demo::Options),
    /// Replay every conformance case on the real datapath, cell by cell (or with --level pure on the compiler alone).
    Conformance(conformance::Options),
    /// Make the container image as an OCI archive, reproducibly and without a container daemon.
    Image(image::Options),
    /// A kind cluster with Flannel and the chart, and the conformance cases inside it.
    Kind(kind::Options),
    /// Try the BPF object on Debian's kernels, old and new, in virtual machines.
    Kernels(kernels::Options),
    /// Put deliberate faults into compiler and datapath; each must make its test fail.
    Mutants(mutants::Options),
    /// Load the BPF programs: what the verifier walks, sizes, nanoseconds a packet, against the committed budget.
    VerifierStats(verifier_stats::Options),
    /// Hold the sources to the repository's own rules.
    Tidy,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            shell::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    Ok(match Arguments::parse().command {
        Command::Setup(options) => setup::run(options)?,
        Command::Build(options) => build::run(options).map(|_object| true)?,
        Command::BuildEbpf(options) => build::ebpf(options).map(|_object| true)?,
        Command::Chart(options) => chart::run(options)?,
        Command::Check => check::run()?,
        Command::Test(options) => test::run(&options)?,
        Command::Demo(options) => demo::run(options)?,
        Command::Conformance(options) => conformance::run(&options)?,
        Command::Image(options) => image::run(&options)?,
        Command::Kind(options) => kind::run(options)?,
        Command::Kernels(options) => kernels::run(&options)?,
        Command::Mutants(options) => mutants::run(&options)?,
        Command::VerifierStats(options) => verifier_stats::run(options)?,
        Command::Tidy => tidy::run()?,
    })
}
