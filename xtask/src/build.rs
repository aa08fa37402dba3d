//! The BPF object, and the programs that carry it.
//!
//! The object is built by nightly for `bpfel-unknown-none` and copied to `target/bpf`; everything else is stable Rust and
//! gets the object's path in [`OBJECT_VARIABLE`]. Without that variable the agent's build script embeds a stub, which is
//! how `cargo check` and the pure tests work without the BPF toolchain.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{setup, shell};

/// Tells the agent's build script which object to embed.
pub(crate) const OBJECT_VARIABLE: &str = "NETPOL_BPF_OBJECT";

const TARGET: &str = "bpfel-unknown-none";

/// Options of `build`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Options {
    /// Optimise the programs (the BPF object always is).
    #[arg(long)]
    release: bool,
    /// With a BPF object that logs each packet.
    #[arg(long)]
    debug_ebpf: bool,
}

/// Options of `build-ebpf`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct EbpfOptions {
    /// Let the object log each packet (to target/bpf/netpol-debug).
    #[arg(long)]
    debug: bool,
}

/// Builds the object and every program.
pub(crate) fn run(options: Options) -> Result<PathBuf> {
    let object = ebpf(EbpfOptions { debug: options.debug_ebpf })?;
    let mut cargo = shell::cargo();
    cargo.arg("build").args(["-p", "netpol-agent", "-p", "netpol-tests", "--bins"]).env(OBJECT_VARIABLE, &object);
    if options.release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    Ok(object)
}

/// Builds the object and returns where it is.
pub(crate) fn ebpf(options: EbpfOptions) -> Result<PathBuf> {
    setup::ensure()?;
    shell::run(&mut nightly_cargo("build", options.debug)?)?;
    let (profile, name) = if options.debug { ("debug", "netpol-debug") } else { ("release", "netpol") };
    let built = shell::target().join(TARGET).join(profile).join("netpol");
    let object = shell::target().join("bpf").join(name);
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Runs clippy over the BPF programs.
pub(crate) fn ebpf_clippy() -> Result<()> {
    let mut command = nightly_cargo("clippy", false)?;
    command.args(["--", "-D", "warnings"]);
    shell::run(&mut command)
}

/// `cargo <what>` by nightly, for the BPF target.
fn nightly_cargo(what: &str, debug: bool) -> Result<Command> {
    let mut command = Command::new("rustup");
    command.current_dir(shell::root()).arg("run").arg(setup::nightly()).args(["cargo", what, "--quiet"]);
    command.args(["-p", "netpol-ebpf", "--bin", "netpol", "--target", TARGET, "-Z", "build-std=core"]);
    if !debug {
        command.arg("--release");
    }
    // What the outer cargo set for us is about stable.
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(name);
    }
    // No `--btf`: the kernel refuses what bpf-linker makes of core's memcpy, and nothing here needs it.
    command.env("PATH", path_with_tools()?);
    Ok(command)
}

/// The search path, with the places first where `setup` puts bpf-linker.
pub(crate) fn path_with_tools() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = setup::tool_directories().into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(places).context("a directory in PATH has a colon in its name")
}

/// Leaves an unchanged file alone, so that nothing is built again for its time stamp.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("the build left no {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
