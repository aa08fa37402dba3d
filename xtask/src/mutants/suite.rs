//! Where the judging tests are: how such a test program is built in the copy of the tree, run, and read.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::scratch::Scratch;
use super::switch;
use crate::{build, shell};

/// A test program that does not end is a fault of ours, not a kill.
const LIMIT: Duration = Duration::from_secs(300);
/// How much of a long output is shown.
const SHOWN_LINES: usize = 40;

/// Test programs that are built together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Suite {
    /// Unit tests of what is shared with the kernel.
    Common,
    /// Words that cross the kernel boundary.
    Abi,
    /// Unit and property tests of the agent.
    Agent,
    /// Those of them that want the kernel.
    AgentKernel,
    /// The conformance suites.
    Semantics,
    /// Scenes of packets, judged on the host. Tests are scenes.
    Decision,
    /// Random clusters and histories against the oracle.
    Property,
    /// The same scenes in the kernel, held against the host.
    Packet,
    /// What the kernel does beside the scenes.
    PacketWhole,
    /// What one pod may take of the tables.
    Budgets,
    /// The shop under the real agent.
    NetnsShop,
    /// Traffic under the real agent while everything changes.
    NetnsChurn,
}

/// The test that plays scenes on the host, and the one that plays them in the kernel.
const SCENES: &str = "every_scene_plays_as_written";
const SCENES_IN_KERNEL: &str = "every_scene_plays_alike_in_the_kernel";
/// Which scenes they play.
const SCENES_VARIABLE: &str = "NETPOL_SCENES";

/// What building came to.
pub(super) enum Build {
    /// The test programs.
    Done(Vec<Program>),
    /// What the compiler said.
    Failed(String),
}

/// A test program.
pub(super) struct Program {
    executable: PathBuf,
    /// Tests run in the directory of their package.
    directory: PathBuf,
}

/// What a test did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Passed,
    Failed,
    /// Nothing was heard of it, or not how it ended.
    Absent,
}

/// Results by test.
pub(super) struct Results {
    by_test: BTreeMap<String, Ran>,
    /// The end of what was printed.
    pub(super) output: String,
}

impl Results {
    pub(super) fn of(&self, test: &str) -> Ran {
        self.by_test.get(test).copied().unwrap_or(Ran::Absent)
    }

    pub(super) fn add(&mut self, others: Self) {
        self.by_test.extend(others.by_test);
        self.output.push_str(&others.output);
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Common => "pure, netpol-common:",
            Self::Abi => "pure, tests/abi:",
            Self::Agent => "pure, netpol-agent:",
            Self::AgentKernel => "kernel, netpol-agent:",
            Self::Semantics => "pure, tests/semantics:",
            Self::Decision => "pure, tests/decision, scene:",
            Self::Property => "property:",
            Self::Packet => "packet, scene:",
            Self::PacketWhole => "packet:",
            Self::Budgets => "packet, tests/packet_budgets:",
            Self::NetnsShop => "netns, tests/netns_shop:",
            Self::NetnsChurn => "netns, tests/netns_churn:",
        })
    }
}

impl Suite {
    /// True if root, the BPF toolchain and network namespaces are needed.
    pub(super) const fn needs_kernel(self) -> bool {
        self.reads_object() || matches!(self, Self::AgentKernel) || self.runs_agent()
    }

    /// True if the tests run the agent.
    const fn runs_agent(self) -> bool {
        matches!(self, Self::NetnsShop | Self::NetnsChurn)
    }

    /// True if the tests load the BPF object that the environment names: for a fault in it no test is built again.
    pub(super) const fn reads_object(self) -> bool {
        matches!(self, Self::Packet | Self::PacketWhole | Self::Budgets)
    }

