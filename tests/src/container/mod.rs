//! The agent in a container, as the kubelet and containerd would make it from the DaemonSet, run by runc.
//!
//! In: the image's root ([`root::Root`]), the DaemonSet ([`manifest::Settings`]) and a node of the harness. Out: programs of the
//! image that run with the manifest's capabilities, mounts, read-only root and seccomp profile, in the node's network
//! namespace. Host paths of the manifest lie below the run's directory. Start at [`Container::prepare`]. Must not know what
//! the programs do.

pub mod manifest;
pub mod root;
pub mod seccomp;

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::manifest::{Mount, Settings};
use self::root::Root;
use crate::agent::Agent;
use crate::cluster::{Cluster, NodePlace};

/// What `/proc` and `/sys` hide in a container, and what is read-only there: containerd's lists.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where the container sees the run's manifests, which takes the place of an API server.
const MANIFESTS: &str = "/etc/netpol/manifests";
/// Where the manifest has the agent's socket.
const SOCKET: &str = "/run/netpol/netpol.sock";

/// A container's surroundings on one node; each program runs in a new one of them.
#[derive(Debug)]
pub struct Container {
    directory: PathBuf,
    name: String,
    spec: Value,
    arguments: Vec<String>,
}

impl Container {
    /// Makes the host's directories and the runtime's configuration; `refuse` is refused by seccomp beyond the default.
    ///
    /// # Errors
    /// If a directory cannot be made, or the manifest has what the kubelet would refuse.
    pub fn prepare(cluster: &Cluster, root: &Root, settings: &Settings, refuse: &[&str]) -> Result<Self> {
        let node_name = cluster.first_node();
        let node = cluster.node(node_name)?;
        let directory = cluster.run().manifests().with_file_name("container");
        fs::create_dir_all(&directory)?;
        let mut mounts = standard_mounts();
        for mount in &settings.mounts {
            mounts.push(bind(&host_path(&directory, node, mount)?, mount));
        }
        let manifests = Mount { host: String::new(), inside: MANIFESTS.to_owned(), read_only: true, must_exist: true };
        mounts.push(bind(&cluster.run().manifests(), &manifests));
        let mut environment = root.environment().to_vec();
        environment.extend(settings.environment(node_name));
        let capabilities = settings.capabilities();
        let name = format!("{}-container", cluster.run().id());
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": root.directory(), "readonly": settings.read_only_root},
            "process": {
                "terminal": false, "cwd": "/", "user": {"uid": 0, "gid": 0}, "args": [], "env": environment,
                "noNewPrivileges": settings.no_new_privileges,
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "mounts": mounts,
            "linux": {
                "cgroupsPath": format!("/netpol-tests/{name}"),
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "network", "path": format!("/run/netns/{}", node.namespace().name())},
                ],
                "seccomp": seccomp::runtime_default(refuse),
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        });
        let arguments = settings.command(node_name);
        Ok(Self { directory, name, spec, arguments })
    }

    /// What the manifest runs.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Runs a program of the image to its end; `environment` is as `NAME=VALUE`.
    ///
    /// # Errors
    /// If the runtime cannot be run.
    pub fn run(&self, arguments: &[&str], environment: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command("once", arguments, environment)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input may be gone already.
            let _gone = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// Starts what the manifest runs, on the run's manifests and not on an API server, and waits until they are enforced.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_agent(&self) -> Result<Agent> {
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.extend(["--manifests", MANIFESTS, "--output", "json"]);
        let command = self.command("agent", &arguments, &[])?;
        Agent::start_by(command, host(&self.directory, SOCKET))
    }

    /// Runs a program in the container of the agent that was started, as `kubectl exec` does.
    ///
    /// # Errors
    /// If the runtime cannot be run.
    pub fn exec(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.runc();
        command.args(["exec", &self.id("agent")]).args(arguments).stdin(Stdio::null());
        command.output().context("cannot run runc")
    }

    /// The lines of `/proc/PID/status` of the agent that was started.
    ///
    /// # Errors
    /// If the runtime does not know it.
    pub fn agent_status(&self) -> Result<String> {
        let output = self.runc().args(["state", &self.id("agent")]).output().context("cannot run runc")?;
        ensure!(output.status.success(), "runc state: {}", String::from_utf8_lossy(&output.stderr));
        let state: Value = serde_json::from_slice(&output.stdout)?;
        let path = format!("/proc/{}/status", state.get("pid").and_then(Value::as_u64).context("a state without pid")?);
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }

    /// Where a path of the host that the manifest names lies here.
    #[must_use]
    pub fn host(&self, path: &str) -> PathBuf {
        host(&self.directory, path)
    }

    fn id(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.join("runc"));
        command
    }

    fn command(&self, role: &str, arguments: &[&str], environment: &[&str]) -> Result<Command> {
        let mut spec = self.spec.clone();
        let process =
            spec.get_mut("process").and_then(Value::as_object_mut).context("a specification without process")?;
        process.insert("args".to_owned(), json!(arguments));
        if let Some(list) = process.get_mut("env").and_then(Value::as_array_mut) {
            list.extend(environment.iter().map(|it| json!(it)));
        }
        let bundle = self.directory.join(role);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&spec)?)?;
        let mut command = self.runc();
        command.arg("run").arg("--bundle").arg(&bundle).arg(self.id(role)).process_group(0);
        // The runtime passes it on, so that no container outlives its test.
        let enter = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?);
        // SAFETY: one system call between fork and exec, without locks or allocation.
        #[expect(unsafe_code, reason = "the child must change before it becomes the runtime")]
        unsafe {
            command.pre_exec(enter);
        }
        Ok(command)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for role in ["agent", "once"] {
            // What ended is removed already; then there is nothing to remove, and nobody to tell.
            let _gone = self.runc().args(["delete", "--force", &self.id(role)]).stderr(Stdio::null()).status();
        }
    }
}

fn host(directory: &Path, path: &str) -> PathBuf {
    directory.join("host").join(path.trim_start_matches('/'))
}

fn host_path(directory: &Path, node: &NodePlace, mount: &Mount) -> Result<PathBuf> {
    if mount.host == "/sys/fs/bpf" {
        return Ok(node.bpffs().to_owned());
    }
    let path = host(directory, &mount.host);
    ensure!(!mount.must_exist || path.exists(), "the kubelet would refuse: the node has no {}", mount.host);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn bind(host: &Path, mount: &Mount) -> Value {
    let options = ["rbind", "rprivate", if mount.read_only { "ro" } else { "rw" }];
    json!({"destination": mount.inside, "type": "bind", "source": host, "options": options})
}

fn standard_mounts() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}
