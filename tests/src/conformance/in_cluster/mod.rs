//! Cases of the suites inside a real cluster: pods of the cluster itself ask one another, and policies go through its API.
//!
//! In: [`Settings`] as everywhere, and a [`Kubectl`]. Out: a [`Tally`]. Cases, cells, verdicts and reports are those of the
//! datapath's runner; here is only what a cluster decides itself: which addresses pods get ([`stage`]), who asks ([`prober`]),
//! and which cases cannot be made in one ([`why_not`]). A cell may take a while to become as stated, as policies take effect
//! behind the API server; it has to be so in one whole round.

pub mod prober;
mod stage;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::prober::{Asked, Heard};
use self::stage::Stage;
use super::report::{Failure, Outcome, table, tally};
use super::select::{Work, suites_with, work};
use super::{By, Settings, Tally, datapath, shop};
use crate::judge::{Name, Probe, Protocol};
use crate::npconf::Action;
use crate::replay::{Cell, World};

/// `kubectl`, or what a test puts in its place.
pub trait Kubectl {
    /// Runs it with these arguments and this on standard input; its standard output.
    ///
    /// # Errors
    /// If it failed; with what it said.
    fn run(&self, arguments: &[&str], input: &str) -> Result<String>;
}

/// How long the cluster may take until a step is in force.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
/// Tables that hold under every plan are for clusters too, whose addresses are in no plan.
const NO_PLAN: &str = "cluster";

/// Runs what is chosen, of the files and of the [`shop`], in the cluster that `kubectl` reaches. `image` is the prober's.
///
/// # Errors
/// If nothing is chosen, or the cluster cannot be used.
pub fn run(settings: &Settings, kubectl: &impl Kubectl, image: &str, say: impl Fn(&str)) -> Result<Tally> {
    let suites = suites_with(settings, vec![shop::suite()?])?;
    let mut work: Vec<Work<'_>> = work(&suites, settings)?;
    // Once each, whatever its plans.
    work.iter_mut().for_each(|it| it.plan_name = NO_PLAN);
    work.sort_by_key(|it| (&it.suite.suite, &it.case.cluster, &it.case.id));
    work.dedup_by_key(|it| (&it.suite.suite, &it.case.id));
    let started = Instant::now();
    let mut outcomes = Vec::new();
    let mut stage: Option<Stage<'_>> = None;
    for work in &work {
        let outcome = match why_not(work) {
            Some(why) => {
                let blank = datapath::blank(work);
                say(&format!("skipped {} {}: {why}", blank.suite, blank.case));
                Outcome { skipped: blank.cells, reason: Some(why.to_owned()), ..blank }
            }
            None => one(work, &mut stage, kubectl, (image, settings.by)),
        };
        if outcome.failed > 0 {
            say(&format!("{}{}", table(&outcome), outcome.reason.as_deref().unwrap_or_default()));
        }
        outcomes.push(outcome);
    }
    if let Some(stage) = stage {
        stage.strike(kubectl)?;
    }
    Ok(tally(&outcomes, started.elapsed()))
}

