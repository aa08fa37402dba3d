//! Process 1 of a virtual machine with another kernel: does this kernel take the datapath?
//!
//! In: an initramfs with this program as `/init` and the kernel's modules in `/modules`. Out: one [`line`] a result on the
//! console, which `cargo xtask kernels` reads, then the machine restarts (QEMU ends). As any other process it refuses:
//! it would mount over, and restart, the machine that it runs on. Start at [`run`].

mod frames;
mod machine;
mod trial;
mod verifier;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

/// What the lines begin with that are meant for xtask; the kernel writes to the same console.
pub const PREFIX: &str = "netpol-guest ";

/// Runs everything and restarts the machine.
#[must_use]
pub fn run() -> ExitCode {
    if std::process::id() != 1 {
        tell(&json!({ "error": "this is init of a virtual machine: run `cargo xtask kernels`" }));
        return ExitCode::FAILURE;
    }
    match machine::prepare().and_then(|()| trial()) {
        Ok(()) => tell(&json!({ "done": true })),
        Err(error) => tell(&json!({ "error": format!("{error:#}") })),
    }
    machine::restart()
}

fn trial() -> Result<()> {
    tell(&json!({ "release": machine::release()? }));
    trial::run()
}

/// One result for xtask.
fn tell(result: &Value) {
    let mut console = io::stdout().lock();
    // A console that takes no lines is a boot without a result, which xtask reports.
    let _written = writeln!(console, "\n{PREFIX}{result}").and_then(|()| console.flush());
}
