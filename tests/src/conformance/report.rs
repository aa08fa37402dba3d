//! What came of the cases: a tally, tables of what differs, a progress bar, JSON. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::judge::{Probe, Side};

/// A cell that is not as stated.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Failure {
    pub(super) step: usize,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) port: String,
    pub(super) expected: String,
    pub(super) seen: String,
    /// The datapath's reasons, and what the compiler says of them.
    pub(super) why: Vec<String>,
}

impl Failure {
    pub(super) fn new(step: usize, probe: &Probe, [expected, seen]: [String; 2]) -> Self {
        let name = |side: &Side| match &side.pod {
            Some((namespace, name)) => format!("{namespace}/{name}"),
            None => side.address.to_string(),
        };
        let port = format!("{}/{}", probe.protocol.name(), probe.port);
        let (from, to) = (name(&probe.source), name(&probe.destination));
        Self { step, from, to, port, expected, seen, why: Vec::new() }
    }
}

/// One case under one plan.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) suite: String,
    pub(super) case: String,
    pub(super) plan: String,
    pub(super) cells: usize,
    pub(super) failed: usize,
    /// Cells that nobody judged, and why.
    pub(super) skipped: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// Questions that were asked once more, alone, and why: as the books did not balance.
    pub(super) asked_again: Vec<String>,
    pub(super) seconds: f64,
    /// Those of them until the agents had each step in force.
    pub(super) settling: f64,
    pub(super) failures: Vec<Failure>,
}

/// All of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Suites of which a case was chosen.
    pub suites: usize,
    /// Cases, each counted once whatever its plans.
    pub cases: usize,
    /// Statements: those that passed, failed and were skipped.
    pub cells: usize,
    /// As stated.
    pub passed: usize,
    /// Not as stated.
    pub failed: usize,
    /// Not judged.
    pub skipped: usize,
    /// From the first case to the last.
    pub seconds: f64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suites, cases, cells, passed, failed, skipped, seconds } = self;
        write!(
            f,
            "suites {suites}, cases {cases}, cells {cells}, passed {passed}, failed {failed}, skipped {skipped}, \
             seconds {seconds:.0}"
        )
    }
}

/// Everything, as `--json` writes it.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) level: &'a str,
    pub(super) probe: &'a str,
    pub(super) tally: Tally,
    pub(super) results: &'a [Outcome],
}

/// Adds up.
pub(super) fn tally(outcomes: &[Outcome], took: Duration) -> Tally {
    let suites: BTreeSet<&str> = outcomes.iter().map(|it| it.suite.as_str()).collect();
    let cases: BTreeSet<(&str, &str)> = outcomes.iter().map(|it| (it.suite.as_str(), it.case.as_str())).collect();
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let (cells, failed, skipped) = (sum(|it| it.cells), sum(|it| it.failed), sum(|it| it.skipped));
    Tally {
        suites: suites.len(),
        cases: cases.len(),
        cells,
        passed: cells - failed - skipped,
        failed,
        skipped,
        seconds: took.as_secs_f64(),
    }
}

/// The table of a case that is not as stated: `.` and `X` as stated, `!` where the network differs.
pub(super) fn table(outcome: &Outcome) -> String {
    let Outcome { suite, case, plan, cells, failed, failures, .. } = outcome;
    let mut text = format!("FAILED {suite} {case} under {plan}: {failed} of {cells} cells\n");
    let mut by_port: BTreeMap<(usize, &str), Vec<&Failure>> = BTreeMap::new();
    for failure in failures {
        by_port.entry((failure.step, &failure.port)).or_default().push(failure);
    }
    for ((step, port), failures) in by_port {
        text += &format!("  step {step}, {port}\n    {:24} {:24} {:10} seen\n", "from", "to", "expected");
        for Failure { from, to, expected, seen, why, .. } in failures {
            text += &format!("    {from:24} {to:24} {expected:10} {seen}\n");
            why.iter().for_each(|line| text += &format!("        {line}\n"));
        }
    }
    text
}

/// How far it is, on standard error: a bar for a person, now and then a line for a log.
pub(super) struct Progress {
    total: usize,
    done: usize,
    failed: usize,
    started: Instant,
    said: Instant,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(total: usize) -> Self {
        let now = Instant::now();
        Self { total, done: 0, failed: 0, started: now, said: now, terminal: std::io::stderr().is_terminal() }
    }

    pub(super) fn step(&mut self, failed: usize) {
        self.done += 1;
        self.failed += failed;
        let pause = if self.terminal { Duration::from_millis(100) } else { Duration::from_secs(20) };
        if self.said.elapsed() < pause && self.done < self.total {
            return;
        }
        self.said = Instant::now();
        let width = 40 * self.done / self.total.max(1);
        let bar = format!("{}{}", "#".repeat(width), " ".repeat(40 - width));
        let seconds = self.started.elapsed().as_secs();
        let ends = if self.terminal && self.done < self.total {
            ("\r", "")
        } else {
            (if self.terminal { "\r" } else { "" }, "\n")
        };
        let line = format!(
            "{}[{bar}] {}/{} runs, {} cells failed, {seconds} s{}",
            ends.0, self.done, self.total, self.failed, ends.1
        );
        // Nothing depends on it.
        drop(std::io::stderr().write_all(line.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(case: &str, plan: &str, [cells, failed, skipped]: [usize; 3]) -> Outcome {
        let [suite, case, plan] = ["s", case, plan].map(str::to_owned);
        let failures = Vec::new();
        Outcome {
            suite,
            case,
            plan,
            cells,
            failed,
            skipped,
            reason: None,
            asked_again: Vec::new(),
            seconds: 0.0,
            settling: 0.0,
            failures,
        }
    }

    #[test]
    fn a_case_counts_once_and_its_cells_under_each_plan() {
        let outcomes = [outcome("a", "v4", [10, 2, 0]), outcome("a", "v6", [10, 0, 0]), outcome("b", "v4", [5, 0, 5])];
        let tally = tally(&outcomes, Duration::from_secs(3)).to_string();
        assert_eq!(tally, "suites 1, cases 2, cells 25, passed 18, failed 2, skipped 5, seconds 3");
    }
}