    /// A test that must pass with any fault in: the kernel refuses a program for more reasons than the one intended.
    pub(super) const fn guard(self) -> Option<&'static str> {
        match self {
            Self::Packet | Self::PacketWhole => Some("the_kernel_takes_the_programs"),
            Self::NetnsShop => Some("without_policies_the_agent_is_in_nobodys_way"),
            Self::Budgets => Some("fragments_of_one_pod_do_not_hide_those_of_another"),
            // Its faults are none of programs.
            Self::NetnsChurn => None,
            Self::Common | Self::Abi | Self::Agent | Self::AgentKernel => None,
            Self::Semantics | Self::Decision | Self::Property => None,
        }
    }

    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Common => &["-p", "netpol-common", "--lib", "--features", "netpol-common/user"],
            Self::Abi => &["-p", "netpol-tests", "--test", "abi"],
            Self::Agent | Self::AgentKernel => &["-p", "netpol-agent", "--lib"],
            Self::Semantics => &["-p", "netpol-tests", "--test", "semantics"],
            Self::Decision => &["-p", "netpol-tests", "--test", "decision"],
            Self::Property => &["-p", "netpol-tests", "--test", "property"],
            Self::Packet | Self::PacketWhole => &["-p", "netpol-tests", "--test", "packet"],
            Self::Budgets => &["-p", "netpol-tests", "--test", "packet_budgets"],
            Self::NetnsShop => &["-p", "netpol-tests", "--test", "netns_shop"],
            Self::NetnsChurn => &["-p", "netpol-tests", "--test", "netns_churn"],
        }
    }

    /// Compiles the tests, and for those in namespaces the agent that they run.
    pub(super) fn build(self, scratch: &Scratch, object: Option<&Path>) -> Result<Build> {
        let with_object = |mut command: Command| {
            // The same for every suite of a run: else the agent would be built again for each that thinks otherwise.
            if let Some(object) = object {
                command.env(build::OBJECT_VARIABLE, object);
            }
            command
        };
        if self.runs_agent() {
            let mut command = with_object(cargo(scratch));
            command.args(["build", "--quiet", "-p", "netpol-agent", "-p", "netpol-tests", "--bins"]);
            if let Err(why) = captured(&mut command)? {
                return Ok(Build::Failed(why));
            }
        }
        let mut command = with_object(cargo(scratch));
        command.args(["test", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]);
        command.args(self.arguments());
        Ok(match captured(&mut command)? {
            Ok(messages) => Build::Done(messages.lines().filter_map(program).collect()),
            Err(why) => Build::Failed(why),
        })
    }

    /// The test whose parts are scenes, where it is these that count.
    const fn player(self) -> Option<&'static str> {
        match self {
            Self::Decision => Some(SCENES),
            Self::Packet => Some(SCENES_IN_KERNEL),
            Self::Common | Self::Abi | Self::Agent | Self::AgentKernel | Self::Semantics | Self::Property => None,
            Self::PacketWhole | Self::Budgets | Self::NetnsShop | Self::NetnsChurn => None,
        }
    }

    /// Runs these tests and no others, under the fault of this number if it is one of those that the programs have inside.
    pub(super) fn run(
        self,
        scratch: &Scratch,
        programs: &[Program],
        number: Option<u32>,
        tests: &[&str],
    ) -> Result<Results> {
        let mut results = Results { by_test: BTreeMap::new(), output: String::new() };
        let player = self.player().filter(|_| self.guard().is_none_or(|guard| tests != [guard]));
        for Program { executable, directory } in programs {
            let mut command = self.as_user(executable);
            command.current_dir(directory).args(["--exact", "--test-threads", "2"]);
            match player {
                Some(player) => command.arg(player).env(SCENES_VARIABLE, tests.join(",")),
                None => command.args(tests),
            };
            match number {
                Some(number) => command.env(switch::VARIABLE, number.to_string()),
                None => command.env_remove(switch::VARIABLE),
            };
            // Random tests look at the same cases each time, and need not find the smallest that fails.
            command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_MAX_SHRINK_ITERS", "0");
            // A test that is skipped judges nothing: under CI it fails, and one that fails without a fault ends the run.
            command.env("CI", "true").env(build::OBJECT_VARIABLE, object_of(scratch)).env_remove("NETPOL_AGENT");
            let output = limited(&mut command)?;
            results.by_test.extend(output.lines().filter_map(result));
            if let Some(played) = player.and_then(|player| results.by_test.remove(player)) {
                results.by_test.extend(tests.iter().map(|scene| ((*scene).to_owned(), played)));
            }
            results.output.push_str(&end_of(&output));
        }
        Ok(results)
    }

    fn as_user(self, executable: &Path) -> Command {
        if !self.needs_kernel() || shell::is_root() {
            return Command::new(executable);
        }
        let mut command = Command::new("sudo");
        command.arg("-E").arg(executable);
        command
    }
}

