//! The copy of the tree that faults are put into: everything git knows or would add, and a target directory of its own.
//!
//! Files are written only where they differ, so that what was compiled in an earlier run still counts; and the first run
//! begins with what the checkout has compiled of its dependencies.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// The copy, and the lock on it.
pub(super) struct Scratch {
    directory: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Brings the copy up to date.
    pub(super) fn prepare() -> Result<Self> {
        let directory = shell::target().join("mutants");
        fs::create_dir_all(directory.join("tree")).with_context(|| format!("cannot make {}", directory.display()))?;
        let lock = File::create(directory.join("lock"))?;
        if lock.try_lock().is_err() {
            bail!("another run of `cargo xtask mutants` uses {}; wait for its end", directory.display());
        }
        let scratch = Self { directory, _lock: lock };
        if !scratch.target().exists() {
            scratch.borrow_dependencies(&shell::target())?;
        }
        scratch.follow(shell::root())?;
        Ok(scratch)
    }

    /// The copy.
    pub(super) fn tree(&self) -> PathBuf {
        self.directory.join("tree")
    }

    /// Where it is built.
    pub(super) fn target(&self) -> PathBuf {
        self.directory.join("target")
    }

    /// A file's text.
    pub(super) fn text(&self, file: &str) -> Result<String> {
        let path = self.tree().join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Puts another text in a file's place; dropping what is returned brings its own back.
    pub(super) fn put(&self, file: &str, faulty: &str) -> Result<Restored> {
        let restored = Restored { path: self.tree().join(file), text: self.text(file)? };
        fs::write(&restored.path, faulty).with_context(|| format!("cannot write {}", restored.path.display()))?;
        Ok(restored)
    }

    /// Copies what the checkout has compiled of other people's packages: minutes of work, and the same for every tree.
    /// Cargo looks at each copy as at its own, and builds what does not fit.
    fn borrow_dependencies(&self, from: &Path) -> Result<()> {
        // Made under another name first, as a run that is interrupted must not leave half of it for the next one.
        let unfinished = self.directory.join("target.unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        for part in ["debug/.fingerprint", "debug/build", "debug/deps"] {
            fs::create_dir_all(unfinished.join(part))?;
            let Ok(entries) = fs::read_dir(from.join(part)) else { continue };
            for entry in entries {
                let entry = entry?;
                if is_of_others(&entry.file_name().to_string_lossy(), part == "debug/deps") {
                    copy_with_times(&entry.path(), &unfinished.join(part).join(entry.file_name()))?;
                }
            }
        }
        fs::rename(&unfinished, self.target()).context("cannot begin a target directory")
    }

    fn follow(&self, root: &Path) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = shell::output(&mut git).context("the copy of the tree holds what git knows of")?;
        let names: BTreeSet<&str> = listed.split('\0').filter(|name| root.join(name).is_file()).collect();
        for name in &names {
            copy_if_different(&root.join(name), &self.tree().join(name))?;
        }
        remove_others(&self.tree(), &self.tree(), &names)
    }
}

/// A file of the copy that gets its text back.
pub(super) struct Restored {
    path: PathBuf,
    text: String,
}

impl Drop for Restored {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.text) {
            shell::say(&format!("cannot take the fault out of {} again: {error}", self.path.display()));
        }
    }
}

/// True for what a dependency was compiled to: not our own packages, no programs, no test programs.
fn is_of_others(name: &str, compiled: bool) -> bool {
    let ours = ["netpol", "libnetpol", "xtask"].iter().any(|own| name.starts_with(own));
    let kind = Path::new(name).extension().and_then(|it| it.to_str());
    !ours && (!compiled || matches!(kind, Some("rlib" | "rmeta" | "so" | "d")))
}

/// Cargo compares times to tell what is older than what it was made of.
fn copy_with_times(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_with_times(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    // A build that runs at this moment may replace files.
    let Ok(meta) = fs::metadata(from) else { return Ok(()) };
    if !meta.is_file() {
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let times = fs::FileTimes::new().set_modified(meta.modified()?).set_accessed(meta.accessed()?);
    File::options().write(true).open(to)?.set_times(times)?;
    Ok(())
}

fn copy_if_different(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    // With its permissions: some are programs.
    fs::copy(from, to).map(|_bytes| ()).with_context(|| format!("cannot write {}", to.display()))
}

fn remove_others(tree: &Path, directory: &Path, names: &BTreeSet<&str>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            remove_others(tree, &path, names)?;
            continue;
        }
        let name = path.strip_prefix(tree).unwrap_or(&path).to_string_lossy();
        // Cargo writes it, should it not be committed.
        if !names.contains(name.as_ref()) && name != "Cargo.lock" {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
