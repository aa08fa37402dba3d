//! `kernels`: does the BPF object load, attach and judge on the kernels that nodes run?
//!
//! Debian's kernels, each in a virtual machine of QEMU (emulated, so no KVM is needed): fetched and unpacked by `apt`,
//! booted by `qemu` from the `initramfs` that holds one program, `netpol-guest` (see `netpol_tests::guest`); what that
//! says on the serial console becomes a row of the `report`. Everything lies in `target/kernels`; nothing is installed
//! but QEMU, and that only if it is missing and can be installed without removing something.

mod apt;
mod initramfs;
mod qemu;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::report::{Outcome, Row};
use crate::{build, shell};

/// Options of `kernels`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Load, attach and run a few frames (the only trial there is).
    #[arg(long, required = true)]
    load_only: bool,
    /// Which kernels; all of them if not given.
    #[arg(long = "kernel", value_enum, value_name = "KERNEL")]
    kernels: Vec<Kernel>,
    /// Leave initramfs and console logs in target/kernels; the log of a failure stays anyway.
    #[arg(long)]
    keep: bool,
    /// Seconds that one kernel may take; emulation on a busy machine is slow.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// Print the table in Markdown too.
    #[arg(long)]
    markdown: bool,
}

/// A line of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 11 (bullseye): the oldest that is supported.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12 (bookworm): before TCX.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13 (trixie).
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has (sid).
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    const EACH: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::Newest];

    const fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }
}

/// Tries each kernel. True if all passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    ensure!(std::env::consts::ARCH == "x86_64", "only x86-64 kernels are tried, and by an x86-64 program");
    let kernels = if options.kernels.is_empty() { Kernel::EACH.to_vec() } else { options.kernels.clone() };
    let directory = directory();
    let emulator = qemu::Emulator::find_or_install(&directory)?;
    let packages = apt::Packages::update(&directory)?;
    let program = build_guest()?;
    let mut rows = Vec::new();
    for kernel in kernels {
        let trial =
            Trial { kernel, directory: directory.join(kernel.name()), limit: Duration::from_secs(options.limit) };
        let row = trial.run(&packages, &emulator, &program);
        shell::say(&row.line());
        if !options.keep {
            trial.tidy(&row)?;
        }
        rows.push(row);
    }
    shell::say(&format!("\n{}", report::table(&rows)));
    if options.markdown {
        shell::say(&format!("\n{}", report::markdown(&rows)));
    }
    let failed = rows.iter().filter(|row| row.error().is_some()).count();
    shell::say(&format!("\nkernels {}, passed {}, failed {failed}", rows.len(), rows.len() - failed));
    Ok(failed == 0)
}

/// Where all of it lies.
fn directory() -> PathBuf {
    shell::target().join("kernels")
}

/// Builds the machine's only program, static: there is no library in the machine. Debug information would be most of it.
fn build_guest() -> Result<PathBuf> {
    let object = build::ebpf(build::EbpfOptions::default())?;
    let mut cargo = shell::cargo();
    cargo.args(["rustc", "-p", "netpol-tests", "--bin", "netpol-guest"]).env(build::OBJECT_VARIABLE, object);
    cargo.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    shell::run(&mut cargo)?;
    Ok(shell::target().join("debug/netpol-guest"))
}

/// One kernel's turn.
struct Trial {
    kernel: Kernel,
    directory: PathBuf,
    limit: Duration,
}

impl Trial {
    /// Errors on the way are the row's.
    fn run(&self, packages: &apt::Packages, emulator: &qemu::Emulator, program: &Path) -> Row {
        let outcome = self.outcome(packages, emulator, program);
        Row { kernel: self.kernel.name(), outcome: outcome.map_err(|error| format!("{error:#}")) }
    }

    fn outcome(&self, packages: &apt::Packages, emulator: &qemu::Emulator, program: &Path) -> Result<Outcome> {
        let image = packages.kernel(self.kernel, &self.directory)?;
        let initramfs = self.directory.join("initramfs");
        initramfs::write(&initramfs, program, &image.modules)?;
        shell::say(&format!("booting {} ({})", self.kernel.name(), image.package));
        let console = emulator.boot(&qemu::Machine {
            kernel: &image.kernel,
            initramfs: &initramfs,
            log: &self.log(),
            limit: self.limit,
        })?;
        let outcome = Outcome::read(&console.text, console.time);
        match &outcome.error {
            None => Ok(outcome),
            Some(error) => bail!("{error} (console: {})", self.log().display()),
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// Removes what takes room; what it costs to fetch again stays, and so does the log of a failure.
    fn tidy(&self, row: &Row) -> Result<()> {
        let mut files = vec![self.directory.join("initramfs")];
        if row.error().is_none() {
            files.push(self.log());
        }
        for file in files.iter().filter(|file| file.exists()) {
            fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }
}
