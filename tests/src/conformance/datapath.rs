//! One case on the real datapath: its cluster, its steps, its questions, and what the books say of the answers.
//!
//! In: a [`Work`] and a [`Site`]. Out: an [`Outcome`]. A cell passes if the exchange was completed and is stated to be
//! allowed, or if the question was sent, did not arrive, was counted as denied, and is stated so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::books::Counts;
use super::prober::{Ask, Outcome as Heard};
use super::report::{Failure, Outcome};
use super::select::Work;
use super::services::Services;
use super::site::{Site, Wanted};
use crate::judge::{Probe, Protocol};
use crate::npconf::Step;
use crate::replay::{Cell, World, node_of};

/// Questions that are asked again one by one, and failures that are explained, at most.
const SINGLE: usize = 200;
const EXPLAINED: usize = 6;
/// How long a drop may take from the datapath to the agent's output.
const PRINTED: Duration = Duration::from_millis(300);

/// What a cell came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Allowed,
    Denied,
    /// Neither is proven.
    Unproven(String),
}

impl Seen {
    fn is(&self, allow: bool) -> bool {
        *self == if allow { Self::Allowed } else { Self::Denied }
    }

    fn text(&self) -> String {
        match self {
            Self::Allowed => "allowed".to_owned(),
            Self::Denied => "denied".to_owned(),
            Self::Unproven(what) => what.clone(),
        }
    }
}

