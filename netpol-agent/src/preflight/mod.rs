//! What on a node stands in the way of netpol, and what to do about it: `netpol-agent preflight`, and at the agent's start.
//!
//! In: [`Options`], the node. Out: a [`Finding`] for each thing that was looked at. Nothing is changed: what is looked at is
//! read, but for a directory that is made in the BPF file system and taken away again. Start at [`run`].

mod enforcers;
mod filesystems;
mod kernel;
mod netfilter;
mod privileges;
mod proxy;
mod report;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::report::{print, worst};

use self::netfilter::Ruleset;
use crate::cli::RunArgs;
use crate::node::{Node, NodeConfig};
use crate::problem::{Problem, Severity};

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// As it should be.
    Ok,
    /// netpol works, and there is something to know or to do.
    Note,
    /// netpol cannot work here.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, standing: Standing::Ok, found: found.into(), advice: String::new() }
    }

    fn note(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, standing: Standing::Note, found: found.into(), advice: advice.into() }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, standing: Standing::Fail, found: found.into(), advice: advice.into() }
    }
}

/// Where to look, and for what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mount point of the BPF file system.
    pub bpffs: PathBuf,
    /// netpol's bits of the packet mark.
    pub mark_mask: u32,
    /// Where the container runtime looks for configurations.
    pub cni_conf_dir: PathBuf,
    /// Where it looks for plugins.
    pub cni_bin_dir: PathBuf,
    /// Where `proc` is mounted.
    pub proc: PathBuf,
}

/// Looks at everything; `tell` hears of each finding as it is made.
pub async fn run(options: &Options, mut tell: impl FnMut(&Finding)) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut take = |found: Vec<Finding>| {
        found.iter().for_each(&mut tell);
        findings.extend(found);
    };
    let release = kernel::release(&options.proc);
    take(kernel::check(release.as_ref()));
    take(privileges::check(&options.proc, release.as_ref().ok()));
    take(vec![privileges::check_programs(&options.proc)]);
    take(filesystems::bpf(&options.bpffs));
    take(filesystems::cni(&options.cni_conf_dir, &options.cni_bin_dir));
    let rules = netfilter::read();
    take(netfilter::check_marks(&rules, options.mark_mask, &options.proc));
    take(node(options.mark_mask).await);
    take(vec![proxy::check(&rules, &options.proc)]);
    take(enforcers::check(&rules, &options.proc, &options.bpffs));
    findings
}

/// What an agent says at its start, of what is cheap to look at and wrong.
#[must_use]
pub fn at_start(args: &RunArgs) -> Vec<Problem> {
    let proc = Path::new("/proc");
    let rules = netfilter::read();
    let mut findings =
        rules.as_ref().map_or_else(|_unreadable| Vec::new(), |rules| netfilter::overlaps(rules, args.mark_mask));
    findings.extend(enforcers::check(&rules, proc, &args.bpffs));
    findings.into_iter().filter(|it| it.standing != Standing::Ok).map(problem).collect()
}

fn problem(finding: Finding) -> Problem {
    Problem {
        severity: Severity::Note,
        origin: "node".to_owned(),
        object: finding.check.to_owned(),
        field: String::new(),
        message: format!("{}; {}", finding.found, finding.advice),
        effect: "traffic may be refused or routed by others than netpol".to_owned(),
    }
}

/// What the node side looks at itself: routing rules and bridges.
async fn node(mark_mask: u32) -> Vec<Finding> {
    let cannot = |error: &dyn std::fmt::Display| {
        vec![Finding::fail(
            "netlink",
            error.to_string(),
            "give the agent CAP_NET_ADMIN, in the node's network namespace",
        )]
    };
    let node = match Node::start(&NodeConfig::default()).await {
        Ok(node) => node,
        Err(error) => return cannot(&error),
    };
    let rules = match node.preflight(mark_mask).await {
        Ok(rules) => rules,
        Err(error) => return cannot(&error),
    };
    let mut findings = from_problems("routing rules", "none looks at netpol's bits of the mark", rules);
    findings.extend(from_problems("bridges", "netfilter sees their frames, or there are none", node.bridge_problems()));
    findings
}

fn from_problems(check: &'static str, fine: &str, problems: Vec<Problem>) -> Vec<Finding> {
    if problems.is_empty() {
        return vec![Finding::ok(check, fine)];
    }
    let note = |it: Problem| Finding::note(check, format!("{}: {}", it.object, it.effect), it.message);
    problems.into_iter().map(note).collect()
}

/// The rules of others, or why they cannot be read.
type Rules = Result<Ruleset, std::io::Error>;

#[cfg(test)]
mod tests;
