//! The whole build once more, where nothing is as it was: from a copy of the sources, in another directory, with nothing
//! built yet, not even these commands.
//!
//! In: the bytes of the first archive. Out: whether the second has the same. What remains the same is the toolchain, which
//! is part of what an image is made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::arch::Arch;
use super::archive::Digest;
use super::reference::Reference;
use super::stamp::{self, Stamp};
use crate::shell;

/// Builds again and compares. Removes the copy if the archives are the same.
///
/// # Errors
/// If the second build fails.
pub(super) fn check(arch: Arch, tag: &Reference, stamp: &Stamp, first: &[u8]) -> Result<bool> {
    let place = shell::target().join("image-again");
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    let copy = place.join("sources-of-another-length");
    shell::say(&format!("copying the sources to {}", copy.display()));
    copy_sources(&copy)?;
    let archive = place.join("again.tar");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&copy).args(["xtask", "image", "--arch", arch.of_oci(), "--tag", &tag.short(), "--out"]);
    // Nothing of this build's is to be found, and what the first knew from git the copy is told.
    cargo.arg(&archive).env("CARGO_TARGET_DIR", copy.join("target"));
    cargo.env(stamp::EPOCH_VARIABLE, stamp.seconds.to_string());
    cargo.env(stamp::REVISION_VARIABLE, stamp.revision.as_deref().unwrap_or_default());
    for name in ["CARGO", "RUSTC", "CARGO_MANIFEST_DIR", "OUT_DIR"] {
        cargo.env_remove(name);
    }
    shell::run(&mut cargo)?;
    let second = fs::read(&archive).with_context(|| format!("the second build left no {}", archive.display()))?;
    if first == second {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
        shell::say("reproducible: the second build has the same bytes");
        return Ok(true);
    }
    shell::say(&format!(
        "NOT reproducible: the second build, {}, is {} and not {}",
        archive.display(),
        Digest::of(&second).as_str(),
        Digest::of(first).as_str()
    ));
    Ok(false)
}

/// What git knows, as it is now: changes that are not committed included.
fn copy_sources(to: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(shell::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = shell::output(&mut git).context("which files are sources is git's to say")?;
    let files: Vec<PathBuf> = list.split('\0').filter(|it| !it.is_empty()).map(PathBuf::from).collect();
    ensure!(!files.is_empty(), "git knows no files here");
    for file in files {
        let (from, to) = (shell::root().join(&file), to.join(&file));
        // A file that was removed and whose removal is not committed.
        if !from.exists() {
            continue;
        }
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}
