//! What is to be run: suites from files, cases and plans by their names, in an order that changes nodes seldom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use netpol_agent::node::NamePattern;
use serde_json::Value;

use super::Settings;
use super::site::Nodes;
use crate::cluster::Plan as NodePlan;
use crate::npconf::{Action, Case, ClusterSpec, Plan, Suite};
use crate::replay::{World, stated_cells};

/// One case under one plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    pub(super) suite: &'a Suite,
    pub(super) case: &'a Case,
    pub(super) plan_name: &'a str,
}

impl<'a> Work<'a> {
    pub(super) fn plan(&self) -> Result<&'a Plan> {
        self.suite.ip_plans.get(self.plan_name).with_context(|| format!("no plan {}", self.plan_name))
    }

    pub(super) fn cluster(&self) -> Result<&'a ClusterSpec> {
        self.suite.clusters.get(&self.case.cluster).with_context(|| format!("no cluster {}", self.case.cluster))
    }

    /// Why the case is not run, if so.
    pub(super) fn skipped(&self) -> Option<&'static str> {
        let mut actions = self.case.steps.iter().flat_map(|step| &step.actions);
        let is_of_cluster =
            |it: &Action| matches!(it, Action::CreateClusterPolicy { .. } | Action::UpdateClusterPolicy { .. });
        actions.any(is_of_cluster).then_some("ClusterNetworkPolicy is not implemented")
    }

    /// Statements of the case under the plan.
    pub(super) fn cells(&self) -> usize {
        self.case.steps.iter().map(|step| stated_cells(step, self.plan_name)).sum()
    }

    /// The nodes of the cluster, in plans whose own addresses the case does not use.
    pub(super) fn nodes(&self) -> Result<Nodes> {
        let plan = self.plan()?;
        let world = World::new(self.cluster()?, plan)?;
        let names: Vec<String> = world.objects().of("Node").map(|((_, name), _)| name.clone()).collect();
        let taken: BTreeSet<IpAddr> = plan.values().copied().collect();
        let is_free = |number: &u8| {
            NodePlan::of(*number)
                .is_some_and(|it| [it.gateways(), it.overlay()].concat().iter().all(|at| !taken.contains(at)))
        };
        let free: Vec<u8> = (1..=NodePlan::MOST).filter(is_free).take(names.len()).collect();
        ensure!(free.len() == names.len(), "{} nodes are more than this machine can be", names.len());
        Ok(names.into_iter().zip(free).collect())
    }
}

/// Reads the suites that are chosen.
pub(super) fn suites(settings: &Settings) -> Result<Vec<Suite>> {
    suites_with(settings, Vec::new())
}

/// As [`suites`], of these besides.
pub(super) fn suites_with(settings: &Settings, others: Vec<Suite>) -> Result<Vec<Suite>> {
    let is_chosen = |names: [&str; 2]| {
        settings.suites.is_empty() || settings.suites.iter().any(|wanted| names.contains(&wanted.as_str()))
    };
    let mut suites: Vec<Suite> = others.into_iter().filter(|it| is_chosen([it.suite.as_str(); 2])).collect();
    for path in files(&settings.cases)? {
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let suite = Suite::read(&path)?;
        if is_chosen([&file, &suite.suite]) {
            suites.push(suite);
        }
    }
    ensure!(!suites.is_empty(), "no suite of {} is chosen", settings.cases.display());
    Ok(suites)
}

/// A file, or those of a directory that say that they are npconf/1.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "json") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
            if value.get("format").is_some_and(|it| it == "npconf/1") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Every chosen case under every chosen plan.
pub(super) fn work<'a>(suites: &'a [Suite], settings: &Settings) -> Result<Vec<Work<'a>>> {
    let globs: Vec<NamePattern> = settings.globs.iter().map(|glob| NamePattern::new(glob)).collect();
    let mut work = Vec::new();
    for suite in suites {
        let cases = suite.cases.iter().filter(|case| globs.is_empty() || globs.iter().any(|it| it.matches(&case.id)));
        for case in cases {
            let plans = suite.plans_of(case).into_iter();
            let plans = plans.filter(|plan| settings.plan.as_deref().is_none_or(|wanted| wanted == *plan));
            work.extend(plans.map(|plan_name| Work { suite, case, plan_name }));
        }
    }
    if work.is_empty() {
        bail!("no case is chosen");
    }
    Ok(work)
}

/// Work in pieces that a site can take one after the other: the same nodes, the same plan, the same cluster.
pub(super) fn pieces(work: Vec<Work<'_>>, most: usize) -> Result<Vec<(Nodes, Vec<Work<'_>>)>> {
    let mut groups: BTreeMap<(Nodes, &str, &str), Vec<Work<'_>>> = BTreeMap::new();
    for work in work {
        groups.entry((work.nodes()?, &work.suite.suite, work.plan_name)).or_default().push(work);
    }
    let mut pieces = Vec::new();
    for ((nodes, ..), mut group) in groups {
        group.sort_by_key(|work| &work.case.cluster);
        pieces.extend(group.chunks(most).map(|piece| (nodes.clone(), piece.to_vec())));
    }
    Ok(pieces)
}
