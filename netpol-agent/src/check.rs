//! `run --check`: reads and compiles the manifests, says what is wrong and what they come to. Touches nothing.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use netpol_common::abi::Direction;
use serde_json::json;

use crate::cli::{EXIT_OK, EXIT_PROBLEMS, RunArgs};
use crate::cluster::model::PodKey;
use crate::cluster::state::is_live;
use crate::datapath::ids::NumbersInUse;
use crate::flow::sink::Format;
use crate::policy::{Compiler, Limits};
use crate::problem::{Problem, Severity};
use crate::source::ManifestSource;

/// Which policies isolate a pod.
struct Isolation {
    pod: PodKey,
    policies: BTreeMap<&'static str, Vec<String>>,
}

/// Checks the manifests.
///
/// # Errors
/// If the directory cannot be read or the report cannot be written.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let directory = args.manifests.as_ref().context("--check reads manifests: give --manifests DIR")?;
    let (_, changes) = ManifestSource::load(directory)?;
    let limits = Limits { slots: u32::from(u16::MAX), ..Limits::default() };
    let mut compiler = Compiler::new(limits, NumbersInUse::default());
    for event in changes.events {
        compiler.apply(event);
    }
    compiler.settle();
    // Every pod is compiled as if it were here.
    let live: Vec<PodKey> =
        compiler.state().pods().filter(|pod| is_live(pod) && !pod.host_network).map(|pod| pod.key.clone()).collect();
    compiler.set_local((1..u16::MAX).zip(live).collect());
    compiler.settle();
    let mut problems = changes.problems;
    problems.extend(compiler.problems());
    let isolation = isolation(&compiler);
    let printed = match args.output {
        Format::Text => print_text(&compiler, &isolation, &problems),
        Format::Json => print_json(&compiler, &isolation, &problems),
    };
    // Whoever reads the first lines only (`| head`) still gets the exit code of all of them.
    if let Err(error) = printed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(error).context("cannot print");
    }
    let refused = problems.iter().any(|problem| problem.severity == Severity::Refused);
    Ok(ExitCode::from(if refused { EXIT_PROBLEMS } else { EXIT_OK }))
}

fn isolation(compiler: &Compiler) -> Vec<Isolation> {
    let provenance = compiler.provenance();
    let of_slot = |(slot, ids): (&u16, &crate::datapath::desired::PolicyIds)| {
        let pod = provenance.pod(*slot)?.clone();
        let of_direction = |direction: Direction| {
            let policies = provenance.isolated_by(ids.get(direction)).map(|key| key.name.to_string()).collect();
            (direction.name(), policies)
        };
        Some(Isolation { pod, policies: Direction::ALL.map(of_direction).into() })
    };
    compiler.desired().words.iter().filter_map(of_slot).collect()
}

fn print_text(compiler: &Compiler, isolation: &[Isolation], problems: &[Problem]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for problem in problems {
        let kind = if problem.severity == Severity::Refused { "problem" } else { "note" };
        writeln!(out, "{kind}: {problem}")?;
    }
    let state = compiler.state();
    let tables = &compiler.desired().tables;
    writeln!(
        out,
        "{} namespaces, {} pods, {} policies, {} services; {} identities by address, {} blocks, {} allow entries, {} port \
         sets; {} problems",
        state.namespaces().count(),
        state.pods().count(),
        state.policies().count(),
        state.services().count(),
        tables.addresses.len(),
        tables.cidrs.len(),
        tables.allow_entries().count(),
        tables.port_sets.len(),
        problems.len()
    )?;
    for Isolation { pod, policies } in isolation {
        let of = |direction: Direction| match policies.get(direction.name()).map(Vec::as_slice) {
            None | Some([]) => "not isolated".to_owned(),
            Some(names) => names.join(", "),
        };
        writeln!(out, "  {pod}: ingress: {}; egress: {}", of(Direction::Ingress), of(Direction::Egress))?;
    }
    Ok(())
}

fn print_json(compiler: &Compiler, isolation: &[Isolation], problems: &[Problem]) -> io::Result<()> {
    let pods: Vec<_> = isolation.iter().map(|it| json!({ "pod": it.pod, "isolatedBy": it.policies })).collect();
    let state = compiler.state();
    let report = json!({
        "problems": problems,
        "namespaces": state.namespaces().count(),
        "policies": state.policies().count(),
        "services": state.services().count(),
        "pods": pods,
    });
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    writeln!(io::stdout().lock())?;
    Ok(())
}
