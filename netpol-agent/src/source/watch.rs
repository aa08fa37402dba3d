//! Says when a directory of manifests may have changed. Nothing of what changed: the receiver reads it again.
//!
//! inotify tells at once; looking at the directory every two seconds finds what inotify cannot (the directory replaced or
//! missing for a while, a link's target written in place, network file systems, queue overruns). Ticks may be too many and
//! are never too few: one waits in the channel however long its receiver is busy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::directory::{Fingerprint, fingerprint};
use super::manifests::SourceError;

/// How patient a [`Watch`] is.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// A change is told once nothing happened for this long: an editor's write and rename are one change.
    pub quiet: Duration,
    /// It is told after this long at the latest, if things keep happening.
    pub patience: Duration,
    /// How often the directory is looked at without being told.
    pub rescan: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(50), patience: Duration::from_millis(500), rescan: Duration::from_secs(2) }
    }
}

/// A watch on a directory; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    ticks: mpsc::Receiver<()>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches `dir`. Begin before the first load, so that nothing happens unseen between the two.
    ///
    /// # Errors
    /// [`SourceError::Directory`] if there is no such directory, [`SourceError::NoRuntime`] outside tokio. A lack of
    /// inotify is no error: changes are then found by looking, and the log says so.
    pub fn new(dir: &Path, options: WatchOptions) -> Result<Self, SourceError> {
        let at = || dir.to_owned();
        let runtime = Handle::try_current().map_err(|_no_runtime| SourceError::NoRuntime { dir: at() })?;
        std::fs::read_dir(dir).map_err(|source| SourceError::Directory { dir: at(), source })?;
        let (sender, ticks) = mpsc::channel(1);
        let mut seen = Seen::new(at());
        seen.look();
        let task = runtime.spawn(run(seen, options, sender));
        Ok(Self { ticks, task })
    }

    /// Waits until the directory may have changed. Cancel safe. `None` if the watch has ended.
    pub async fn changed(&mut self) -> Option<()> {
        self.ticks.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut seen: Seen, options: WatchOptions, ticks: mpsc::Sender<()>) {
    let mut rescan = interval_at(Instant::now() + options.rescan, options.rescan);
    rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let told = Arc::clone(&seen.told);
    loop {
        let by_inotify = tokio::select! {
            () = ticks.closed() => return,
            () = told.notified() => true,
            _ = rescan.tick() => false,
        };
        if by_inotify {
            settle(&told, options).await;
        }
        // What inotify tells counts even if the stamps are the same: two writes can fall into one tick of the file
        // system's clock.
        let looked = tokio::task::spawn_blocking(move || {
            let differs = seen.look();
            (seen, differs)
        });
        let Ok((same, differs)) = looked.await else { return };
        seen = same;
        if by_inotify || differs {
            match ticks.try_send(()) {
                // A full channel holds a tick that the receiver has yet to act upon: it covers this change too.
                Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
                Err(mpsc::error::TrySendError::Closed(())) => return,
            }
        }
    }
}

/// Waits until nothing is told for a while, or patience ends.
async fn settle(told: &Notify, options: WatchOptions) {
    let deadline = Instant::now() + options.patience;
    while Instant::now() < deadline {
        if timeout(options.quiet, told.notified()).await.is_err() {
            return;
        }
    }
}

/// What was last seen of the directory, and the inotify watch on it.
struct Seen {
    dir: PathBuf,
    told: Arc<Notify>,
    fingerprint: Fingerprint,
    watcher: Option<RecommendedWatcher>,
}

impl Seen {
    fn new(dir: PathBuf) -> Self {
        Self { dir, told: Arc::new(Notify::new()), fingerprint: Fingerprint::default(), watcher: None }
    }

    /// Looks at the directory and says whether it differs from what was seen before. A directory that is another one
    /// than before gets a watch of its own.
    fn look(&mut self) -> bool {
        let mut now = fingerprint(&self.dir);
        if now.directory != self.fingerprint.directory {
            self.watcher = None;
            if now.directory.is_some() {
                self.watcher = self.inotify();
                // What happened before the watch stood is seen here.
                now = fingerprint(&self.dir);
            }
        }
        let differs = now != self.fingerprint;
        self.fingerprint = now;
        differs
    }

    fn inotify(&self) -> Option<RecommendedWatcher> {
        let told = Arc::clone(&self.told);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error (a queue overrun) may hide a change.
            if event.as_ref().map_or(true, |event| is_change(&event.kind)) {
                told.notify_one();
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watching {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "no inotify: changes are found every few seconds");
                None
            }
        }
    }
}

/// Opening and reading files are no changes; the reader itself causes them.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}
