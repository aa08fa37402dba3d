//! Where everything of ours is pinned: one directory, `<bpffs>/netpol/{maps,links}`, and the lock on it.
//!
//! In: the mount point of a BPF file system. Out: a [`PinDir`], locked for the life of the value, or why not. It holds
//! every name of ours in the file system, so that clean-up is the removal of what is below. It never looks into a map.
//!
//! The pin of a map is named `NAME-v<layout>`: versions of the agent share the maps whose layout they agree on. The pin of a
//! link is named `<ifindex>-<program>`, whichever version's program it runs.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use netpol_common::abi::{Hook, layout, program};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Directory below the mount point that holds everything of ours, of every version.
const ROOT: &str = "netpol";
/// File name suffix of [`PinDir::clsact_mark`].
const CLSACT: &str = "clsact";
/// Between name and layout version of a map's pin; kernel: a name in a BPF file system may have no dot.
const LAYOUT: &str = "-v";
/// Begins the file name of a pin that was set aside.
const ASIDE: &str = "elsewhere-";

/// Why the pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Nothing, or another file system, is at the given path.
    #[error(
        "{path} is not a BPF file system: {found}; mount one on the host with `mount -t bpf bpf {path}` or name another \
         with --bpffs"
    )]
    NotBpffs {
        /// The path given.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another agent holds the lock.
    #[error(
        "another netpol-agent uses {path}; stop it first, or give this one a BPF file system of its own with --bpffs"
    )]
    Locked {
        /// The locked directory.
        path: PathBuf,
    },
    /// An operation in the directory failed.
    #[error(
        "cannot {operation} {path}: {source}; the agent needs to own this directory and a writable BPF file system"
    )]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl PinError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}

/// The pin directory. Cheap to clone; holds no lock itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

/// The pin of a map that is not of this version's layout, or of a map that this version has not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherLayout {
    /// Name of the map.
    pub name: String,
    /// Its layout version.
    pub layout: u32,
    /// The pin.
    pub path: PathBuf,
}

/// The lock on a [`PinDir`]; released when dropped and when the process ends, however it ends.
#[derive(Debug)]
pub struct PinLock {
    directory: File,
}

impl Drop for PinLock {
    fn drop(&mut self) {
        // Closing is not enough while a child process that is about to exec still shares the descriptor.
        if let Err(error) = self.directory.unlock() {
            tracing::warn!(%error, "cannot release the lock of the pin directory");
        }
    }
}

impl PinDir {
    /// The pin directory below `bpffs`, created if missing.
    ///
    /// # Errors
    /// If `bpffs` is not a BPF file system or directories cannot be made there.
    pub fn create(bpffs: &Path) -> Result<Self, PinError> {
        let dir = Self::at(bpffs)?;
        for path in [&dir.root, &dir.maps(), &dir.links()] {
            match DirBuilder::new().mode(0o700).create(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(PinError::io("create", path)(error)),
            }
        }
        Ok(dir)
    }

