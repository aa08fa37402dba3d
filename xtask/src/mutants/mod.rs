//! `mutants`: deliberate faults in compiler and datapath, each with the test that must notice it.
//!
//! [`table`] is the whole of it: a fault is a piece of a file, what it becomes, the test that must fail then, and why it
//! would matter. They are put into a copy of the tree (`scratch`), compiled and put before their tests (`suite`); the
//! checkout is only read, so that an interrupted run leaves nothing to restore. Most are compiled together and switched on
//! one by one (`switch`); `bench` knows which are not. What does not compile is no kill, a test that does not pass without
//! any fault is no judge, and a fault whose text is no longer there (once, exactly) fails the run: it would otherwise rot
//! unseen.

mod bench;
mod scratch;
mod suite;
mod switch;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell;
use crate::test::{in_ci, why_no_kernel};
use bench::Bench;
use scratch::Scratch;
use suite::Suite;

/// Options of `mutants`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Only print the table.
    #[arg(long)]
    list: bool,
    /// Only faults whose name matches; `*` stands for anything. May be given more than once.
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,
    /// Only faults that tests of this kind must notice. May be given more than once.
    #[arg(long, value_enum)]
    suite: Vec<Suite>,
    /// Only one part of several: 2/3 is the second of three.
    #[arg(long, value_name = "N/M", value_parser = shard)]
    shard: Option<(usize, usize)>,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
struct Mutant {
    /// What is wrong, in a few words joined by hyphens.
    name: &'static str,
    /// Workspace path of the file.
    file: &'static str,
    /// Text that occurs in it exactly once.
    original: &'static str,
    /// What takes its place.
    fault: &'static str,
    /// Where the test is.
    suite: Suite,
    /// Full name of the test that must fail then.
    test: &'static str,
    /// What it would mean on a node.
    why: &'static str,
}

impl Mutant {
    /// The file with the fault in it.
    fn applied_to(&self, text: &str) -> Result<String> {
        let (name, file) = (self.name, self.file);
        match text.matches(self.original).count() {
            1 => Ok(text.replacen(self.original, self.fault, 1)),
            0 => bail!("{name}: stale: {file} has no {:?}; write down what the line has become", self.original),
            found => bail!("{name}: {file} has {:?} {found} times; take in more of what is around it", self.original),
        }
    }
}

/// What became of a fault.
enum Fate {
    /// Its test failed, as it must.
    Killed,
    /// Its test passed all the same.
    Survived,
    /// No answer: it does not compile, or the test did not come to an end.
    Broken(String),
}

/// Runs the table. True if every fault was noticed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    check_table()?;
    let mut chosen = chosen(options)?;
    if options.list {
        chosen.iter().for_each(|mutant| shell::say(&listed(mutant)));
        return Ok(true);
    }
    let skipped = without_kernel(&mut chosen)?;
    let scratch = Scratch::prepare()?;
    let started = Instant::now();
    shell::say(&format!("{} faults, in a copy of the tree under {}", chosen.len(), scratch.tree().display()));
    let mut bench = Bench::prepare(&scratch, chosen)?;
    let total = bench.faults().len();
    let (mut killed, mut survived, mut broken) = (0, Vec::new(), Vec::new());
    for (number, mutant) in (1..).zip(bench.faults()) {
        let at = Instant::now();
        let fate = bench.judge(&mutant)?;
        let word = match &fate {
            Fate::Killed => "killed",
            Fate::Survived => "SURVIVED",
            Fate::Broken(_) => "NO ANSWER",
        };
        let (took, elapsed) = (seconds(at.elapsed()), seconds(started.elapsed()));
        shell::say(&format!("[{number}/{total}] {word:9} {took:>6}  {} (elapsed {elapsed})", mutant.name));
        match fate {
            Fate::Killed => killed += 1,
            Fate::Survived => survived.push(mutant),
            Fate::Broken(why) => broken.push((mutant, why)),
        }
    }
    for mutant in &survived {
        shell::say(&format!("\nsurvived: {}", listed(mutant)));
    }
    for (mutant, why) in &broken {
        shell::say(&format!("\nno answer: {}\n{why}", listed(mutant)));
    }
    let unclear = if broken.is_empty() { String::new() } else { format!(", {} without an answer", broken.len()) };
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    let (survivors, took) = (survived.len(), seconds(started.elapsed()));
    shell::say(&format!("\nmutants {total}, killed {killed}, survived {survivors}{unclear}{skipped}, in {took}"));
    Ok(survived.is_empty() && broken.is_empty())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn listed(mutant: &Mutant) -> String {
    let Mutant { name, file, original, fault, suite, test, why } = mutant;
    let line = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let (original, fault) = (line(original), line(fault));
    format!("{name}\n    {why}\n    {file}: {original}\n      becomes {fault}\n    must fail: {suite} {test}")
}

