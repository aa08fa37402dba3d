//! `cargo xtask conformance`: every case of the suites, on the real datapath or on the compiler alone.
//!
//! In: files in the format npconf/1 and [`Settings`]. Out: a [`Tally`], tables of what differs, a JSON file. Cases are
//! dealt to workers, each with nodes of its own. Start at [`run`]; what a case comes to is found in `datapath`.

mod books;
mod datapath;
pub mod in_cluster;
mod prober;
mod report;
mod sctp;
mod select;
mod services;
pub mod shop;
mod site;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

pub use self::report::Tally;
use self::report::{Failure, Outcome, Progress, Report, table, tally};
use self::select::{Work, pieces, suites, work};
use self::site::{Nodes, Site};
use crate::kube_proxy::Form;
use crate::replay::walk;
use crate::replica::Replica;

/// Cases that a worker takes at once.
const PIECE: usize = 16;

/// On what cases are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The compiler and the decision, on the host.
    Pure,
    /// The agent and real packets.
    Datapath,
}

/// By which address pods are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Their own.
    PodIp,
    /// That of a service.
    ServiceIp,
}

/// What is to be run, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A file, or a directory of files.
    pub cases: PathBuf,
    /// Names of suites or of their files; none means all.
    pub suites: Vec<String>,
    /// Patterns of case ids; none means all.
    pub globs: Vec<String>,
    /// One plan; none means all of them.
    pub plan: Option<String>,
    /// By which address.
    pub by: By,
    /// On what.
    pub level: Level,
    /// Workers.
    pub jobs: usize,
    /// Where everything is written to.
    pub json: Option<PathBuf>,
}

impl Settings {
    /// Every case of a file or directory, on the datapath, by pod address.
    #[must_use]
    pub fn all_of(cases: PathBuf) -> Self {
        let (suites, globs) = (Vec::new(), Vec::new());
        Self { cases, suites, globs, plan: None, by: By::PodIp, level: Level::Datapath, jobs: 1, json: None }
    }
}

/// The suites that are kept here.
#[must_use]
pub fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

/// One line for each chosen case: suite, id, plans, name.
///
/// # Errors
/// A file cannot be read, or nothing is chosen.
pub fn list(settings: &Settings) -> Result<Vec<String>> {
    let suites = suites(settings)?;
    let mut lines: Vec<(String, Vec<&str>, String)> = Vec::new();
    for it in &work(&suites, settings)? {
        let Work { suite, case, plan_name } = it;
        let key = format!("{} {}", suite.suite, case.id);
        match lines.last_mut().filter(|(last, ..)| *last == key) {
            Some((_, plans, _)) => plans.push(plan_name),
            None => {
                let skipped = it.skipped().map(|why| format!(" (skipped: {why})")).unwrap_or_default();
                lines.push((key, vec![plan_name], format!("{}{skipped}", case.name)));
            }
        }
    }
    Ok(lines.into_iter().map(|(key, plans, name)| format!("{key} [{}] {name}", plans.join(" "))).collect())
}

