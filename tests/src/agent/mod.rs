//! The real agent on a node of a [`Cluster`]: a child process in the node's namespace with exactly the capabilities it may have.
//!
//! In: manifests in the run's directory ([`Run::manifests`](crate::netns::run::Run::manifests)). Out: answers of the agent's
//! socket, and the lines it prints. Start at [`Agent::start`]; change manifests with ordinary files and call
//! [`Agent::sync`], which returns when they are enforced. The agent dies with the *thread* that started it, so that nothing
//! outlives a killed test. Must not know what policies mean.

pub mod confine;
mod lines;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};

pub use self::lines::Lines;
use crate::cluster::{Cluster, NodePlace};

/// Environment variable that names the agent's binary.
pub const BINARY_VARIABLE: &str = "NETPOL_AGENT";
/// Environment variable that names the binary of the agent with another ABI.
pub const NEXT_BINARY_VARIABLE: &str = "NETPOL_AGENT_NEXT";
/// How long the agent may take to load its programs and enforce the first manifests: a second on an idle machine, but
/// the verifier's work is the first to suffer on a busy one.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to enforce a change.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// In which form the agent prints drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object a line.
    #[default]
    Json,
}

/// How to start an agent.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Form of the drops.
    pub output: Output,
    /// The agent's node, which it is told then; else it runs on the first and takes every pod for one of its own.
    pub node: Option<String>,
    /// The API server that it follows; else the manifests of the run.
    pub kubeconfig: Option<PathBuf>,
    /// More arguments of `netpol-agent run`.
    pub arguments: Vec<String>,
    /// More environment, as a log filter.
    pub environment: Vec<(String, String)>,
    /// Which agent.
    pub version: Version,
}

/// Builds of the agent, which differ in how their maps are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The one that is shipped.
    #[default]
    This,
    /// One with another ABI, to upgrade to and downgrade from.
    Next,
}

impl Version {
    /// Its binary.
    ///
    /// # Errors
    /// If it is not there.
    pub fn binary(self) -> Result<PathBuf> {
        match self {
            Self::This => binary(),
            Self::Next => next_binary(),
        }
    }
}

/// What the agent says once all manifests are enforced.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Settled {
    /// True when everything read is in force.
    pub settled: bool,
    /// Grows with every change of the desired state.
    #[serde(default)]
    pub generation: u64,
    /// The pods of this node.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// What could not be taken as written.
    #[serde(default)]
    pub problems: Vec<Value>,
}

/// A pod as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Endpoint {
    /// `namespace/name`.
    pub pod: String,
    /// The pod's slot in the datapath.
    #[serde(default)]
    pub slot: u32,
    /// The node's end of its veth pair.
    #[serde(default)]
    pub interface: String,
    /// `enforced`, or why not.
    pub state: String,
}

/// Packets and bytes of one pod, direction and reason.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Counter {
    /// `namespace/name`.
    pub pod: String,
    /// `ingress` or `egress`, as the pod sees it.
    pub direction: String,
    /// Name of the reason.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A running agent; dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: PathBuf,
    stdout: Lines,
    stderr: Lines,
}

impl Agent {
    /// Starts the agent on the run's manifests and waits until they are enforced.
    ///
    /// # Errors
    /// If there is no binary, or it ends or stays silent; the message then holds what it printed last.
    pub fn start(cluster: &Cluster, options: &Options) -> Result<Self> {
        let mut agent = Self::spawn(cluster, options)?;
        agent.wait_until_ready()?;
        agent.check_confinement()?;
        Ok(agent)
    }

    /// Starts the agent and does not wait.
    ///
    /// # Errors
    /// If there is no binary or it cannot be run.
    pub fn spawn(cluster: &Cluster, options: &Options) -> Result<Self> {
        let binary = options.version.binary()?;
        let node = cluster.node(options.node.as_deref().unwrap_or(cluster.first_node()))?;
        let mut command = Command::new(&binary);
        command.arg("run");
        match &options.kubeconfig {
            Some(kubeconfig) => command.arg("--kubeconfig").arg(kubeconfig),
            None => command.arg("--manifests").arg(cluster.run().manifests()),
        };
        command.arg("--bpffs").arg(node.bpffs()).arg("--socket").arg(node.socket());
        command.arg("--state-dir").arg(node.socket().with_extension("attachments"));
        command.arg("--output").arg(if options.output == Output::Json { "json" } else { "text" });
        if let Some(name) = &options.node {
            command.arg("--node").arg(name);
        }
        command.args(&options.arguments).envs(options.environment.iter().map(|(name, value)| (name, value)));
        confine::confine(&mut command, Some(node.namespace()))?;
        Self::spawn_by(command, node.socket().to_owned())
    }