/// Every fault has a place and a name of its own.
fn check_table() -> Result<()> {
    let mut names = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for mutant in table::all() {
        if !names.insert(mutant.name) {
            wrong.push(format!("{}: the name is taken twice", mutant.name));
        }
        let path = shell::root().join(mutant.file);
        if !texts.contains_key(mutant.file) {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{}: stale: cannot read {}", mutant.name, path.display()))?;
            texts.insert(mutant.file, text);
        }
        match texts.get(mutant.file).map(|text| (text, mutant.applied_to(text))) {
            Some((_, Err(why))) => wrong.push(why.to_string()),
            Some((text, Ok(faulty))) if faulty == *text => wrong.push(format!("{}: changes nothing", mutant.name)),
            Some((_, Ok(_))) | None => {}
        }
    }
    if !wrong.is_empty() {
        bail!("the table of faults does not fit the sources:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn chosen(options: &Options) -> Result<Vec<Mutant>> {
    let Options { only, suite, shard, .. } = options;
    if let Some(glob) = only.iter().find(|glob| !table::all().any(|mutant| matches(glob, mutant.name))) {
        bail!("no fault's name matches {glob}: see `cargo xtask mutants --list`");
    }
    let wanted = |mutant: &Mutant| {
        (only.is_empty() || only.iter().any(|glob| matches(glob, mutant.name)))
            && (suite.is_empty() || suite.contains(&mutant.suite))
    };
    let (part, parts) = shard.unwrap_or((1, 1));
    let numbered = table::all().filter(wanted).enumerate();
    Ok(numbered.filter(|(number, _)| number % parts == part - 1).map(|(_, mutant)| mutant).collect())
}

/// Reads `N/M`.
fn shard(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)));
    numbers.filter(|(part, parts)| (1..=*parts).contains(part)).ok_or_else(|| "not as 2/3 is".to_owned())
}

/// True if `name` is what `glob` says, `*` standing for anything.
fn matches(glob: &str, name: &str) -> bool {
    match glob.split_once('*') {
        None => glob == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            let mut ends = (0..=name.len()).filter_map(|at| name.get(at..));
            ends.any(|end| matches(rest, end))
        }),
    }
}

/// Leaves out what cannot be judged here and says so; under CI that is an error.
fn without_kernel(chosen: &mut Vec<Mutant>) -> Result<usize> {
    let needing = chosen.iter().filter(|mutant| mutant.suite.needs_kernel()).count();
    let Some(why) = (if needing == 0 { None } else { why_no_kernel() }) else { return Ok(0) };
    if in_ci() {
        return Err(why.context("faults that need the kernel cannot be judged, which fails in CI"));
    }
    shell::say(&format!("{needing} faults are left out, as they need the kernel: {why:#}"));
    chosen.retain(|mutant| !mutant.suite.needs_kernel());
    Ok(needing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_the_table_still_has_its_place_in_the_sources() {
        check_table().unwrap();
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (glob, name, found) in [
            ("a-b", "a-b", true),
            ("a-b", "a-bc", false),
            ("a*", "a-b", true),
            ("*b", "a-b", true),
            ("*-*", "a-b", true),
            ("*c*", "a-b", false),
            ("a*b*c", "a-b-d", false),
        ] {
            assert_eq!(matches(glob, name), found, "{glob} {name}");
        }
    }

    #[test]
    fn text_that_is_gone_or_not_alone_is_refused() {
        let mutant =
            Mutant { name: "m", file: "f", original: "a < b", fault: "a > b", suite: Suite::Agent, test: "t", why: "" };
        assert_eq!(mutant.applied_to("if a < b {").unwrap(), "if a > b {");
        assert!(mutant.applied_to("if a <= b {").unwrap_err().to_string().contains("stale"));
        assert!(mutant.applied_to("a < b || a < b").unwrap_err().to_string().contains("2 times"));
    }
}