/// Why a case cannot be made in a cluster, if so.
fn why_not(work: &Work<'_>) -> Option<&'static str> {
    let Ok(cluster) = work.cluster() else { return Some("it has no cluster") };
    let steps = &work.case.steps;
    let mut actions = steps.iter().flat_map(|step| &step.actions);
    if let Some(why) = work.skipped() {
        return Some(why);
    }
    if work.case.ip_dependent || work.cells() == 0 {
        return Some("its tables are for addresses that a cluster does not give");
    }
    if cluster.externals.iter().any(|it| steps.iter().any(|step| step.endpoints.contains(&it.name))) {
        return Some("it asks hosts that are no pods");
    }
    if cluster.pods.iter().any(|it| it.host_network) {
        return Some("it has hostNetwork pods, whose ports would meet on one node");
    }
    let is_fixed = |it: &Action| {
        matches!(
            it,
            Action::CreatePod { .. }
                | Action::DeletePod { .. }
                | Action::CreateNamespace { .. }
                | Action::DeleteNamespace { .. }
                | Action::SetPodPhase { .. }
                | Action::SetPodTerminating { .. }
        )
    };
    actions.any(is_fixed).then_some("its pods come and go, or are what only a kubelet can make them")
}

/// Runs a case. Whatever went wrong with the cluster fails every cell of it, and the next case gets new pods.
fn one<'a>(work: &Work<'a>, stage: &mut Option<Stage<'a>>, kubectl: &impl Kubectl, (image, by): (&str, By)) -> Outcome {
    let started = Instant::now();
    let mut outcome = datapath::blank(work);
    let result = (|| {
        let kept = match stage.take() {
            Some(kept) if kept.is_for(work)? => kept,
            old => {
                if let Some(old) = old {
                    old.strike(kubectl)?;
                }
                Stage::set(work, kubectl, image, by)?
            }
        };
        steps(work, stage.insert(kept), kubectl, &mut outcome)
    })();
    if let Err(error) = result {
        *stage = None;
        (outcome.failed, outcome.skipped) = (outcome.cells, 0);
        outcome.reason = Some(format!("could not run: {error:#}"));
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    outcome
}

fn steps(work: &Work<'_>, stage: &mut Stage<'_>, kubectl: &impl Kubectl, outcome: &mut Outcome) -> Result<()> {
    let plan = stage.plan().clone();
    let mut world = World::new(work.cluster()?, &plan)?;
    for (number, step) in (1..).zip(&work.case.steps) {
        let _changes = world.enact(step)?;
        stage.become_like(world.objects(), kubectl)?;
        let cells = world.cells(step, NO_PLAN, "")?;
        let (askable, skipped): (Vec<&Cell>, Vec<&Cell>) =
            cells.iter().partition(|cell| can_ask(&cell.probe) && datapath::stated(cell).is_some());
        outcome.skipped += skipped.len();
        for (cell, heard) in settled(&askable, stage.services(), kubectl).with_context(|| format!("step {number}"))? {
            let expected = if datapath::stated(cell) == Some(true) { "allowed" } else { "denied" };
            outcome.failed += 1;
            outcome.failures.push(Failure::new(number, &cell.probe, [expected.to_owned(), heard]));
        }
    }
    Ok(())
}

/// From a pod to another, by what a socket can ask.
fn can_ask(probe: &Probe) -> bool {
    let is_socket = matches!(probe.protocol, Protocol::Tcp | Protocol::Udp);
    is_socket && probe.source.pod.is_some() && probe.destination.pod.is_some()
}

/// Asks until all is as stated; what is not in the last round, and what was heard.
fn settled<'c>(
    cells: &[&'c Cell],
    services: &BTreeMap<Name, IpAddr>,
    kubectl: &impl Kubectl,
) -> Result<Vec<(&'c Cell, String)>> {
    let started = Instant::now();
    loop {
        let wrong = round(cells, services, kubectl)?;
        if wrong.is_empty() || started.elapsed() > PATIENCE {
            return Ok(wrong);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Every question once, by source; those whose answer is not as stated.
fn round<'c>(
    cells: &[&'c Cell],
    services: &BTreeMap<Name, IpAddr>,
    kubectl: &impl Kubectl,
) -> Result<Vec<(&'c Cell, String)>> {
    let mut by_source: BTreeMap<&Name, Vec<&'c Cell>> = BTreeMap::new();
    for cell in cells {
        let source = cell.probe.source.pod.as_ref().context("a source without a pod")?;
        by_source.entry(source).or_default().push(cell);
    }
    let mut wrong = Vec::new();
    for ((namespace, pod), cells) in by_source {
        let asked: Vec<Asked> = cells.iter().map(|cell| Asked::new(&cell.probe, services)).collect::<Result<_>>()?;
        let command = ["exec", "-i", "-n", namespace, pod, "--", prober::PROGRAM, "prober", "ask"];
        let answer = kubectl.run(&command, &serde_json::to_string(&asked)?)?;
        let heard: Vec<Heard> = serde_json::from_str(&answer).context("the prober wrote something else")?;
        anyhow::ensure!(heard.len() == asked.len(), "{} questions, {} answers", asked.len(), heard.len());
        for (cell, heard) in cells.into_iter().zip(heard) {
            let is_right = match datapath::stated(cell) {
                Some(true) => heard == Heard::Answered,
                Some(false) => heard == Heard::Silence,
                None => true,
            };
            if !is_right {
                wrong.push((cell, heard.to_string()));
            }
        }
    }
    Ok(wrong)
}
