//! rustup, the nightly toolchain and its rust-src.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use super::{State, linker};
use crate::shell;

/// Names another toolchain than the one found here.
const NIGHTLY_VARIABLE: &str = "NETPOL_NIGHTLY";
/// A nightly that is known to build everything, for machines that have none that fits.
const KNOWN_GOOD: &str = "nightly-2026-05-20";
/// Its LLVM.
const KNOWN_GOOD_LLVM: u32 = 22;

/// The toolchain that compiles the BPF programs: what `$NETPOL_NIGHTLY` says; else `nightly`, if it is there and
/// bpf-linker can be had with an LLVM as new as its own (the newest nightly is often ahead of every package source);
/// else [`KNOWN_GOOD`].
pub(crate) fn nightly() -> &'static str {
    static CHOSEN: OnceLock<String> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var(NIGHTLY_VARIABLE).unwrap_or_else(|_unset| choose().to_owned()))
}

fn choose() -> &'static str {
    let plain = "nightly";
    match llvm_of_toolchain(plain) {
        Ok(llvm) if llvm <= KNOWN_GOOD_LLVM || linker::fits(plain, llvm) => plain,
        Ok(_) | Err(_) => KNOWN_GOOD,
    }
}

/// Major version of the LLVM that the chosen nightly writes bitcode with.
pub(super) fn llvm_major() -> Result<u32> {
    llvm_of_toolchain(nightly())
}

fn llvm_of_toolchain(toolchain: &str) -> Result<u32> {
    let version = shell::output(&mut rustc(toolchain, &["-vV"]))?;
    llvm_of(&version).with_context(|| format!("no LLVM version in what rustc of {toolchain} says of itself"))
}

fn llvm_of(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.trim().parse().ok()
}

pub(super) fn look_rustup() -> State {
    match shell::output(Command::new("rustup").arg("--version")) {
        Ok(version) => State::Ok(version.lines().next().unwrap_or_default().to_owned()),
        Err(_) => {
            State::Stuck("rustup is not in PATH: install it as https://rustup.rs says, then run this again".to_owned())
        }
    }
}

pub(super) fn look_nightly() -> State {
    let nightly = nightly();
    match shell::output(&mut rustc(nightly, &["-vV"])) {
        Ok(version) => State::Ok(version.lines().next().unwrap_or_default().to_owned()),
        Err(_) => State::Missing {
            why: format!("rustup has no toolchain {nightly}"),
            lines: vec![shell::line_of(&add_nightly_command())],
        },
    }
}

pub(super) fn add_nightly() -> Result<()> {
    shell::run(&mut add_nightly_command())
}

pub(super) fn look_source() -> State {
    let nightly = nightly();
    let lines = vec![shell::line_of(&add_source_command())];
    let Ok(sysroot) = shell::output(&mut rustc(nightly, &["--print", "sysroot"])) else {
        return State::Missing { why: format!("no toolchain {nightly} to have it"), lines };
    };
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if library.join("core/src/lib.rs").is_file() {
        return State::Ok(library.display().to_string());
    }
    State::Missing { why: format!("no {}", library.display()), lines }
}

pub(super) fn add_source() -> Result<()> {
    shell::run(&mut add_source_command())
}

fn add_nightly_command() -> Command {
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", nightly(), "--profile", "minimal", "--component", "rust-src"]);
    // What is installed stays as it is.
    command.arg("--no-self-update");
    command
}

fn add_source_command() -> Command {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain", nightly()]);
    command
}

fn rustc(toolchain: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    // Without the variable, rustup would install a missing toolchain, unasked.
    command.args(["run", toolchain, "rustc"]).args(arguments).env("RUSTUP_AUTO_INSTALL", "0");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_toolchain_is_read_from_its_version() {
        assert_eq!(llvm_of("rustc 1.97.0-nightly\nhost: x86_64\nLLVM version: 22.1.4\n"), Some(22));
        assert_eq!(llvm_of("rustc 1.97.0-nightly\n"), None);
    }
}