/// Compiles the BPF object of the copy; the compiler's words if it does not.
pub(super) fn build_object(scratch: &Scratch) -> Result<Result<PathBuf, String>> {
    // The copy's own command, as it knows the way there.
    let mut command = cargo(scratch);
    command.args(["run", "--quiet", "-p", "xtask", "--", "build-ebpf"]);
    Ok(captured(&mut command)?.map(|_| object_of(scratch)))
}

/// The BPF object of the copy.
fn object_of(scratch: &Scratch) -> PathBuf {
    scratch.target().join("bpf").join("netpol")
}

fn cargo(scratch: &Scratch) -> Command {
    let mut command = shell::cargo();
    command.current_dir(scratch.tree()).env("CARGO_TARGET_DIR", scratch.target());
    // Small changes, one after the other, and nobody looks at line numbers.
    command.env("CARGO_INCREMENTAL", "1").env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_TERM_COLOR", "never");
    command
}

/// What a command printed, or what it said when it failed.
fn captured(command: &mut Command) -> Result<Result<String, String>> {
    let line = shell::line_of(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {line}"))?;
    if output.status.success() {
        return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // A fault leaves variables unused; the error is what counts.
    let error = said
        .match_indices("error")
        .map(|(at, _)| at)
        .find(|at| said.get(..*at).is_none_or(|it| it.is_empty() || it.ends_with('\n')));
    let lines = said.get(error.unwrap_or(0)..).unwrap_or_default().lines().take(SHOWN_LINES);
    Ok(Err(format!("{line}: {}\n{}", output.status, indented(lines))))
}

/// Everything a test program printed, or an error if it does not end.
fn limited(command: &mut Command) -> Result<String> {
    let line = shell::line_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {line}"))?;
    let mut stdout = child.stdout.take().context("the output is a pipe")?;
    let mut stderr = child.stderr.take().context("the output is a pipe")?;
    let read = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_length| bytes)
    });
    let read_errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_length| bytes)
    });
    let ended = wait(&mut child)?;
    if !ended {
        child.kill()?;
        child.wait()?;
        return Ok(format!("it did not end within {LIMIT:?}"));
    }
    let mut text = String::new();
    for thread in [read, read_errors] {
        let Ok(bytes) = thread.join() else { bail!("{line}: its output could not be read") };
        text.push_str(&String::from_utf8_lossy(&bytes?));
    }
    Ok(text)
}

fn wait(child: &mut Child) -> Result<bool> {
    let deadline = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Reads `{"reason":"compiler-artifact",...,"executable":"..."}`.
fn program(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message.pointer("/profile/test")?.as_bool()?;
    let executable = PathBuf::from(message.get("executable")?.as_str()?);
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    is_test.then_some(Program { executable, directory: manifest.parent()?.to_owned() })
}

/// Reads `test name ... ok` and `test name ... FAILED`. With more than one thread the two halves stay on one line.
fn result(line: &str) -> Option<(String, Ran)> {
    let (name, ending) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let ran = match ending {
        "ok" => Ran::Passed,
        "FAILED" => Ran::Failed,
        _ => return None,
    };
    Some((name.trim_end_matches(" - should panic").to_owned(), ran))
}

fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    indented(lines.into_iter().skip(from))
}

fn indented<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_and_other_lines_are_not() {
        assert_eq!(result("test a::b ... ok"), Some(("a::b".to_owned(), Ran::Passed)));
        assert_eq!(result("test a::b - should panic ... FAILED"), Some(("a::b".to_owned(), Ran::Failed)));
        assert_eq!(result("test result: ok. 1 passed; 0 failed"), None);
        assert_eq!(result("test a::b has been running for over 60 seconds"), None);
    }

    #[test]
    fn only_test_programs_are_run() {
        let artifact = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/p/Cargo.toml","profile":{{"test":{test}}},"executable":"/w/t"}}"#
            )
        };
        assert_eq!(program(&artifact(true)).map(|it| it.directory), Some("/w/p".into()));
        assert!(program(&artifact(false)).is_none());
        assert!(program(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
