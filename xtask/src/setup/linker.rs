//! bpf-linker, and the LLVM it is built with.
//!
//! It must read the bitcode that nightly writes: its LLVM must be at least nightly's. bpf-linker is built from source
//! against Debian's packages of that LLVM. One that is installed and too old is left alone; ours then goes to
//! `target/tools`, which `build` looks at first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::{State, rust, system};
use crate::{build, shell};

const VERSION: &str = "0.13.0";
/// LLVM versions that this bpf-linker can be built with: each is a feature of it.
const KNOWN: std::ops::RangeInclusive<u32> = 21..=23;

/// Where bpf-linker goes if an unsuitable one is in the way.
pub(super) fn own_root() -> PathBuf {
    shell::target().join("tools")
}

pub(super) fn look() -> State {
    let wanted = match rust::llvm_major() {
        Ok(wanted) => wanted,
        Err(_) => return State::Stuck(format!("needs the LLVM version of {}, which is not there", rust::nightly())),
    };
    match find() {
        Some(Found { path, version, llvm: Some(llvm) }) if llvm < wanted => missing(
            wanted,
            &format!("{} ({version}) has LLVM {llvm}, {} needs {wanted}", path.display(), rust::nightly()),
        ),
        Some(Found { path, version, llvm }) => {
            let llvm = llvm.map_or_else(|| "its own LLVM".to_owned(), |llvm| format!("LLVM {llvm}"));
            State::Ok(format!("{version} with {llvm}, {}", path.display()))
        }
        None => missing(wanted, "no bpf-linker in PATH that runs"),
    }
}

/// True if a bpf-linker for a toolchain of this LLVM is here or can be built.
pub(super) fn fits(nightly: &str, llvm: u32) -> bool {
    find().is_some_and(|found| found.llvm.is_none_or(|own| own >= llvm)) || choose(nightly, llvm, false).is_ok()
}

pub(super) fn install() -> Result<()> {
    let llvm = choose(rust::nightly(), rust::llvm_major()?, true)?;
    system::install_packages(&llvm.packages())?;
    shell::run(&mut llvm.install_command())
}

fn missing(wanted: u32, why: &str) -> State {
    match choose(rust::nightly(), wanted, false) {
        Ok(llvm) => {
            let mut lines = system::lines_for(&llvm.packages());
            lines.push(shell::line_of(&llvm.install_command()));
            State::Missing { why: why.to_owned(), lines }
        }
        Err(error) => State::Stuck(format!("{why}; {error}")),
    }
}

/// A bpf-linker that runs.
struct Found {
    path: PathBuf,
    version: String,
    /// Major version of the LLVM it is linked with; none if that is inside it.
    llvm: Option<u32>,
}

fn find() -> Option<Found> {
    let path = shell::find("bpf-linker", &build::path_with_tools().ok()?)?;
    // A missing libLLVM shows here.
    let version = shell::output(Command::new(&path).arg("--version")).ok()?.trim().to_owned();
    let llvm = linked_llvm(&fs::read(&path).ok()?);
    Some(Found { path, version, llvm })
}

/// The number in the first `libLLVM.so.N` or `libLLVM-N.so` that a program names.
fn linked_llvm(program: &[u8]) -> Option<u32> {
    [&b"libLLVM.so."[..], b"libLLVM-"].iter().find_map(|name| {
        let at = program.windows(name.len()).position(|window| window == *name)?;
        let digits: Vec<u8> = program.get(at + name.len()..)?.iter().copied().take_while(u8::is_ascii_digit).collect();
        String::from_utf8(digits).ok()?.parse().ok()
    })
}

/// An LLVM to build with.
#[derive(Debug)]
struct Llvm {
    major: u32,
}

impl Llvm {
    fn prefix(&self) -> PathBuf {
        Path::new("/usr/lib").join(format!("llvm-{}", self.major))
    }

    fn packages(&self) -> Vec<String> {
        let major = self.major;
        vec![
            "g++".to_owned(),
            format!("llvm-{major}-dev"),
            format!("libpolly-{major}-dev"),
            "zlib1g-dev".to_owned(),
            "libzstd-dev".to_owned(),
        ]
    }

    fn install_command(&self) -> Command {
        let mut command = shell::cargo();
        command.env("LLVM_PREFIX", self.prefix());
        command.args(["install", "bpf-linker", "--locked", "--version", VERSION, "--no-default-features"]);
        command.args(["--features", &format!("llvm-{}", self.major)]);
        if find().is_some() {
            command.arg("--root").arg(own_root());
        } else if shell::find("bpf-linker", &build::path_with_tools().unwrap_or_default()).is_some() {
            // It is there and does not run: its LLVM was removed.
            command.arg("--force");
        }
        command
    }
}

/// The oldest LLVM that reads nightly's bitcode, that bpf-linker knows, and that is installed or a package.
fn choose(nightly: &str, wanted: u32, may_update: bool) -> Result<Llvm> {
    let candidates: Vec<u32> = KNOWN.filter(|&major| major >= wanted).collect();
    if candidates.is_empty() {
        bail!(
            "{nightly} has LLVM {wanted}, and bpf-linker {VERSION} can be built with {} to {}. Install a nightly of that \
             range and set NETPOL_NIGHTLY to its name",
            KNOWN.start(),
            KNOWN.end()
        );
    }
    let available = |major: &u32| {
        Llvm { major: *major }.prefix().join("include/llvm-c").is_dir()
            || system::is_package(&format!("llvm-{major}-dev"))
    };
    if let Some(major) = candidates.iter().copied().find(available) {
        return Ok(Llvm { major });
    }
    // A bare machine's package lists may be empty or old.
    if may_update
        && system::update().is_ok()
        && let Some(major) = candidates.iter().copied().find(available)
    {
        return Ok(Llvm { major });
    }
    let names: Vec<String> = candidates.iter().map(|major| format!("llvm-{major}-dev")).collect();
    bail!(
        "{nightly} has LLVM {wanted}, and no package source here has {}. Run `apt-get update`; or add LLVM's own \
         packages as https://apt.llvm.org says; or install an older nightly whose LLVM is a package here (`apt-cache \
         search '^llvm-[0-9]+-dev$'`) and set NETPOL_NIGHTLY to its name. Then run this again",
        names.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_llvm_is_found_by_either_name() {
        assert_eq!(linked_llvm(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"\0libLLVM-14.so.1\0"), Some(14));
        assert_eq!(linked_llvm(b"\0libc.so.6\0"), None);
    }

    #[test]
    fn an_llvm_beyond_what_the_linker_knows_is_said_with_a_way_out() {
        let error = choose("nightly", 99, false).unwrap_err().to_string();
        assert!(error.contains("LLVM 99") && error.contains("NETPOL_NIGHTLY"), "{error}");
    }
}
