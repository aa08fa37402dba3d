//! A run of the harness: its directory, its BPF file system, and the removal of everything it made.
//!
//! `/run/netpol-tests/<id>` holds a lock for as long as the process lives, so that the next run can tell a directory in
//! use from one whose owner was killed, and sweeps the latter. Everything that a run makes is found again from its id
//! alone: namespaces by name, the BPF file system by path, agents by their network namespace. So an orderly end, Ctrl-C
//! and the sweep after a crash are one function, `remove_traces`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::{names_with, path_of, remove_named};

const RUNS: &str = "/run/netpol-tests";
/// Every id begins so: nothing else under `/run/netns` is ever touched.
const PREFIX: &str = "netpol";
/// How long an agent may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Ids of this process's runs, for the signal handler.
static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// One run; dropping it removes everything it made.
#[derive(Debug)]
pub struct Run {
    id: String,
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Run {
    /// Sweeps what killed runs left, and starts a new one with a BPF file system of its own.
    ///
    /// # Errors
    /// Without root, or if the directory or the mount cannot be made.
    pub fn start() -> Result<Self> {
        require_root()?;
        sweep();
        let (id, directory, lock) = claim_directory()?;
        live().insert(id.clone());
        let run = Self { id, directory, _lock: lock };
        fs::create_dir(run.bpffs())?;
        mount(Some("bpf"), &run.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a BPF file system")?;
        fs::create_dir(run.manifests())?;
        Ok(run)
    }

    /// Begins every name the run makes.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run's BPF file system.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// The agent's manifests: a copy, so that a test can change them, and readable whoever owns the sources.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// Writes a manifest, in one step: no reader ever sees half of it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put_manifest(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.manifests().with_extension("new");
        fs::write(&staged, text)?;
        fs::rename(&staged, self.manifests().join(name)).with_context(|| format!("cannot write {name}"))
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove_manifest(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(name)).with_context(|| format!("cannot remove {name}"))
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Under the lock: a signal that comes now waits for the end of this instead of ending the process in its midst.
        let mut live = live();
        report(&self.id, remove_traces(&self.id));
        live.remove(&self.id);
    }
}

/// Says so, if this is not root.
///
/// # Errors
/// If it is not.
pub fn require_root() -> Result<()> {
    anyhow::ensure!(geteuid().is_root(), "network namespaces and BPF need root: run this with sudo");
    Ok(())
}

/// Removes everything of this process's runs and ends it: what a signal does.
pub fn remove_all_and_exit(status: i32) -> ! {
    let live = live();
    for id in &*live {
        report(id, remove_traces(id));
    }
    // Still under the lock, so that no other thread starts to remove or to make anything.
    std::process::exit(status)
}

/// Removes what runs left whose process is gone.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(RUNS) else { return };
    for entry in entries.flatten() {
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            // No lock yet: being made this moment, or its owner died within microseconds. Age tells.
            if age(&entry.path()) > Duration::from_secs(60) {
                sweep_one(&entry);
            }
            continue;
        };
        if Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok() {
            sweep_one(&entry);
        }
    }
}

fn sweep_one(entry: &fs::DirEntry) {
    if let Ok(id) = entry.file_name().into_string()
        && id.starts_with(PREFIX)
    {
        report(&id, remove_traces(&id));
    }
}

fn age(path: &Path) -> Duration {
    fs::metadata(path).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok()).unwrap_or_default()
}

fn live() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory gets its name when it is locked: one that had the name before would be swept by a run that starts meanwhile.
fn claim_directory() -> Result<(String, PathBuf, Flock<File>)> {
    fs::create_dir_all(RUNS).with_context(|| format!("cannot make {RUNS}"))?;
    for serial in 0_u32.. {
        let id = format!("{PREFIX}{:x}-{serial}", std::process::id());
        let (claim, directory) = (Path::new(RUNS).join(format!("claim-{id}")), Path::new(RUNS).join(&id));
        match fs::create_dir(&claim) {
            Ok(()) => {}
            // Another thread is at this number.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", claim.display())),
        }
        let lock = File::create(claim.join("lock")).context("cannot make the lock of the run")?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_file, errno)| errno)
            .context("cannot lock the directory of the run")?;
        // Onto a directory with files in it this fails.
        if fs::rename(&claim, &directory).is_ok() {
            return Ok((id, directory, lock));
        }
        fs::remove_dir_all(&claim).with_context(|| format!("cannot remove {}", claim.display()))?;
    }
    anyhow::bail!("no free directory under {RUNS}")
}

/// Ends the run's agents and removes its namespaces, mounts and files. Goes on after an error and returns the first.
fn remove_traces(id: &str) -> Result<()> {
    let directory = Path::new(RUNS).join(id);
    let namespaces = names_with(&format!("{id}-"));
    let mut first = end_agents(&namespaces);
    for name in &namespaces {
        first = first.and(remove_named(name));
    }
    match umount2(&directory.join("bpf"), MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => first = first.and(Err(error).context("cannot unmount the BPF file system")),
    }
    match fs::remove_dir_all(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => first = first.and(Err(error).with_context(|| format!("cannot remove {}", directory.display()))),
    }
    first
}

/// Ends processes named `netpol-agent` that run in one of these namespaces: those of a killed run.
fn end_agents(namespaces: &[String]) -> Result<()> {
    let inodes: BTreeSet<u64> =
        namespaces.iter().filter_map(|name| fs::metadata(path_of(name)).ok()).map(|meta| meta.ino()).collect();
    let agents = || -> Vec<Pid> { agents_in(&inodes) };
    let deadline = Instant::now() + GRACE;
    for pid in agents() {
        kill(pid, Signal::SIGTERM).or_else(gone_is_fine)?;
    }
    while Instant::now() < deadline && !agents().is_empty() {
        thread::sleep(Duration::from_millis(10));
    }
    for pid in agents() {
        kill(pid, Signal::SIGKILL).or_else(gone_is_fine)?;
    }
    Ok(())
}

fn gone_is_fine(error: Errno) -> Result<(), Errno> {
    if error == Errno::ESRCH { Ok(()) } else { Err(error) }
}

fn agents_in(inodes: &BTreeSet<u64>) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let process = Path::new("/proc").join(pid.to_string());
            // A zombie has no namespace any more, so a child that nobody waits for does not count.
            fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == "netpol-agent")
                && fs::metadata(process.join("ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino()))
        })
        .map(Pid::from_raw)
        .collect()
}

fn report(id: &str, result: Result<()>) {
    if let Err(error) = result {
        note(&format!("could not remove all of the run {id}: {error:#}"));
    }
}

/// Says something on standard error that must not be lost, where no caller is left to tell.
#[expect(clippy::print_stderr, reason = "drops and signal handlers have nobody else to tell")]
pub fn note(text: &str) {
    eprintln!("error: {text}");
}
