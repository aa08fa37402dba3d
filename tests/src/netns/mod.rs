//! Network namespaces: make one, run code inside it, find it again by name.
//!
//! A [`Namespace`] is kept alive by a file under `/run/netns`, so that `ip netns exec NAME ...` works while it lives. Code
//! enters it on a thread of its own ([`Namespace::enter`]): a socket stays in the namespace in which it was made, so the
//! rest of the harness uses sockets from wherever it likes. Everything belongs to a [`run::Run`], which also removes what
//! a run that was killed left behind. Start at [`Namespace`]; must not know pods, policies or the agent.

pub mod links;
pub mod overlay;
pub mod run;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use self::run::Run;

/// Where `ip netns` looks for namespaces.
const NETNS_DIRECTORY: &str = "/run/netns";

/// A network namespace with a name that `ip netns` knows.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace of this run; its name is the run's id, a dash, and `label`.
    ///
    /// # Errors
    /// If the kernel refuses a namespace or the name is taken.
    pub fn create(run: &Run, label: &str) -> Result<Self> {
        let name = format!("{}-{label}", run.id());
        let path = path_of(&name);
        fs::create_dir_all(NETNS_DIRECTORY).with_context(|| format!("cannot make {NETNS_DIRECTORY}"))?;
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let made = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot bind the namespace to {}", path.display()))
        })?;
        if let Err(error) = made {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            return Err(error).context("cannot make a network namespace (this needs root)");
        }
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name, file })
    }

    /// The name for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace as a file descriptor, for `setns` and for moving links into it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The number that tells namespaces apart: that of `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// If the file cannot be asked.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Runs `f` inside the namespace, on a thread that ends with it.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            setns(self.fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the network namespace {}", self.name))?;
            Ok(f())
        })?
    }

    /// Writes kernel settings of the namespace: paths below `/proc/sys/net`.
    ///
    /// # Errors
    /// If a setting cannot be written.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            settings.iter().try_for_each(|(path, value)| {
                let path = Path::new("/proc/sys/net").join(path);
                fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
            })
        })?
    }

    /// Takes the name away; the namespace itself ends with its last socket and process.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(self) -> Result<()> {
        remove_named(&self.name)
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIRECTORY).join(name)
}

/// Unmounts and removes the namespace file `name`.
fn remove_named(name: &str) -> Result<()> {
    let path = path_of(name);
    // A file that a killed run had not mounted yet is no mount point: then there is nothing to unmount.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", path.display())),
    }
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Names under `/run/netns` that begin with `prefix`.
fn names_with(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIRECTORY) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(f).join()).map_err(|_panic| anyhow!("a thread in a network namespace panicked"))
}

#[cfg(test)]
mod tests;
