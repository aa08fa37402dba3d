//! The tests, by level: `pure` needs nothing, `property` patience, `packet` and `netns` root and the BPF toolchain.
//!
//! A level that cannot run says why; under CI that is a failure, so that green never means "did not run". The last line is
//! `N passed, N failed`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{build, chart, shell};

/// Where the integration tests of `netpol-tests` lie: `packet*.rs`, `netns*.rs` and `property*.rs` belong to their level,
/// everything else to `pure`.
const INTEGRATION_TESTS: &str = "tests/tests";

/// Random cases of each property, and how many the full tier tries.
const CASES_VARIABLE: &str = "NETPOL_CASES";
const FULL_CASES: &str = "20000";

/// Options of `test`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Which level.
    #[arg(value_enum, default_value_t = Level::All)]
    level: Level,
    /// As long as it takes: more cases, bigger clusters (NETPOL_TEST_FULL=1 and NETPOL_CASES for the tests).
    #[arg(long)]
    full: bool,
    /// Only tests whose name contains this.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// A level of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Units, snapshots, host tests of the decision: no root, no BPF toolchain.
    Pure,
    /// The naive oracle against compiler and decision, over generated clusters.
    Property,
    /// The same packets through the BPF programs and through the decision on the host.
    Packet,
    /// The real agent, real sockets, network namespaces.
    Netns,
    /// All of them.
    All,
}

impl Level {
    const EACH: [Self; 4] = [Self::Pure, Self::Property, Self::Packet, Self::Netns];

    const fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Property => "property",
            Self::Packet => "packet",
            Self::Netns => "netns",
            Self::All => "all",
        }
    }

    const fn needs_kernel(self) -> bool {
        matches!(self, Self::Packet | Self::Netns | Self::All)
    }

    /// The level of an integration test, by the name of its file.
    fn of(test: &str) -> Self {
        let special = [Self::Property, Self::Packet, Self::Netns];
        special.into_iter().find(|level| test.starts_with(level.name())).unwrap_or(Self::Pure)
    }
}

/// What came of one or more levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the levels. True if nothing failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let ci = in_ci();
    let levels = if options.level == Level::All { Level::EACH.to_vec() } else { vec![options.level] };
    let object = if levels.iter().any(|level| level.needs_kernel()) { Some(prepare(&levels)) } else { None };
    let mut total = Tally::default();
    let mut words = Vec::new();
    for level in levels {
        shell::say(&format!("\n== {}", level.name()));
        let result = run_level(level, options, object.as_ref());
        let (tally, word) = match result {
            Ok(tally) => (tally, format!("{} passed, {} failed", tally.passed, tally.failed)),
            Err(why) if ci => {
                (Tally { failed: 1, ..Tally::default() }, format!("cannot run, which fails in CI: {why:#}"))
            }
            Err(why) => (Tally { skipped: 1, ..Tally::default() }, format!("cannot run: {why:#}")),
        };
        total.add(tally);
        words.push(format!("{:9} {word}", level.name()));
    }
    shell::say("");
    words.iter().for_each(|word| shell::say(word));
    let skipped = if total.skipped > 0 { format!(", {} skipped", total.skipped) } else { String::new() };
    shell::say(&format!("{} passed, {} failed{skipped}", total.passed, total.failed));
    Ok(total.failed == 0)
}

/// True where what cannot run is a failure.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false")
}

/// Why tests that need the kernel cannot run here, if so.
pub(crate) fn why_no_kernel() -> Option<anyhow::Error> {
    can_use_the_kernel().err()
}

/// The object and the programs that the levels with a kernel need.
fn prepare(levels: &[Level]) -> Result<PathBuf> {
    build::run(build::Options { next_abi: levels.contains(&Level::Netns), ..build::Options::default() })
}

