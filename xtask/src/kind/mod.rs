//! `kind`: a cluster of containers with Flannel and the chart, and the conformance cases inside it.
//!
//! In: a subcommand. Out: commands of kind, docker, kubectl and helm, each shown as it is run. Which commands is a value
//! ([`Step`]), so that it can be tested where there is no container daemon; the cases are `netpol-kind`'s (in
//! `tests/src/conformance/in_cluster`). State lies in the cluster and under `target/kind`.

mod steps;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use self::steps::{Step, Tool};
use crate::shell;

/// The cluster's name.
const CLUSTER: &str = "netpol";

/// Options of `kind`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Make the cluster: three nodes without kind's own network, Flannel in its place.
    Up {
        /// How kube-proxy translates.
        #[arg(long, value_enum, default_value_t = Proxy::Nftables)]
        kube_proxy: Proxy,
    },
    /// Load the images and install the chart (again).
    Load {
        /// The agent's image as an archive: `cargo xtask image --out FILE`.
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
    },
    /// Run the conformance cases and the shop inside the cluster.
    Test {
        /// Flags of `netpol-kind run`: --suite, --case, --probe.
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Delete the cluster.
    Down,
    /// Print the commands of `up`, `load`, `test` and `down`, and run none.
    Plan,
}

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Proxy {
    Iptables,
    Nftables,
}

impl Proxy {
    const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// Runs a subcommand.
pub(crate) fn run(options: Options) -> Result<bool> {
    let place = shell::target().join("kind");
    match options.command {
        What::Up { kube_proxy } => {
            fs::create_dir_all(&place)?;
            let config = place.join("cluster.yaml");
            fs::write(&config, steps::config(kube_proxy.name()))
                .with_context(|| format!("cannot write {}", config.display()))?;
            carry_out(&steps::up(&config))?;
        }
        What::Load { image } => {
            fs::create_dir_all(&place)?;
            let image = image.unwrap_or_else(|| place.join("netpol.tar"));
            if !image.exists() {
                bail!("no image at {}: cargo xtask image --out {}", image.display(), image.display());
            }
            fs::write(place.join("Dockerfile"), steps::DOCKERFILE)?;
            // Without it docker would be sent all that was ever built there.
            fs::write(place.join("Dockerfile.dockerignore"), "*\n!netpol-kind\n")?;
            carry_out(&steps::load(&place, &image))?;
        }
        What::Test { flags } => carry_out(&steps::test(&flags))?,
        What::Down => carry_out(&steps::down())?,
        What::Plan => {
            let (config, image) = (place.join("cluster.yaml"), place.join("netpol.tar"));
            let all = [steps::up(&config), steps::load(&place, &image), steps::test(&[]), steps::down()];
            all.iter().flatten().for_each(|step| shell::say(&shell::line_of(&command(step))));
        }
    }
    Ok(true)
}

fn carry_out(steps: &[Step]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<String> = Tool::ALL
        .into_iter()
        .filter(|tool| steps.iter().any(|step| step.tool == *tool) && shell::find(tool.name(), &path).is_none())
        .map(|tool| format!("{} ({})", tool.name(), tool.home()))
        .collect();
    if !missing.is_empty() {
        bail!("not in PATH: {}", missing.join(", "));
    }
    steps.iter().try_for_each(|step| shell::run(&mut command(step)))
}

fn command(step: &Step) -> Command {
    let mut command = Command::new(step.tool.name());
    command.current_dir(shell::root()).args(&step.arguments);
    command
}