/// Runs what is chosen; `say` gets the tables of what differs and what was skipped.
///
/// # Errors
/// A file cannot be read, or nothing is chosen.
pub fn run(settings: &Settings, say: impl Fn(&str) + Sync) -> Result<Tally> {
    let suites = suites(settings)?;
    let work = work(&suites, settings)?;
    let (skipped, work): (Vec<Work<'_>>, _) = work.into_iter().partition(|it| it.skipped().is_some());
    let started = Instant::now();
    let mut outcomes: Vec<Outcome> = skipped.iter().map(skip).collect();
    outcomes.iter().for_each(|it| {
        say(&format!("skipped {} {} under {}: {}", it.suite, it.case, it.plan, it.reason.as_deref().unwrap_or("")));
    });
    let progress = Mutex::new(Progress::new(work.len()));
    let report = |outcome: &Outcome| {
        if outcome.failed > 0 {
            let why = outcome.reason.as_deref().map(|it| format!("  {it}\n")).unwrap_or_default();
            say(&format!("{}{why}", table(outcome)));
        }
        progress.lock().unwrap_or_else(PoisonError::into_inner).step(outcome.failed);
    };
    outcomes.extend(match settings.level {
        Level::Pure => in_parallel(settings.jobs, work, |it| vec![pure(&it)], report)?,
        Level::Datapath => on_sites(settings, pieces(work, PIECE)?, report)?,
    });
    let tally = tally(&outcomes, started.elapsed());
    if let Some(path) = &settings.json {
        let level = if settings.level == Level::Pure { "pure" } else { "datapath" };
        let probe = if settings.by == By::PodIp { "pod-ip" } else { "service-ip" };
        let text = serde_json::to_string_pretty(&Report { level, probe, tally, results: &outcomes })?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(tally)
}

fn skip(work: &Work<'_>) -> Outcome {
    let blank = datapath::blank(work);
    Outcome { skipped: blank.cells, reason: work.skipped().map(str::to_owned), ..blank }
}

/// The compiler and the decision on the host.
fn pure(work: &Work<'_>) -> Outcome {
    let started = Instant::now();
    let mut outcome = datapath::blank(work);
    let is_wanted = |case: &crate::npconf::Case, plan: &str| case.id == work.case.id && plan == work.plan_name;
    match walk(work.suite, is_wanted, Replica::default) {
        Ok(report) => {
            outcome.failed = report.differing.len();
            let failures = report.differing.iter().map(|cell| {
                let step = cell.place.split(' ').skip_while(|it| *it != "step").nth(1).and_then(|it| it.parse().ok());
                let stated = [("allow", cell.allow), ("ingress", cell.ingress), ("egress", cell.egress)];
                let stated: Vec<String> =
                    stated.iter().filter_map(|(what, value)| value.map(|it| format!("{what}={it}"))).collect();
                let seen = format!("ingress={} egress={}", cell.verdict.ingress, cell.verdict.egress);
                Failure::new(step.unwrap_or(0), &cell.probe, [stated.join(" "), seen])
            });
            outcome.failures = failures.collect();
        }
        Err(error) => {
            outcome.failed = outcome.cells;
            outcome.reason = Some(format!("could not run: {error:#}"));
        }
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    outcome
}

/// Workers with a site each, which they keep while the nodes stay the same.
fn on_sites(
    settings: &Settings,
    pieces: Vec<(Nodes, Vec<Work<'_>>)>,
    report: impl Fn(&Outcome) + Sync,
) -> Result<Vec<Outcome>> {
    let form = Form::ALL.into_iter().rev().find(|form| form.missing().is_none());
    if settings.by == By::ServiceIp && form.is_none() {
        bail!("{}", Form::Nftables.missing().unwrap_or_default());
    }
    let form = form.unwrap_or(Form::Nftables);
    let by_service = settings.by == By::ServiceIp;
    let queue = Mutex::new(pieces.into_iter());
    let worker = || {
        let mut site: Option<Site> = None;
        let mut outcomes = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((nodes, piece)) = next else { return anyhow::Ok(outcomes) };
            for work in piece {
                // One whose nodes are others, or that a case left in an unknown state, is replaced.
                let mut kept = match site.take().filter(|it| *it.nodes() == nodes) {
                    Some(site) => site,
                    None => Site::start(&nodes, form)?,
                };
                let outcome = datapath::run(&mut kept, &work, by_service);
                if outcome.reason.is_none() {
                    site = Some(kept);
                }
                report(&outcome);
                outcomes.push(outcome);
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..settings.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut outcomes = Vec::new();
        for thread in threads {
            outcomes.extend(thread.join().unwrap_or_else(|_| bail!("a worker panicked"))?);
        }
        Ok(outcomes)
    })
}

fn in_parallel<W: Send>(
    jobs: usize,
    work: Vec<W>,
    run: impl Fn(W) -> Vec<Outcome> + Sync,
    report: impl Fn(&Outcome) + Sync,
) -> Result<Vec<Outcome>> {
    let queue = Mutex::new(work.into_iter());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1))
            .map(|_| {
                scope.spawn(|| {
                    let mut outcomes = Vec::new();
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(work) = next else { return outcomes };
                        let new = run(work);
                        new.iter().for_each(&report);
                        outcomes.extend(new);
                    }
                })
            })
            .collect();
        let mut outcomes = Vec::new();
        for thread in threads {
            outcomes.extend(thread.join().unwrap_or_default());
        }
        Ok(outcomes)
    })
}