/// Runs a case. Whatever went wrong with the harness fails every cell of it.
pub(super) fn run(site: &mut Site, work: &Work<'_>, by_service: bool) -> Outcome {
    let started = Instant::now();
    let mut outcome = blank(work);
    if let Err(error) = Run::new(site, work, by_service).and_then(|mut run| run.steps(&mut outcome)) {
        outcome.failed = outcome.cells;
        outcome.skipped = 0;
        outcome.reason = Some(format!("could not run: {error:#}"));
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    outcome
}

/// An outcome without anything that came to be.
pub(super) fn blank(work: &Work<'_>) -> Outcome {
    let Work { suite, case, plan_name } = *work;
    Outcome {
        suite: suite.suite.clone(),
        case: case.id.clone(),
        plan: plan_name.to_owned(),
        cells: work.cells(),
        failed: 0,
        skipped: 0,
        reason: None,
        asked_again: Vec::new(),
        seconds: 0.0,
        settling: 0.0,
        failures: Vec::new(),
    }
}

struct Run<'a> {
    site: &'a mut Site,
    work: &'a Work<'a>,
    world: World<'a>,
    plan: BTreeMap<IpAddr, Option<String>>,
    externals: BTreeSet<IpAddr>,
    services: Option<Services>,
    asked_again: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(site: &'a mut Site, work: &'a Work<'a>, by_service: bool) -> Result<Self> {
        let (spec, plan) = (work.cluster()?, work.plan()?);
        let world = World::new(spec, plan)?;
        let externals = spec.externals.iter().filter(|it| it.kind != "node");
        let externals = externals.filter_map(|it| plan.get(&it.name).copied()).collect();
        let pods: BTreeSet<IpAddr> = plan
            .iter()
            .filter(|(name, _)| spec.externals.iter().all(|it| it.name != **name))
            .filter(|(name, _)| spec.pods.iter().all(|it| it.pod != **name || !it.host_network))
            .map(|(_, address)| *address)
            .collect();
        let nodes = plan.iter().map(|(name, address)| (*address, node_of(spec, name, *address))).collect();
        let services = if by_service { Some(Services::new(&pods, ports_of(work)?)) } else { None };
        Ok(Self { site, work, world, plan: nodes, externals, services, asked_again: Vec::new() })
    }

    fn steps(&mut self, outcome: &mut Outcome) -> Result<()> {
        for (number, step) in (1..).zip(&self.work.case.steps) {
            self.step(number, step, outcome).with_context(|| format!("step {number}"))?;
        }
        outcome.asked_again = std::mem::take(&mut self.asked_again);
        Ok(())
    }

    fn step(&mut self, number: usize, step: &Step, outcome: &mut Outcome) -> Result<()> {
        // What changed is found by comparing objects with what is in force.
        let _changes = self.world.enact(step)?;
        let wanted = Wanted {
            objects: self.world.objects(),
            plan: &self.plan,
            externals: &self.externals,
            services: self.services.as_ref(),
            fresh: number == 1,
        };
        let started = Instant::now();
        self.site.settle(&wanted)?;
        outcome.settling += started.elapsed().as_secs_f64();
        let cells = self.world.cells(step, self.work.plan_name, "")?;
        let probes: Vec<Probe> =
            cells.iter().map(|cell| &cell.probe).collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let seen = self.examine(&probes)?;
        let seen: BTreeMap<&Probe, &Seen> = probes.iter().zip(&seen).collect();
        for cell in &cells {
            let Some(allow) = stated(cell) else {
                outcome.skipped += 1;
                continue;
            };
            let Some(seen) = seen.get(&cell.probe).filter(|seen| !seen.is(allow)) else { continue };
            outcome.failed += 1;
            let expected = if allow { "allowed" } else { "denied" };
            let mut failure = Failure::new(number, &cell.probe, [expected.to_owned(), seen.text()]);
            if outcome.failures.len() < EXPLAINED {
                failure.why = self.explain(&cell.probe)?;
            }
            outcome.failures.push(failure);
        }
        Ok(())
    }

    /// Asks everything at once; what is not proven by that is asked again, one by one.
    fn examine(&mut self, probes: &[Probe]) -> Result<Vec<Seen>> {
        let (mut seen, _) = self.batch(probes)?;
        let unproven = probes.iter().zip(&mut seen).filter(|(_, seen)| matches!(seen, Seen::Unproven(_)));
        for (probe, seen) in unproven.take(SINGLE).collect::<Vec<_>>() {
            self.asked_again.push(format!("{probe}: {}", seen.text()));
            let (mut again, _) = self.batch(std::slice::from_ref(probe))?;
            *seen = again.pop().context("a question has an answer")?;
        }
        Ok(seen)
    }

    /// Asks everything at once; all that is silent is denied, if the books balance.
    fn batch(&mut self, probes: &[Probe]) -> Result<(Vec<Seen>, Counts)> {
        let asks: Vec<Ask> = probes.iter().map(|probe| self.ask(probe)).collect();
        let before = Counts::of(Site::counters(self.site.agents())?);
        let heard = self.site.ask(&asks, |agents, open| {
            let now = Counts::of(Site::counters(agents)?);
            Ok(usize::try_from(now.since(&before).denials()).is_ok_and(|denied| denied >= open))
        })?;
        let counted = Counts::of(Site::counters(self.site.agents())?).since(&before);
        let silent: Vec<&Probe> =
            probes.iter().zip(&heard).filter(|(_, heard)| **heard == Heard::Silent).map(|(probe, _)| probe).collect();
        let balance = counted.balance(&silent, self.services.is_some());
        let seen = heard.into_iter().map(|heard| match (heard, &balance) {
            (Heard::Answered, _) => Seen::Allowed,
            (Heard::Silent, Ok(())) => Seen::Denied,
            (Heard::Silent, Err(why)) => Seen::Unproven(format!("silence: {why}")),
            (Heard::Arrived, _) => Seen::Unproven("arrived, and the answer was not heard".to_owned()),
            (Heard::Other(what), _) => Seen::Unproven(what),
        });
        Ok((seen.collect(), counted))
    }

    fn ask(&self, probe: &Probe) -> Ask {
        let Probe { source, destination, protocol, port } = probe;
        let (from, to) = (source.address, destination.address);
        let is_between_pods = source.pod.is_some() && destination.pod.is_some() && from != to;
        let services = self.services.as_ref().filter(|_| is_between_pods);
        let translated = services.and_then(|it| it.at(to, *protocol, *port));
        Ask { from, to, at: translated.unwrap_or_else(|| SocketAddr::new(to, *port)), protocol: *protocol }
    }

    /// What the datapath counts for one question, and what agents print of its drop.
    fn explain(&mut self, probe: &Probe) -> Result<Vec<String>> {
        let (_, counted) = self.batch(std::slice::from_ref(probe))?;
        let mut why: Vec<String> = counted.lines().map(|line| format!("counted: {line}")).collect();
        let source = probe.source.address.to_string();
        for agent in self.site.agents() {
            let is_of_probe = |line: &str| line.contains(&format!("\"{source}\""));
            if counted.denials() > 0
                && let Some(line) = agent.drops().wait_for(0, PRINTED, is_of_probe)
            {
                why.push(format!("agent: {}", drop_in_words(&line)));
            }
        }
        Ok(why)
    }
}

/// Whether the connection is stated to come to be; none if not enough is stated.
pub(super) fn stated(cell: &Cell) -> Option<bool> {
    cell.allow.or(match (cell.ingress, cell.egress) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    })
}

/// Every port that the cluster's cases ask for, so that services are the same for all of them.
pub(super) fn ports_of(work: &Work<'_>) -> Result<BTreeSet<(Protocol, u16)>> {
    let of_cluster = work.suite.cases.iter().filter(|case| case.cluster == work.case.cluster);
    let steps = of_cluster.flat_map(|case| &case.steps);
    let named = steps.flat_map(|step| {
        step.expect.iter().flat_map(|it| &it.ports).chain(step.checks.iter().map(|check| &check.port))
    });
    let read = |port: &String| {
        let (protocol, number) = port.split_once('/')?;
        Some((Protocol::from_name(protocol)?, number.parse().ok()?))
    };
    Ok(named.filter_map(read).collect())
}

fn drop_in_words(line: &str) -> String {
    let Ok(flow) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let text = |name: &str| {
        flow.get(name).map_or_else(String::new, |it| it.as_str().map_or_else(|| it.to_string(), str::to_owned))
    };
    format!("{} {}; policies {}; {}", text("direction"), text("reason"), text("policies"), text("hint"))
}