/// Errors mean that the level could not run.
fn run_level(level: Level, options: &Options, object: Option<&Result<PathBuf>>) -> Result<Tally> {
    if level.needs_kernel() {
        if let Some(Err(why)) = object {
            bail!("the BPF object could not be built: {why:#}");
        }
        can_use_the_kernel()?;
    }
    // Tests run our CNI plugin as a program, and cargo builds those of a test's own package only. (With the object, all are
    // built already.)
    if level == Level::Pure && object.is_none() {
        shell::run(shell::cargo().args(["build", "-p", "netpol-agent", "-p", "netpol-tests", "--bin", "netpol-cni"]))?;
    }
    if level == Level::Pure
        && let Err(why) = chart::ensure_helm()
    {
        // The chart's tests say so again, and fail under CI.
        shell::say(&format!("the chart cannot be checked: {why:#}"));
    }
    let mut tally = Tally::default();
    for mut command in commands(level)? {
        match object {
            Some(Ok(object)) => command.env(build::OBJECT_VARIABLE, object),
            // Some units of the agent want the kernel: without the object they are skipped, and say so. Whoever wants
            // them to fail asks for a level that builds it.
            _ => command.env_remove("CI"),
        };
        if options.full {
            command.env("NETPOL_TEST_FULL", "1");
            if std::env::var_os(CASES_VARIABLE).is_none() {
                command.env(CASES_VARIABLE, FULL_CASES);
            }
        }
        if level.needs_kernel() && !shell::is_root() {
            command.env(runner_variable(), "sudo -E");
        }
        if !options.filter.is_empty() {
            command.arg("--").args(&options.filter);
        }
        tally.add(run_counted(&mut command)?);
    }
    Ok(tally)
}

/// The cargo commands of a level.
fn commands(level: Level) -> Result<Vec<Command>> {
    let cargo = |arguments: &[&str]| {
        let mut command = shell::cargo();
        command.args(["test", "--no-fail-fast"]).args(arguments);
        command
    };
    let tests: Vec<String> = integration_tests()?.into_iter().filter(|test| Level::of(test) == level).collect();
    let mut commands = Vec::new();
    if level == Level::Pure {
        commands.push(cargo(&[
            "-p",
            "netpol-common",
            "-p",
            "netpol-agent",
            "-p",
            "xtask",
            // Not all features: that would be another ABI.
            "--features",
            "netpol-common/user",
            "--tests",
        ]));
        commands.push(cargo(&["-p", "netpol-tests", "--lib", "--bins"]));
    } else if tests.is_empty() {
        bail!("no {INTEGRATION_TESTS}/{}*.rs", level.name());
    }
    if !tests.is_empty() {
        let mut command = cargo(&["-p", "netpol-tests"]);
        for test in &tests {
            command.args(["--test", test]);
        }
        commands.push(command);
    }
    Ok(commands)
}

fn integration_tests() -> Result<Vec<String>> {
    let directory = shell::root().join(INTEGRATION_TESTS);
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let is_test = path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").is_file();
        if let Some(stem) = path.file_stem().and_then(|it| it.to_str()).filter(|_| is_test) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Says why not, if programs cannot be loaded or namespaces not be made.
fn can_use_the_kernel() -> Result<()> {
    if !shell::is_root() {
        shell::output(Command::new("sudo").args(["-n", "true"]))
            .context("not root, and sudo would ask for a password")?;
        return Ok(());
    }
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read this process's capabilities")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff in the status")?;
    let set = u64::from_str_radix(line.trim(), 16).context("CapEff")?;
    for (number, name) in [(12, "NET_ADMIN"), (21, "SYS_ADMIN"), (38, "PERFMON"), (39, "BPF")] {
        if set & (1 << number) == 0 {
            bail!("root without CAP_{name} (in a container? it needs --privileged)");
        }
    }
    Ok(())
}

/// Cargo's variable for a program that runs the tests.
fn runner_variable() -> String {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"))
}

/// Runs `cargo test`, shows what it prints, and counts.
fn run_counted(command: &mut Command) -> Result<Tally> {
    let line = shell::line_of(command);
    shell::say(&format!("$ {line}"));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {line}"))?;
    let stdout = child.stdout.take().context("the output is a pipe")?;
    let mut tally = Tally::default();
    for text in BufReader::new(stdout).lines().map_while(Result::ok) {
        if let Some(counted) = count(&text) {
            tally.add(counted);
        }
        shell::say(&text);
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test program died without a word.
        shell::say(&format!("{line}: {status}"));
        tally.failed += 1;
    }
    Ok(tally)
}

/// Reads `test result: ok. 6 passed; 0 failed; ...`.
fn count(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some(Tally { passed: number("passed")?, failed: number("failed")?, skipped: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_line_is_counted_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s";
        assert_eq!(count(line), Some(Tally { passed: 12, failed: 3, skipped: 0 }));
        assert_eq!(count("test netns::it_works ... ok"), None);
    }

    #[test]
    fn no_integration_test_is_left_out_for_its_name() {
        assert_eq!(Level::of("netns_shop"), Level::Netns);
        assert_eq!(Level::of("packet"), Level::Packet);
        assert_eq!(Level::of("property"), Level::Property);
        assert_eq!(Level::of("anything"), Level::Pure);
    }
}
