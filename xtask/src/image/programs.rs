//! The three programs, built so that the machine leaves no trace in them.
//!
//! Out: their bytes. What differs between machines is kept out of the build (paths are mapped, the user's flags are not
//! taken, nothing is incremental), and what came out is looked at: it must be static, for the right processor, hold the
//! BPF object and name no directory of this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _};

use super::arch::Arch;
use crate::{build, shell};

/// Cargo's profile of what is shipped.
const PROFILE: &str = "dist";

/// The programs, and how many bytes each may have. The plugin is run for every pod that starts and stops, and lies on the
/// node's disk as well.
const PROGRAMS: [(&str, usize); 3] = [("netpol", 24_000_000), ("netpol-agent", 30_000_000), ("netpol-cni", 3_000_000)];

/// Bytes of the programs, by name.
pub(crate) type Programs = BTreeMap<&'static str, Vec<u8>>;

/// Builds them.
///
/// # Errors
/// If they cannot be built, or not as they must be.
pub(crate) fn build(arch: Arch) -> Result<Programs> {
    let object = build::ebpf(build::EbpfOptions::default())?;
    let mut cargo = cargo_build(arch)?;
    cargo.env(build::OBJECT_VARIABLE, &object);
    shell::run(&mut cargo)?;
    let programs = read(&shell::target().join(arch.target()).join(PROFILE), arch)?;
    let object = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let agent = programs.get("netpol-agent").map(Vec::as_slice).unwrap_or_default();
    ensure!(contains(agent, &object), "the agent came out without the BPF object");
    for (name, program) in &programs {
        for directory in directories()? {
            let trace = directory.to_string_lossy();
            ensure!(!contains(program, trace.as_bytes()), "{name} names {trace}: it would differ on another machine");
        }
    }
    Ok(programs)
}

/// Reads programs that somebody built.
///
/// # Errors
/// If one is not there, or does not fit into the image.
pub(crate) fn read(directory: &Path, arch: Arch) -> Result<Programs> {
    let mut programs = Programs::new();
    for (name, limit) in PROGRAMS {
        let path = directory.join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read the program {}", path.display()))?;
        fits(&bytes, arch).with_context(|| format!("{} does not fit into the image", path.display()))?;
        ensure!(bytes.len() <= limit, "{name} has {} bytes, and {limit} are its budget", bytes.len());
        programs.insert(name, bytes);
    }
    Ok(programs)
}

/// There is no loader and no library in the image.
fn fits(bytes: &[u8], arch: Arch) -> Result<()> {
    let elf = ElfFile64::<Endianness>::parse(bytes).context("it is no program of 64 bits")?;
    let wanted = match arch {
        Arch::Amd64 => Architecture::X86_64,
        Arch::Arm64 => Architecture::Aarch64,
    };
    ensure!(elf.architecture() == wanted, "it is for {:?}, and the image for {}", elf.architecture(), arch.of_oci());
    let endian = elf.endian();
    if elf.elf_program_headers().iter().any(|header| header.p_type(endian) == object::elf::PT_INTERP) {
        bail!("it is not static: it wants a loader that the image does not have");
    }
    Ok(())
}

fn cargo_build(arch: Arch) -> Result<Command> {
    let target = arch.target();
    let compiler = arch.compiler();
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--profile", PROFILE, "--target", target, "-p", "netpol-agent", "--bins"]);
    for name in ["RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CFLAGS", "TARGET_CFLAGS", "CC", "TARGET_CC"] {
        cargo.env_remove(name);
    }
    let map = map()?;
    let flags: Vec<String> =
        map.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("CARGO_INCREMENTAL", "0");
    let underscored = target.replace('-', "_");
    let mut flags: Vec<String> =
        map.iter().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display())).collect();
    flags.extend(compiler.flags.iter().map(|flag| (*flag).to_owned()));
    cargo.env(format!("CFLAGS_{underscored}"), flags.join(" ")).env(format!("CC_{underscored}"), compiler.cc);
    // What C has for __DATE__ and __TIME__ (GCC, clang 16): the allocator tells when it was built.
    cargo.env("SOURCE_DATE_EPOCH", "0");
    if let Some(linker) = compiler.linker {
        cargo.env(format!("CARGO_TARGET_{}_LINKER", underscored.to_uppercase()), linker);
    }
    Ok(cargo)
}

/// What stands in the programs for directories of this machine. Of several that fit, the compiler takes the last.
fn map() -> Result<Vec<(PathBuf, String)>> {
    let mut map =
        vec![(shell::root().to_owned(), "/netpol".to_owned()), (shell::target(), "/netpol/target".to_owned())];
    // One directory for each registry, named after where it is: a mirror has another name.
    let registries = cargo_home()?.join("registry/src");
    for entry in fs::read_dir(&registries).into_iter().flatten() {
        map.push((entry?.path(), "/cargo".to_owned()));
    }
    // Where the sources of std are installed the compiler names them there; else it names what it was built from.
    let commit = rustc(&["-vV"])?;
    let commit = commit.lines().find_map(|line| line.strip_prefix("commit-hash: ")).unwrap_or("unknown");
    map.push((sysroot()?.join("lib/rustlib/src/rust"), format!("/rustc/{commit}")));
    Ok(map)
}

/// Directories that no program may name.
fn directories() -> Result<Vec<PathBuf>> {
    Ok(vec![shell::root().to_owned(), shell::target(), cargo_home()?, sysroot()?])
}

fn cargo_home() -> Result<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).context("no CARGO_HOME and no home directory")
}

fn sysroot() -> Result<PathBuf> {
    Ok(PathBuf::from(rustc(&["--print", "sysroot"])?.trim()))
}

/// What the compiler that cargo uses says.
pub(super) fn rustc(arguments: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    shell::output(Command::new(rustc).current_dir(shell::root()).args(arguments))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && memchr::memmem::find(bytes, part).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_wants_a_loader_does_not_fit() {
        let own = fs::read("/proc/self/exe").unwrap();
        let Some(arch) = Arch::of_this_machine() else { return };
        assert!(fits(&own, arch).unwrap_err().to_string().contains("not static"));
        let other = if arch == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
        assert!(fits(&own, other).unwrap_err().to_string().contains("it is for"));
        assert!(fits(b"#!/bin/sh", arch).unwrap_err().to_string().contains("no program"));
    }
}
