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

/// The cargo feature of the test build whose maps are laid out otherwise, and where it goes, below the target directory.
const NEXT: &str = "next-abi";

/// Options of `build`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Options {
    /// Optimise the programs (the BPF object always is).
    #[arg(long)]
    pub(crate) release: bool,
    /// With a BPF object that logs each packet.
    #[arg(long)]
    pub(crate) debug_ebpf: bool,
    /// An agent whose maps are laid out otherwise as well (to target/next-abi), to try upgrades with.
    #[arg(long)]
    pub(crate) next_abi: bool,
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
    if options.next_abi {
        next_abi()?;
    }
    let object = ebpf(EbpfOptions { debug: options.debug_ebpf })?;
    let mut cargo = shell::cargo();
    cargo.arg("build").args(["-p", "netpol-agent", "-p", "netpol-tests", "--bins"]).env(OBJECT_VARIABLE, &object);
    if options.release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    Ok(object)
}

/// Builds an agent with another ABI, and its object, for the tests of upgrades. To a place of their own: nothing that is
/// shipped looks there. Comes before the ordinary build, which then puts its own in cargo's usual places.
fn next_abi() -> Result<()> {
    setup::ensure()?;
    let place = shell::target().join(NEXT);
    shell::run(nightly_cargo("build", false)?.args(["--features", NEXT]))?;
    let object = place.join("netpol");
    copy_if_changed(&shell::target().join(TARGET).join("release").join("netpol"), &object)?;
    // The tests' package is named although nothing of it is built: so the dependencies get the features that they have
    // in every other build, and are not built a second time.
    let mut cargo = shell::cargo();
    cargo.args(["build", "-p", "netpol-agent", "-p", "netpol-tests", "--bin", "netpol-agent"]);
    cargo.args(["--features", &format!("netpol-agent/{NEXT}")]).env(OBJECT_VARIABLE, &object);
    shell::run(&mut cargo)?;
    copy_if_changed(&shell::target().join("debug").join("netpol-agent"), &place.join("netpol-agent"))
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
    // What the outer cargo set for us is about stable. And an incremental build cuts the programs into units between which
    // nothing is inlined: the verifier refuses them.
    for name in
        ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_INCREMENTAL"]
    {
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
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))?;
    // A program must stay one.
    fs::set_permissions(to, fs::metadata(from)?.permissions()).with_context(|| format!("cannot mark {}", to.display()))
}
