//! What must hold before a commit, quickest first.

use anyhow::Result;

use crate::{build, chart, setup, shell, tidy};

/// Runs everything, and says at the end what failed.
pub(crate) fn run() -> Result<bool> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            shell::say(&format!("{name}: {error:#}"));
            failed.push(name);
        }
    };
    step("fmt", shell::run(shell::cargo().args(["fmt", "--all", "--check"])));
    step("tidy", tidy::run().and_then(|good| if good { Ok(()) } else { anyhow::bail!("rules are broken") }));
    step("clippy", shell::run(shell::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"])));
    step(
        "chart",
        chart::run(chart::Options::default()).and_then(|good| if good { Ok(()) } else { anyhow::bail!("see above") }),
    );
    match setup::missing() {
        Ok(missing) if missing.is_empty() => step("clippy (BPF)", build::ebpf_clippy()),
        Ok(_) | Err(_) => shell::say("clippy (BPF): left out, as the BPF toolchain is not here: cargo xtask setup"),
    }
    if shell::cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        step(
            "deny",
            shell::run(shell::cargo().args(["deny", "--log-level", "error", "check", "licenses", "bans", "sources"])),
        );
    } else {
        shell::say("deny: left out, as cargo-deny is not here: cargo install cargo-deny --locked");
    }
    if failed.is_empty() {
        shell::say("check: all good");
    } else {
        shell::say(&format!("check: failed: {}", failed.join(", ")));
    }
    Ok(failed.is_empty())
}
