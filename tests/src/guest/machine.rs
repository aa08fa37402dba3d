//! What process 1 has to do before anything else runs: file systems, modules; and how it ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// Where the BPF file system is mounted.
pub(super) const BPFFS: &str = "/bpf";
/// Modules, named so that their order is that in which they load.
const MODULES: &str = "/modules";
/// For the last lines to leave the serial port.
const DRAIN: Duration = Duration::from_millis(200);

/// Mounts what the agent reads and loads the modules.
pub(super) fn prepare() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("bpf", BPFFS)] {
        fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    load_modules()
}

fn load_modules() -> Result<()> {
    if !Path::new(MODULES).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(MODULES).context("cannot list the modules")?;
    let mut modules = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    modules.sort();
    for path in modules {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        finit_module(&file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("cannot load the module {}", path.display()))?;
    }
    Ok(())
}

/// The kernel's release, as `uname -r` prints it.
pub(super) fn release() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    Ok(text.trim().to_owned())
}

/// Ends the machine: QEMU was told not to restart it.
pub(super) fn restart() -> ExitCode {
    thread::sleep(DRAIN);
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        // Process 1 that ends is a kernel panic, and that a restart too.
        Err(_refused) => ExitCode::FAILURE,
    }
}