    /// Starts an agent by another command, whose process passes signals on and ends with it, and waits until all manifests
    /// are enforced. What it may do is for that command to see to.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_by(command: Command, socket: PathBuf) -> Result<Self> {
        let mut agent = Self::spawn_by(command, socket)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    fn spawn_by(mut command: Command, socket: PathBuf) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let stdout = Lines::read(child.stdout.take().context("the agent's output is a pipe")?);
        let stderr = Lines::read(child.stderr.take().context("the agent's errors are a pipe")?);
        Ok(Self { child, socket, stdout, stderr })
    }

    /// Has the agent read its manifests now, and waits until they are enforced.
    ///
    /// # Errors
    /// If it does not settle in time.
    pub fn sync(&self) -> Result<Settled> {
        let settled: Settled = serde_json::from_value(self.request(&json!({"request": "sync"}), SYNC_LIMIT)?)?;
        if !settled.settled {
            bail!("the agent did not settle: {settled:?}{}", self.last_words());
        }
        Ok(settled)
    }

    /// The agent's state, as it is.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<Value> {
        self.request(&json!({"request": "status"}), SYNC_LIMIT)
    }

    /// All counters that are not zero.
    ///
    /// # Errors
    /// If it does not answer, or in another form than agreed.
    pub fn counters(&self) -> Result<Vec<Counter>> {
        let mut answer = self.request(&json!({"request": "counters"}), SYNC_LIMIT)?;
        let counters = answer.get_mut("counters").map(Value::take).context("an answer without counters")?;
        Ok(serde_json::from_value(counters)?)
    }

    /// Sends one request and returns the answer.
    ///
    /// # Errors
    /// If there is no answer in time, or it is an error.
    pub fn request(&self, request: &Value, limit: Duration) -> Result<Value> {
        let answer =
            ask(&self.socket, request, limit).with_context(|| format!("request {request}{}", self.last_words()))?;
        match answer.get("error") {
            Some(error) => bail!("the agent answered {request} with {error}"),
            None => Ok(answer),
        }
    }

    /// The socket on which it serves flows.
    ///
    /// # Errors
    /// If its own socket has no name.
    pub fn flow_socket(&self) -> Result<PathBuf> {
        let stem = self.socket.file_stem().and_then(|stem| stem.to_str()).context("a socket without a name")?;
        Ok(self.socket.with_file_name(format!("{stem}-hubble.sock")))
    }

    /// What the agent printed: its drops.
    #[must_use]
    pub fn drops(&self) -> &Lines {
        &self.stdout
    }

    /// What the agent logged.
    #[must_use]
    pub fn log(&self) -> &Lines {
        &self.stderr
    }

    /// The agent's process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Asks the agent to end and waits for it.
    ///
    /// # Errors
    /// If it does not end in time (it is killed then).
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Kills the agent, as a crash would.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(self.pid(), signal)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("the agent did not end within {STOP_LIMIT:?} of {signal}{}", self.last_words())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                thread::sleep(Duration::from_millis(50));
                bail!("the agent ended at once with {status}{}", self.last_words());
            }
            if self.socket.exists() && self.sync().is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the agent is not ready after {START_LIMIT:?}{}", self.last_words());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The kernel's word on what the process may do: it must be the agreed set, neither more nor less.
    fn check_confinement(&self) -> Result<()> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let wanted = confine::expected_status();
        for (field, value) in wanted {
            let line = format!("{field}:\t{value}");
            if !status.lines().any(|it| it == line) {
                bail!("the agent runs with other privileges than agreed: no line {line:?} in {path}");
            }
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = self.stderr.last(15).join("\n    ");
        if log.is_empty() { String::new() } else { format!("; its last words:\n    {log}") }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.end(Signal::SIGTERM) {
            crate::netns::run::note(&format!("{error:#}"));
        }
    }
}

/// Runs `netpol-agent cleanup` on the node, with these arguments more.
///
/// # Errors
/// If it fails.
pub fn cleanup(node: &NodePlace, version: Version, arguments: &[PathBuf]) -> Result<()> {
    let mut command = Command::new(version.binary()?);
    command.arg("cleanup").arg("--bpffs").arg(node.bpffs()).arg("--socket").arg(node.socket());
    command.arg("--state-dir").arg(node.socket().with_extension("attachments")).args(arguments);
    confine::confine(&mut command, Some(node.namespace()))?;
    let output = command.output().context("cannot run the clean-up")?;
    ensure!(output.status.success(), "clean-up: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What `netpol-agent run --dry-run` says on a node of the run's manifests. It has no more privilege than it says it needs.
///
/// # Errors
/// If it fails.
pub fn dry_run(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binary()?);
    command.arg("run").arg("--dry-run").arg("--manifests").arg(cluster.run().manifests()).arg("--node").arg(node);
    command.args(arguments);
    confine::confine(&mut command, Some(cluster.node(node)?.namespace()))?;
    let output = command.output().context("cannot run the dry run")?;
    ensure!(output.status.success(), "dry run: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn ask(socket: &Path, request: &Value, limit: Duration) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot reach {}", socket.display()))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).with_context(|| format!("no answer within {limit:?}"))?;
    serde_json::from_str(&answer).with_context(|| format!("not JSON: {answer:?}"))
}

/// The agent's binary: `$NETPOL_AGENT`, or beside this program's own.
///
/// # Errors
/// If it is not there.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // A test lies in target/debug/deps, a program in target/debug.
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("netpol-agent"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!("no netpol-agent beside {}: run `cargo xtask build`, or set {BINARY_VARIABLE}", own.display())
    })
}

/// The binary of the agent with another ABI: `$NETPOL_AGENT_NEXT`, or where `cargo xtask build --next-abi` puts it.
fn next_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(NEXT_BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().map(|directory| directory.join("next-abi/netpol-agent")).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no next-abi/netpol-agent above {}: run `cargo xtask build --next-abi`, or set {NEXT_BINARY_VARIABLE}",
            own.display()
        )
    })
}
