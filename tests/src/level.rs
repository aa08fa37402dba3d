//! Whether this machine can run a test: a test that cannot says why and is skipped, and fails under CI.

use crate::agent::{self, Version};

/// True if namespaces can be made here. Otherwise says why, and fails under CI.
///
/// # Panics
/// Under CI, if not.
#[must_use]
pub fn has_kernel() -> bool {
    nix::unistd::geteuid().is_root() || skip("network namespaces and BPF need root")
}

/// As [`has_kernel`], and the agent is built.
///
/// # Panics
/// Under CI, if not.
#[must_use]
pub fn has_agent() -> bool {
    has_kernel() && agent::binary().map_or_else(|error| skip(&format!("{error:#}")), |_binary| true)
}

/// As [`has_agent`], and containers can be run.
///
/// # Panics
/// Under CI, if not.
#[must_use]
pub fn has_containers() -> bool {
    let runs = || std::process::Command::new("runc").arg("--version").output().is_ok_and(|it| it.status.success());
    has_agent() && (runs() || skip("no runc in PATH: cargo xtask setup installs it"))
}

/// As [`has_agent`], and so is the one with another ABI.
///
/// # Panics
/// Under CI, if not.
#[must_use]
pub fn has_both_agents() -> bool {
    has_agent() && Version::Next.binary().map_or_else(|error| skip(&format!("{error:#}")), |_binary| true)
}

/// True in the full tier: `cargo xtask test --full`.
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os("NETPOL_TEST_FULL").is_some()
}

/// Says why a test cannot run; always false.
///
/// # Panics
/// Under CI.
#[expect(clippy::print_stderr, clippy::panic, reason = "it speaks for a test")]
#[must_use]
pub fn skip(reason: &str) -> bool {
    if std::env::var_os("CI").is_some() {
        panic!("cannot run, which fails under CI: {reason}");
    }
    eprintln!("skipped: {reason}");
    false
}
