//! `cargo xtask kind test`: cases of the suites inside a cluster; and what its pods run. See
//! [`netpol_tests::conformance::in_cluster`].

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use netpol_tests::conformance::in_cluster::{self, Kubectl, prober};
use netpol_tests::conformance::{By, Settings, committed};
use netpol_tests::netns::run::note;

/// Conformance cases inside a cluster that kubectl reaches.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask kind test", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run cases.
    Run(RunArguments),
    /// Inside a pod.
    #[command(subcommand)]
    Prober(Prober),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// kubectl's context.
    #[arg(long, value_name = "NAME")]
    context: String,
    /// The prober's image, as it was loaded into the cluster.
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Only this suite (`shop` is the demo's); may be repeated.
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Only cases whose id matches (`*` and `?`); may be repeated.
    #[arg(long, value_name = "GLOB")]
    case: Vec<String>,
    /// By which address pods are asked.
    #[arg(long, value_enum, default_value_t = Address::PodIp)]
    probe: Address,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Address {
    /// Their own.
    PodIp,
    /// That of a service in front of each.
    ServiceIp,
}

#[derive(Debug, Subcommand)]
enum Prober {
    /// Answer on ports.
    Serve {
        #[arg(long)]
        name: String,
        #[arg(long, value_delimiter = ',')]
        tcp: Vec<u16>,
        #[arg(long, value_delimiter = ',')]
        udp: Vec<u16>,
    },
    /// Ask what standard input says.
    Ask,
}

struct Real {
    context: String,
}

impl Kubectl for Real {
    fn run(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.arg("--context").arg(&self.context).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().context("cannot run kubectl: install it (https://kubernetes.io/docs/tasks/tools)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).context("kubectl does not read")?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match Arguments::parse().command {
        What::Run(RunArguments { context, image, suite, case, probe }) => {
            let by = match probe {
                Address::PodIp => By::PodIp,
                Address::ServiceIp => By::ServiceIp,
            };
            let settings = Settings { suites: suite, globs: case, by, ..Settings::all_of(committed()) };
            // A reader that has seen enough is no reason to stop.
            let say = |line: &str| drop(writeln!(std::io::stdout(), "{line}"));
            let tally = in_cluster::run(&settings, &Real { context }, &image, say)?;
            say(&tally.to_string());
            Ok(tally.failed == 0 && tally.passed > 0)
        }
        What::Prober(Prober::Serve { name, tcp, udp }) => {
            runtime.block_on(prober::serve(&name, &tcp, &udp)).map(|()| true)
        }
        What::Prober(Prober::Ask) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            let heard = runtime.block_on(prober::ask(serde_json::from_str(&text)?));
            std::io::stdout().write_all(serde_json::to_string(&heard)?.as_bytes())?;
            Ok(true)
        }
    }
}
