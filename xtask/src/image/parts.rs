//! Which crates are in the image, as cargo says it: the packages linked into the programs and into the BPF object.
//!
//! In: the workspace and a target. Out: [`Parts`], of which `sbom` makes a list and `licences` a book. Crates that only build
//! (macros, build scripts, tests) are not among them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::arch::Arch;
use crate::shell;

/// What is shipped, and for which target: the programs, and the object inside one of them.
pub(super) const BPF: (&str, &str) = ("netpol-ebpf", "bpfel-unknown-none");
pub(super) const PROGRAMS: &str = "netpol-agent";

/// Name and version.
pub(super) type Crate = (String, String);

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) resolve: Resolve,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    pub(super) repository: Option<String>,
    /// None for a crate of the workspace.
    pub(super) source: Option<String>,
    pub(super) manifest_path: PathBuf,
}

#[derive(Deserialize)]
pub(super) struct Resolve {
    pub(super) nodes: Vec<Node>,
}

#[derive(Deserialize)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) deps: Vec<Dependency>,
}

#[derive(Deserialize)]
pub(super) struct Dependency {
    pub(super) pkg: String,
    pub(super) dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
pub(super) struct Kind {
    /// None for an ordinary one.
    pub(super) kind: Option<String>,
}

/// What cargo says of an image's crates.
pub(super) struct Parts {
    metadata: Metadata,
    linked: BTreeSet<Crate>,
}

impl Parts {
    /// Asks cargo.
    ///
    /// # Errors
    /// If it does not tell, or tells of other crates than it links.
    pub(super) fn of(arch: Arch) -> Result<Self> {
        let mut linked = crates_of(PROGRAMS, arch.target())?;
        let (package, target) = BPF;
        linked.extend(crates_of(package, target)?);
        let mut cargo = shell::cargo();
        let metadata = shell::output(cargo.args(["metadata", "--locked", "--format-version", "1"]))?;
        let metadata = serde_json::from_str(&metadata).context("what cargo says of the workspace")?;
        let parts = Self { metadata, linked };
        ensure!(parts.packages().len() == parts.linked.len(), "cargo tells of other crates than it links");
        Ok(parts)
    }

    /// The linked packages, by name and version; the workspace's own among them.
    pub(super) fn packages(&self) -> Vec<&Package> {
        let is_linked = |it: &&Package| self.linked.contains(&(it.name.clone(), it.version.clone()));
        let mut packages: Vec<&Package> = self.metadata.packages.iter().filter(is_linked).collect();
        packages.sort_by_key(|package| (&package.name, &package.version));
        packages
    }

    /// Which packages want which, of the whole workspace.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.metadata.resolve.nodes
    }
}

/// Crates that are linked into a package's programs, its own included.
fn crates_of(package: &str, target: &str) -> Result<BTreeSet<Crate>> {
    let mut cargo = shell::cargo();
    cargo.args(["tree", "--locked", "--package", package, "--target", target, "--edges", "normal,no-proc-macro"]);
    let tree = shell::output(cargo.args(["--prefix", "none", "--format", "{p}"]))?;
    let crates: BTreeSet<Crate> = tree.lines().filter_map(crate_of).collect();
    ensure!(crates.iter().any(|(name, _)| name == package), "cargo does not say what is in {package}");
    Ok(crates)
}

/// Reads `serde v1.0.229 (*)`.
fn crate_of(line: &str) -> Option<Crate> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let version = words.next()?.strip_prefix('v')?;
    Some((name.to_owned(), version.to_owned()))
}
