//! What the image can be built for, and what that takes on this machine.
//!
//! Programs are static, so the target is musl's: rustup brings its std and libc, and gcc links. `ring` and the allocator
//! have C in them, for which musl's headers come from `musl-tools`; for the other architecture Debian has no musl, and the
//! cross compiler's own headers do, as that code uses nothing in which the two libraries differ.

use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::setup::{self, Item, State};
use crate::shell;

/// Processor of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// This machine's, if it is one of them.
    pub(crate) fn of_this_machine() -> Option<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|arch| arch.of_rust() == std::env::consts::ARCH)
    }

    /// As OCI names it.
    pub(crate) const fn of_oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust names it.
    const fn of_rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// What the programs are compiled for.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// What compiles C for it, and links.
    pub(crate) fn compiler(self) -> Compiler {
        match (self, Self::of_this_machine() == Some(self)) {
            (_, true) => Compiler { cc: "musl-gcc", flags: &[], linker: None, packages: &["gcc", "musl-tools"] },
            (Self::Amd64, false) => Compiler {
                cc: "x86_64-linux-gnu-gcc",
                flags: FOR_MUSL,
                linker: Some("x86_64-linux-gnu-gcc"),
                packages: &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            },
            (Self::Arm64, false) => Compiler {
                cc: "aarch64-linux-gnu-gcc",
                flags: FOR_MUSL,
                linker: Some("aarch64-linux-gnu-gcc"),
                packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            },
        }
    }
}

/// Ubuntu's compilers are on their guard unasked, by functions that glibc has and musl lacks.
const FOR_MUSL: &[&str] = &["-U_FORTIFY_SOURCE"];

/// Programs that compile and link C, and Debian's packages that have them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compiler {
    /// Compiles.
    pub(crate) cc: &'static str,
    /// What it is told besides.
    pub(crate) flags: &'static [&'static str],
    /// Links, if cargo's own choice does not do.
    pub(crate) linker: Option<&'static str>,
    packages: &'static [&'static str],
}

const AMD64: &[Item] = &[
    Item {
        name: "musl target",
        purpose: "Rust's std and libc for static programs",
        look: || look_target(Arch::Amd64),
        provide: || add_target(Arch::Amd64),
    },
    Item {
        name: "C compiler",
        purpose: "links, and compiles ring's C",
        look: || look_compiler(Arch::Amd64),
        provide: || install_compiler(Arch::Amd64),
    },
];

const ARM64: &[Item] = &[
    Item {
        name: "musl target",
        purpose: "Rust's std and libc for static programs",
        look: || look_target(Arch::Arm64),
        provide: || add_target(Arch::Arm64),
    },
    Item {
        name: "C compiler",
        purpose: "links, and compiles ring's C",
        look: || look_compiler(Arch::Arm64),
        provide: || install_compiler(Arch::Arm64),
    },
];

/// Provides what is missing to build for it, and says what it does; in silence if nothing is.
///
/// # Errors
/// If something cannot be provided.
pub(crate) fn ensure(arch: Arch) -> Result<()> {
    let items = match arch {
        Arch::Amd64 => AMD64,
        Arch::Arm64 => ARM64,
    };
    if setup::is_complete(items) || setup::provide(items, setup::Mode::Provide)? {
        return Ok(());
    }
    bail!("cannot build for {}: what is said to be missing above", arch.of_oci())
}

fn look_target(arch: Arch) -> State {
    let target = arch.target();
    let sysroot = match super::programs::rustc(&["--print", "sysroot"]) {
        Ok(sysroot) => sysroot,
        Err(error) => return State::Stuck(format!("{error:#}")),
    };
    let library = std::path::Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib");
    if library.is_dir() {
        return State::Ok(library.display().to_string());
    }
    if shell::output(Command::new("rustup").arg("--version")).is_ok() {
        let lines = vec![shell::line_of(&add_target_command(arch))];
        return State::Missing { why: format!("no std for {target} in this toolchain"), lines };
    }
    State::Stuck(format!("no std for {target} in {}, and no rustup to add it", sysroot.trim()))
}

fn add_target(arch: Arch) -> Result<()> {
    shell::run(&mut add_target_command(arch))
}

fn add_target_command(arch: Arch) -> Command {
    let mut command = Command::new("rustup");
    // Of the toolchain that runs us: the workspace's.
    command.current_dir(shell::root()).args(["target", "add", arch.target()]);
    command
}

fn look_compiler(arch: Arch) -> State {
    let compiler = arch.compiler();
    setup::look_program(compiler.cc, compiler.packages)
}

fn install_compiler(arch: Arch) -> Result<()> {
    setup::install_packages(&arch.compiler().packages.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
}
