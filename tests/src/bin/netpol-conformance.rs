//! `cargo xtask conformance`: cases of conformance suites, on the real datapath. See [`netpol_tests::conformance`].

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use netpol_tests::conformance::{self, By, Level, Settings};
use netpol_tests::netns::run::note;

/// Replays conformance cases (files in the format npconf/1), cell by cell.
///
/// Each case gets its cluster (pods as network namespaces on nodes joined by VXLAN, an agent a node), each step its actions,
/// and then every pair and port is asked. A cell counts as allowed when an exchange was completed, and as denied when the
/// question was sent, did not arrive, and the agents' counters account for it. Cases of ClusterNetworkPolicy are listed as
/// skipped.
///
/// The last line is `suites N, cases N, cells N, passed N, failed N, skipped N, seconds N`; cells are those that passed,
/// failed and were skipped, under every plan. Exit code 0 only if none failed.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask conformance", max_term_width = 110)]
struct Arguments {
    /// A file of cases, or a directory of such files; default: those kept under tests/corpora.
    #[arg(long, value_name = "FILE_OR_DIR")]
    cases: Option<PathBuf>,
    /// Only this suite (its name, or its file's without .json); may be repeated.
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Only cases whose id matches (`*` and `?`); may be repeated.
    #[arg(long, value_name = "GLOB")]
    case: Vec<String>,
    /// Only this address plan.
    #[arg(long, value_name = "NAME|all", default_value = "all")]
    plan: String,
    /// By which address pods are asked: their own, or a ClusterIP behind kube-proxy's translation.
    #[arg(long, value_enum, default_value_t = Probe::PodIp)]
    probe: Probe,
    /// On the compiler and the decision alone (needs no privilege), or on real packets.
    #[arg(long, value_enum, default_value_t = OnWhat::Datapath)]
    level: OnWhat,
    /// Clusters at the same time; default: as many as there are processors.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Write every outcome to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only list the chosen cases.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Probe {
    PodIp,
    ServiceIp,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnWhat {
    Pure,
    Datapath,
}

fn main() -> ExitCode {
    // A reader that has seen enough is no reason to stop.
    match run(|line| drop(writeln!(std::io::stdout(), "{line}"))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(say: impl Fn(&str) + Sync) -> Result<bool> {
    let arguments = Arguments::parse();
    let settings = Settings {
        cases: arguments.cases.unwrap_or_else(conformance::committed),
        suites: arguments.suite,
        globs: arguments.case,
        plan: Some(arguments.plan).filter(|plan| plan != "all"),
        by: match arguments.probe {
            Probe::PodIp => By::PodIp,
            Probe::ServiceIp => By::ServiceIp,
        },
        level: match arguments.level {
            OnWhat::Pure => Level::Pure,
            OnWhat::Datapath => Level::Datapath,
        },
        jobs: arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        json: arguments.json,
    };
    if arguments.list {
        conformance::list(&settings)?.iter().for_each(|line| say(line));
        return Ok(true);
    }
    let tally = conformance::run(&settings, &say)?;
    say(&tally.to_string());
    Ok(tally.failed == 0)
}
