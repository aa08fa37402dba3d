//! The image's file system: nothing but what the image has.
//!
//! In: the archive that `$NETPOL_IMAGE` names, read as a container runtime does; without one, the programs of this build, and
//! beside them the loader and the libraries that they want, as they are not static. Out: a [`Root`]. A whole image costs
//! minutes to build, so the tests of every day show that the agent lives with what the manifest gives it, and the same tests on
//! the archive that the image does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent;

/// Names the archive that `cargo xtask image --out` made.
pub const IMAGE_VARIABLE: &str = "NETPOL_IMAGE";

/// Programs that the image has.
pub const PROGRAMS: [&str; 3] = ["netpol", "netpol-agent", "netpol-cni"];

/// A directory that is a container's root, and what the image says of processes in it.
#[derive(Clone, Debug)]
pub struct Root {
    directory: PathBuf,
    environment: Vec<String>,
}

impl Root {
    /// Makes it at `place`, where nothing else may lie.
    ///
    /// # Errors
    /// If the archive is none, or a program is not built.
    pub fn make(place: &Path) -> Result<Self> {
        if place.exists() {
            fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
        }
        match std::env::var_os(IMAGE_VARIABLE) {
            Some(archive) => Self::unpack(Path::new(&archive), place),
            None => Self::of_this_build(place),
        }
    }

    /// Another version of the image at `place`: that of this build with an agent whose maps are laid out otherwise.
    ///
    /// # Errors
    /// If that agent is not built.
    pub fn of_next_version(place: &Path) -> Result<Self> {
        if place.exists() {
            fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
        }
        let agent = agent::Version::Next.binary()?;
        place_file(&agent, &place.join("root/netpol-agent"))?;
        for library in libraries(&agent)? {
            place_file(&library, &place.join("root").join(library.strip_prefix("/").unwrap_or(&library)))?;
        }
        Self::of_this_build(place)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The image's variables, as `NAME=VALUE`.
    #[must_use]
    pub fn environment(&self) -> &[String] {
        &self.environment
    }

    fn unpack(archive: &Path, place: &Path) -> Result<Self> {
        let layout = place.join("layout");
        let directory = place.join("root");
        untar(archive, &layout)?;
        let index = json(&layout.join("index.json"))?;
        let manifest = json(&blob(&layout, index.pointer("/manifests/0/digest"))?)?;
        for layer in manifest.get("layers").and_then(Value::as_array).context("a manifest without layers")? {
            untar(&blob(&layout, layer.get("digest"))?, &directory)?;
        }
        let config = json(&blob(&layout, manifest.pointer("/config/digest"))?)?;
        let variables = config.pointer("/config/Env").and_then(Value::as_array).cloned().unwrap_or_default();
        let environment = variables.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Self { directory, environment })
    }

    fn of_this_build(place: &Path) -> Result<Self> {
        let directory = place.join("root");
        fs::create_dir_all(&directory)?;
        for name in PROGRAMS {
            let program = agent::binary()?.with_file_name(name);
            place_file(&program, &directory.join(name))?;
            for library in libraries(&program)? {
                place_file(&library, &directory.join(library.strip_prefix("/").unwrap_or(&library)))?;
            }
        }
        Ok(Self { directory, environment: vec!["PATH=/".to_owned()] })
    }
}

fn untar(archive: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let output = Command::new("tar").arg("-C").arg(to).arg("-xf").arg(archive).output().context("cannot run tar")?;
    ensure!(output.status.success(), "{}: {}", archive.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn blob(layout: &Path, digest: Option<&Value>) -> Result<PathBuf> {
    let digest = digest.and_then(Value::as_str).context("a blob without digest")?;
    Ok(layout.join("blobs").join(digest.replace(':', "/")))
}

/// What the loader would load, the loader included: every absolute path in `ldd`'s answer.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .filter(|it| it.is_file())
        .collect())
}

/// A second name for the file where that can be, as programs are large.
fn place_file(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    // The loader is often a link, and a second name for a link would lead nowhere in here.
    let from = fs::canonicalize(from).with_context(|| format!("cannot find {}", from.display()))?;
    if fs::hard_link(&from, to).is_ok() {
        return Ok(());
    }
    fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
