//! Debian's packages.

use std::process::Command;

use anyhow::{Result, bail};

use super::State;
use crate::shell;

/// Another apt may be at work: unattended upgrades on a fresh machine.
const WAIT_FOR_LOCK: &str = "DPkg::Lock::Timeout=60";
const TRIES: u32 = 2;

/// Looks for a program that a package has.
pub(super) fn look(program: &str, package: &str) -> State {
    look_program(program, &[package])
}

/// Looks for a program that some packages bring together.
pub(crate) fn look_program(program: &str, packages: &[&str]) -> State {
    let sbin = "/usr/sbin:/sbin:/usr/bin:/bin";
    let path = std::env::var("PATH").unwrap_or_default();
    match shell::find(program, format!("{path}:{sbin}").as_ref()) {
        Some(file) => State::Ok(file.display().to_string()),
        None => State::Missing {
            why: format!("no {program} in PATH"),
            lines: lines_for(&packages.iter().map(|package| (*package).to_owned()).collect::<Vec<_>>()),
        },
    }
}

/// Looks for a file that a package has.
pub(super) fn look_for_file(file: &str, package: &str) -> State {
    if std::path::Path::new(file).is_file() {
        return State::Ok(file.to_owned());
    }
    State::Missing { why: format!("no {file}"), lines: lines_for(&[package.to_owned()]) }
}

pub(super) fn install(package: &str) -> Result<()> {
    install_packages(&[package.to_owned()])
}

/// Installs what is not installed. Never removes anything.
pub(crate) fn install_packages(packages: &[String]) -> Result<()> {
    let wanted = not_installed(packages);
    if wanted.is_empty() {
        return Ok(());
    }
    if !has_apt() {
        bail!("no apt-get here. What is needed, in Debian's names: {}", wanted.join(" "));
    }
    let mut tries = 0;
    loop {
        tries += 1;
        let result = update().and_then(|()| shell::run(&mut install_command(&wanted)));
        if result.is_ok() || tries == TRIES {
            return result;
        }
    }
}

/// What one would type for what is not installed.
pub(super) fn lines_for(packages: &[String]) -> Vec<String> {
    let wanted = not_installed(packages);
    if wanted.is_empty() {
        return Vec::new();
    }
    vec![shell::line_of(&update_command()), shell::line_of(&install_command(&wanted))]
}

/// Fetches the package lists.
pub(super) fn update() -> Result<()> {
    shell::run(&mut update_command())
}

/// True if a package source has it.
pub(super) fn is_package(name: &str) -> bool {
    shell::output(Command::new("apt-cache").args(["policy", name])).is_ok_and(|policy| has_candidate(&policy))
}

fn has_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate: ")).any(|version| version != "(none)")
}

fn has_apt() -> bool {
    shell::output(Command::new("apt-get").arg("--version")).is_ok()
}

fn not_installed(packages: &[String]) -> Vec<String> {
    packages.iter().filter(|name| !is_installed(name)).cloned().collect()
}

fn is_installed(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}\n", name]);
    shell::output(&mut query).is_ok_and(|status| status.lines().any(|line| line == "installed"))
}

fn update_command() -> Command {
    let mut command = shell::as_root("apt-get");
    command.args(["update", "-o", WAIT_FOR_LOCK]);
    command
}

fn install_command(packages: &[String]) -> Command {
    let mut command = shell::as_root("apt-get");
    command.args(["install", "--yes", "--no-remove", "--no-install-recommends", "-o", WAIT_FOR_LOCK]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_candidate_is_none() {
        assert!(has_candidate("llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8\n"));
        assert!(!has_candidate("llvm-99-dev:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
