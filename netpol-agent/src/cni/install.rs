//! Keeps our plugin and the configuration that calls it in the runtime's directories.
//!
//! In: the two directories, the agent's copy of the plugin, and what the plugin is to be told. Out: `netpol-cni` in the one
//! directory, [`conflist::FILE_NAME`] in the other, derived again whenever the configuration that it is made of changes;
//! a [`Problem`] for whatever keeps pods from coming to the plugin. Nothing of others is ever written. Start at
//! [`CniInstaller::start`].
//!
//! inotify tells of changes at once; looking every two seconds finds what it cannot (a directory that is made later).

mod files;
mod pass;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use self::pass::Pass;
use super::conflist::{AgentAbsent, Entry};
use crate::problem::Problem;

/// A change is acted upon once nothing happened for this long: whoever writes a configuration may do it in steps.
const QUIET: Duration = Duration::from_millis(50);
/// It is acted upon after this long at the latest.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the directories are looked at without being told.
const RESCAN: Duration = Duration::from_secs(2);

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// The runtime's directory of configurations (`--cni-conf-dir`), as the agent sees it.
    pub conf_dir: PathBuf,
    /// The runtime's directory of plugins (`--cni-bin-dir`), as the agent sees it.
    pub bin_dir: PathBuf,
    /// The agent's copy of the plugin. It runs on the host: it must not need libraries that the host may lack.
    pub plugin_binary: PathBuf,
    /// The agent's socket, as the host sees it.
    pub socket: PathBuf,
    /// What becomes of a pod's start while the agent does not answer.
    pub agent_absent: AgentAbsent,
    /// How long the plugin waits for the agent; none is the plugin's own choice.
    pub timeout_seconds: Option<u32>,
    /// Whether the plugin may look into a pod's network namespace.
    pub enter_namespace: bool,
}

impl InstallOptions {
    fn entry(&self) -> Entry<'_> {
        Entry {
            socket: &self.socket,
            agent_absent: self.agent_absent,
            timeout_seconds: self.timeout_seconds,
            enter_namespace: self.enter_namespace,
        }
    }
}

/// Plugin and configuration, kept in place; they stay when this is dropped ([`uninstall`] removes them).
#[derive(Debug)]
pub struct CniInstaller {
    problems: Vec<Problem>,
    found: watch::Receiver<Vec<Problem>>,
    task: JoinHandle<()>,
}

impl CniInstaller {
    /// Installs both and watches over them. Call it once the agent's socket is served: pods that start are sent there from
    /// now on. Never fails: what is wrong is in [`Self::problems`], and tried again.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(options: InstallOptions) -> Self {
        let mut pass = Pass::new(options);
        let mut watchers = Watchers::new(pass.directories());
        watchers.look();
        let problems = pass.run();
        let (sender, found) = watch::channel(problems.clone());
        let task = tokio::spawn(run(pass, watchers, sender));
        Self { problems, found, task }
    }

    /// Waits until [`Self::problems`] are others. Cancel safe. Never returns if they stay the same.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            // The task ends with the runtime or with us.
            std::future::pending::<()>().await;
        }
        self.found.borrow_and_update().clone_into(&mut self.problems);
    }

    /// Whatever keeps pods from coming to the plugin, as of the last [`Self::changed`].
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl Drop for CniInstaller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why something of ours cannot be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {}: {source}", path.display())]
pub struct UninstallError {
    /// What.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// Removes configuration and plugin, in this order, if they are there and ours; returns what was removed. Directories
/// that are not there hold nothing of ours.
///
/// # Errors
/// If something of ours cannot be removed.
pub fn uninstall(conf_dir: &Path, bin_dir: &Path) -> Result<Vec<PathBuf>, UninstallError> {
    let mut removed = Vec::new();
    for path in files::ours(conf_dir, bin_dir) {
        match std::fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(UninstallError { path, source }),
        }
    }
    Ok(removed)
}

async fn run(mut pass: Pass, mut watchers: Watchers, found: watch::Sender<Vec<Problem>>) {
    let mut rescan = interval_at(Instant::now() + RESCAN, RESCAN);
    rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let told = Arc::clone(&watchers.told);
    loop {
        tokio::select! {
            () = told.notified() => settle(&told).await,
            _ = rescan.tick() => {}
        }
        let done = tokio::task::spawn_blocking(move || {
            watchers.look();
            let problems = pass.run();
            (pass, watchers, problems)
        });
        let Ok((same_pass, same_watchers, problems)) = done.await else { return };
        (pass, watchers) = (same_pass, same_watchers);
        found.send_if_modified(|last| {
            let differs = *last != problems;
            *last = problems;
            differs
        });
    }
}

/// Waits until nothing is told for a while, or patience ends.
async fn settle(told: &Notify) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if timeout(QUIET, told.notified()).await.is_err() {
            return;
        }
    }
}

/// inotify on directories that may come, go, and come again as others.
struct Watchers {
    told: Arc<Notify>,
    directories: Vec<Watched>,
}

struct Watched {
    path: PathBuf,
    /// Device and inode of the directory that was there last.
    seen: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
}

impl Watchers {
    fn new(directories: [PathBuf; 2]) -> Self {
        let directories = directories.into_iter().map(|path| Watched { path, seen: None, watcher: None }).collect();
        Self { told: Arc::new(Notify::new()), directories }
    }

    /// Watches what is there. A directory that is another one than before gets a watch of its own.
    fn look(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        for Watched { path, seen, watcher } in &mut self.directories {
            let now = std::fs::metadata(&*path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
            if now != *seen {
                *seen = now;
                *watcher = now.and_then(|_is_there| inotify(path, &self.told));
            }
        }
    }
}

fn inotify(directory: &Path, told: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let told = Arc::clone(told);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error (a queue overrun) may hide a change.
        if event.as_ref().map_or(true, |event| is_change(&event.kind)) {
            told.notify_one();
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            tracing::warn!(directory = %directory.display(), %error, "no inotify: changes are found every few seconds");
        })
        .ok()
}

/// Opening and reading files are no changes; the reader itself causes them.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests;
