//! QEMU: found, installed or unpacked; and one bounded boot.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{setup, shell};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Enough for every map at its full size, twice.
const MEMORY: &str = "1024";
/// As nice to other work as it can be and still get on.
const NICE: &str = "10";

/// A QEMU that runs.
pub(super) struct Emulator {
    program: PathBuf,
    /// Where it was unpacked, if it is not installed.
    unpacked: Option<PathBuf>,
}

/// What to boot.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Where the console goes.
    pub(super) log: &'a Path,
    pub(super) limit: Duration,
}

/// What came of a boot.
pub(super) struct Console {
    pub(super) text: String,
    pub(super) time: Duration,
}

impl Emulator {
    /// The one in `PATH`; else installs it; else, where that would remove something, unpacks it below `directory`.
    pub(super) fn find_or_install(directory: &Path) -> Result<Self> {
        let unpacked = directory.join("qemu");
        if let Some(found) = Self::find(&unpacked) {
            return Ok(found);
        }
        shell::say(&format!("{PROGRAM} is missing, and only this command needs it"));
        let packages = [PACKAGE.to_owned()];
        if let Err(error) = setup::install_packages(&packages) {
            shell::say(&format!(
                "{PACKAGE} cannot be installed here ({error:#}): unpacking it to {}",
                unpacked.display()
            ));
            unpack(&unpacked)?;
        }
        Self::find(&unpacked).with_context(|| format!("no {PROGRAM} that runs; install Debian's {PACKAGE}"))
    }

    fn find(unpacked: &Path) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = shell::find(PROGRAM, &path).map(|program| Self { program, unpacked: None });
        let own = Self { program: unpacked.join("usr/bin").join(PROGRAM), unpacked: Some(unpacked.to_owned()) };
        [installed, Some(own)].into_iter().flatten().find(Self::runs)
    }

    fn runs(&self) -> bool {
        shell::output(self.command().arg("--version")).is_ok()
    }

    fn command(&self) -> Command {
        let Some(root) = &self.unpacked else { return Command::new(&self.program) };
        let mut command = Command::new(&self.program);
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
        let paths: Vec<String> = libraries.iter().map(|path| path.display().to_string()).collect();
        command
            .env("LD_LIBRARY_PATH", paths.join(":"))
            .env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(data));
        }
        command
    }

    /// Boots a machine and waits for its end.
    pub(super) fn boot(&self, machine: &Machine<'_>) -> Result<Console> {
        let log = File::create(machine.log).with_context(|| format!("cannot write {}", machine.log.display()))?;
        let limit = machine.limit.as_secs();
        let mut qemu = self.command();
        // Emulated: KVM is often not there, and the verifier does not care. Without cx16, as a 6.12 kernel double-faulted.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "1", "-m", MEMORY]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        qemu.arg("-kernel").arg(machine.kernel).arg("-initrd").arg(machine.initramfs);
        // A panic restarts at once, which ends QEMU; the kernel's chatter stays away from our lines.
        qemu.args(["-append", "console=ttyS0 loglevel=3 panic=-1"]);
        // Bounded even if we are killed meanwhile.
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--signal=KILL", &limit.to_string(), "nice", "-n", NICE]);
        command.arg(qemu.get_program()).args(qemu.get_args());
        command.envs(qemu.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let start = Instant::now();
        let status = command.status().with_context(|| format!("cannot run {}", shell::line_of(&command)))?;
        let time = start.elapsed();
        if !status.success() {
            let why = if time >= machine.limit { format!("not done after {limit} s") } else { status.to_string() };
            bail!("QEMU: {why}; see {}", machine.log.display());
        }
        Ok(Console { text: String::from_utf8_lossy(&fs::read(machine.log)?).into_owned(), time })
    }
}

/// Fetches the package with what it depends on and is not installed, and unpacks all of it: installed is nothing.
fn unpack(to: &Path) -> Result<()> {
    let archives = to.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let mut fetch = shell::as_root("apt-get");
    fetch.args(["install", "--yes", "--quiet=2", "--download-only", "--no-install-recommends", PACKAGE]);
    fetch.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display()));
    fetch.args(["-o", "APT::Sandbox::User=root"]);
    shell::run(&mut fetch)?;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            shell::output(Command::new("dpkg-deb").arg("--extract").arg(path).arg(to))?;
        }
    }
    fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))
}
