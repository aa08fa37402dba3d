//! rustup, the nightly toolchain and its rust-src.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::State;
use crate::shell;

/// Names another toolchain than `nightly`.
const NIGHTLY_VARIABLE: &str = "NETPOL_NIGHTLY";

/// The toolchain that compiles the BPF programs: `nightly`, or what `$NETPOL_NIGHTLY` says.
pub(crate) fn nightly() -> String {
    std::env::var(NIGHTLY_VARIABLE).unwrap_or_else(|_| "nightly".to_owned())
}

/// Major version of the LLVM that this nightly writes bitcode with.
pub(super) fn llvm_major() -> Result<u32> {
    let version = shell::output(&mut rustc(&["-vV"]))?;
    llvm_of(&version).with_context(|| format!("no LLVM version in what rustc {} says of itself", nightly()))
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
    match shell::output(&mut rustc(&["-vV"])) {
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
    let Ok(sysroot) = shell::output(&mut rustc(&["--print", "sysroot"])) else {
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
    command.args(["toolchain", "install", &nightly(), "--profile", "minimal", "--component", "rust-src"]);
    // What is installed stays as it is.
    command.arg("--no-self-update");
    command
}

fn add_source_command() -> Command {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain", &nightly()]);
    command
}

fn rustc(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    // Without the variable, rustup would install a missing toolchain, unasked.
    command.args(["run", &nightly(), "rustc"]).args(arguments).env("RUSTUP_AUTO_INSTALL", "0");
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
