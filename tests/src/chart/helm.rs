//! Helm, by way of the Python package that carries it: a chart and sets of values -> templates, or Helm's refusal.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Helm is slow to start and quick to render: everything is asked at once.
const SCRIPT: &str = include_str!("render.py");

/// A Python that has Helm.
#[derive(Clone, Debug)]
pub struct Helm {
    python: PathBuf,
}

/// A chart, and the values (as text of YAML) to render it with.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// Its directory.
    pub chart: PathBuf,
    /// Each rendered by itself.
    pub values: Vec<String>,
}

/// What Helm made of a [`Request`].
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    answers: Vec<One>,
    /// What `helm lint --strict` found, warnings and worse.
    pub lint: Vec<String>,
    /// The chart's own values.
    pub defaults: Value,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum One {
    Templates(BTreeMap<String, String>),
    Error(String),
}

impl Answer {
    /// One result for each set of values, in order: templates by name, or what Helm refused.
    pub fn each(&self) -> impl Iterator<Item = Result<&BTreeMap<String, String>, &str>> {
        self.answers.iter().map(|one| match one {
            One::Templates(templates) => Ok(templates),
            One::Error(error) => Err(error.as_str()),
        })
    }
}

impl Helm {
    /// Finds what `cargo xtask chart` installed.
    ///
    /// # Errors
    /// If it did not.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |set| root.join(set));
        let python = target.join("helm/bin/python");
        if !python.exists() {
            bail!("Helm is not here ({} is missing): run `cargo xtask chart`, which installs it", python.display());
        }
        Ok(Self { python })
    }

    /// Renders and lints.
    ///
    /// # Errors
    /// If Helm cannot be run. What it refuses is an [`Answer`].
    pub fn ask(&self, request: &Request) -> Result<Answer> {
        let mut command = Command::new(&self.python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.python.display()))?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        stdin.write_all(&serde_json::to_vec(request)?)?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("Helm could not be asked: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("render.py wrote something else")
    }
}
