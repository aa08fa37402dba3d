//! Everything that netpol may leave on a node, as a list of lines: what is compared before an installation and after the
//! clean-up.
//!
//! In: a namespace and directories. Out: a line each for links, what is attached to them, nftables' rules, pinned objects and
//! files with their content. Lines are sorted and say nothing that changes by itself (counters, times). Start at
//! [`Footprint::of`].

mod maps;
mod tcx;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use self::maps::entries;
use crate::netns::Namespace;

/// What is on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Lists a node: what is in its namespace, and in these directories (its BPF file system, CNI's directories, `/run`).
    ///
    /// # Errors
    /// If a program (`ip`, `tc`, `nft`) is missing or fails, or a directory cannot be read.
    pub fn of(namespace: &Namespace, directories: &[PathBuf]) -> Result<Self> {
        let mut lines = BTreeSet::new();
        let links = output(namespace, "ip", &["-j", "-d", "link", "show"])?;
        for link in serde_json::from_str::<Vec<Value>>(&links).context("what ip prints")? {
            let text = |at: &str| link.pointer(at).and_then(Value::as_str).unwrap_or_default();
            let name = text("/ifname");
            lines.insert(format!("link {name} {} {}", text("/address"), text("/linkinfo/info_kind")));
            for (what, arguments) in [
                ("qdisc", &["qdisc", "show", "dev", name][..]),
                ("filter ingress", &["filter", "show", "dev", name, "ingress"]),
                ("filter egress", &["filter", "show", "dev", name, "egress"]),
            ] {
                let listed = output(namespace, "tc", arguments)?;
                lines.extend(listed.lines().map(|line| format!("{what} {name}: {line}")));
            }
            let index = link.get("ifindex").and_then(Value::as_u64).context("a link has an index")?;
            let programs = namespace.enter(|| tcx::programs(u32::try_from(index)?))??;
            lines.extend(programs.into_iter().map(|hook| format!("tcx {name}: {hook}")));
        }
        lines.extend(output(namespace, "nft", &["-s", "list", "ruleset"])?.lines().map(|line| format!("nft {line}")));
        for directory in directories {
            walk(directory, &mut lines)?;
        }
        Ok(Self(lines))
    }

    /// What is there and was not `before` (`+`), and what was and is no more (`-`).
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let more = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        more.chain(before.0.difference(&self.0).map(|line| format!("- {line}"))).collect()
    }

    /// Lines that contain a text.
    pub fn lines_with<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(String::as_str).filter(move |line| line.contains(text))
    }
}

fn output(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    let output = namespace.enter(|| Command::new(program).args(arguments).output())?;
    let output = output.with_context(|| format!("cannot run {program}"))?;
    // A device without the qdisc has no hook, and `tc` says so by failing.
    let is_no_hook = program == "tc" && arguments.first() == Some(&"filter");
    ensure!(
        output.status.success() || is_no_hook,
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every file below, with kind, mode and a hash of what is in it.
fn walk(path: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    let shown = path.display();
    let mode = metadata.mode() & 0o7777;
    let kind = metadata.file_type();
    if kind.is_dir() {
        lines.insert(format!("directory {shown} {mode:o}"));
        let mut entries = fs::read_dir(path).with_context(|| format!("cannot list {shown}"))?;
        return entries.try_for_each(|entry| walk(&entry?.path(), lines));
    }
    let what = if kind.is_symlink() {
        format!("link to {}", fs::read_link(path)?.display())
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        // A pinned object cannot be read; that it is there is enough.
        let mut hasher = DefaultHasher::new();
        fs::read(path).ok().hash(&mut hasher);
        format!("{:x}", hasher.finish())
    };
    lines.insert(format!("file {shown} {mode:o} {what}"));
    Ok(())
}