    /// The pin directory below `bpffs`, which may not exist: for readers and for clean-up.
    ///
    /// # Errors
    /// If `bpffs` is not a BPF file system.
    pub fn at(bpffs: &Path) -> Result<Self, PinError> {
        let not_bpffs = |found: String| PinError::NotBpffs { path: bpffs.to_owned(), found };
        let kind = statfs(bpffs).map_err(|error| not_bpffs(error.to_string()))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(not_bpffs(format!("it is a file system of type {:#x}", kind.0)));
        }
        Ok(Self { root: bpffs.join(ROOT) })
    }

    /// Takes the lock that keeps two agents from working on the same pins, whatever their versions.
    ///
    /// # Errors
    /// [`PinError::Locked`] if another process holds it.
    pub fn lock(&self) -> Result<PinLock, PinError> {
        // A BPF file system has no ordinary files to lock, but flock(2) works on its directories.
        let directory = File::open(&self.root).map_err(PinError::io("open", &self.root))?;
        match directory.try_lock() {
            Ok(()) => Ok(PinLock { directory }),
            Err(TryLockError::WouldBlock) => Err(PinError::Locked { path: self.root.clone() }),
            Err(TryLockError::Error(error)) => Err(PinError::io("lock", &self.root)(error)),
        }
    }

    /// The lock, if there is anything to lock.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_if_present(&self) -> Result<Option<PinLock>, PinError> {
        if self.root.exists() { self.lock().map(Some) } else { Ok(None) }
    }

    /// Directory of the map pins.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Pin of one map in the layout of this version.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(format!("{name}{LAYOUT}{}", layout(name)))
    }

    /// Pins of maps that are not among `names` in this version's layout: an older or newer agent made them.
    ///
    /// # Errors
    /// If the directory cannot be read; a missing one holds nothing.
    pub fn other_layouts(&self, names: &BTreeSet<&str>) -> Result<BTreeSet<OtherLayout>, PinError> {
        let other = |file: &str| {
            let (name, number) = file.rsplit_once(LAYOUT)?;
            let number: u32 = number.parse().ok()?;
            let path = self.maps().join(file);
            let is_ours = names.contains(name) && layout(name) == number;
            (!is_ours).then(|| OtherLayout { name: name.to_owned(), layout: number, path })
        };
        Ok(list(&self.maps())?.iter().filter_map(|file| other(file)).collect())
    }

    /// Directory of the link pins.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Pin of the TCX link at one hook of one interface.
    #[must_use]
    pub fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", program_name(hook)))
    }

    /// Where the pin of a link goes whose interface is in another network namespace: see [`Self::set_aside`].
    fn aside(&self, ifindex: u32, hook: Hook, link: u32) -> PathBuf {
        self.links().join(format!("{ASIDE}{ifindex}-{}-{link}", program_name(hook)))
    }

    /// Marks an interface whose clsact qdisc is of our making: a pin of a small map, as a BPF file system holds no files.
    #[must_use]
    pub fn clsact_mark(&self, ifindex: u32) -> PathBuf {
        self.links().join(format!("{ifindex}-{CLSACT}"))
    }

    /// Interfaces of which anything is pinned. Names that are not ours are left alone.
    ///
    /// # Errors
    /// If the directory cannot be read; a missing one holds nothing.
    pub fn interfaces(&self) -> Result<BTreeSet<u32>, PinError> {
        Ok(list(&self.links())?.iter().filter_map(|file| interface_of(file)).collect())
    }

    /// Pins that [`Self::set_aside`] made.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn set_aside_earlier(&self) -> Result<Vec<PathBuf>, PinError> {
        let files = list(&self.links())?;
        Ok(files.iter().filter(|file| file.starts_with(ASIDE)).map(|file| self.links().join(file)).collect())
    }

    /// Gives the pin of a link another name, so that the link lives on where it is and the name is free.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_aside(&self, ifindex: u32, hook: Hook, link: u32) -> Result<(), PinError> {
        let pin = self.link(ifindex, hook);
        fs::rename(&pin, self.aside(ifindex, hook, link)).map_err(PinError::io("rename", &pin))
    }

    /// Removes one pin; absent is fine. With the pin of a link goes the link, unless somebody else holds it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self, pin: &Path) -> Result<(), PinError> {
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io("remove", pin)(error)),
            _ => Ok(()),
        }
    }

    /// Removes every pin of ours, of every version, links (the hooks) first. Absent is fine.
    ///
    /// # Errors
    /// The first removal that failed.
    pub fn remove_all(&self) -> Result<(), PinError> {
        remove_tree(&self.links())?;
        remove_tree(&self.root)
    }
}

/// Names in a directory; a missing one holds nothing, and names that are no text are not ours.
fn list(directory: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PinError::io("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(PinError::io("list", directory))?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}

fn remove_tree(directory: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// The program that runs at a hook.
#[must_use]
pub const fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => program::FROM_POD,
        Hook::ToPod => program::TO_POD,
        Hook::ToUplink => program::TO_UPLINK,
    }
}

fn interface_of(pin: &str) -> Option<u32> {
    let (ifindex, what) = pin.split_once('-')?;
    [program::FROM_POD, program::TO_POD, program::TO_UPLINK, CLSACT]
        .contains(&what)
        .then(|| ifindex.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests;
