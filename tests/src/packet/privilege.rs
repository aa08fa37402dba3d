//! Whether the object can be loaded here: as root, with the object built. If not, a developer is told and the test is left
//! out; under CI it fails, so that green never means "did not run".

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// Names the object; `cargo xtask` sets it.
const OBJECT_VARIABLE: &str = "NETPOL_BPF_OBJECT";
/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF by number.
const NEEDED: [(u32, &str); 3] = [(12, "NET_ADMIN"), (38, "PERFMON"), (39, "BPF")];

/// The object, if it can be loaded here. None, having said why, if not.
///
/// # Errors
/// It cannot, and CI is set.
pub fn object_or_skip() -> Result<Option<Vec<u8>>> {
    match object() {
        Ok(object) => Ok(Some(object)),
        Err(why) if std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false") => {
            Err(why.context("this test cannot run, which fails in CI"))
        }
        Err(why) => {
            // Past the test harness, which swallows what passing tests print.
            writeln!(std::io::stderr(), "SKIPPED: {why:#}")?;
            Ok(None)
        }
    }
}

/// The object, if it can be loaded here.
///
/// # Errors
/// Why it cannot.
pub fn object() -> Result<Vec<u8>> {
    let set = effective_capabilities()?;
    for (number, name) in NEEDED {
        if set & (1 << number) == 0 {
            bail!("loading BPF programs needs root or CAP_{name}; run `cargo xtask test packet`");
        }
    }
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/netpol");
    let path = std::env::var_os(OBJECT_VARIABLE).map_or(built, PathBuf::from);
    std::fs::read(&path)
        .with_context(|| format!("no BPF object at {}; build it with `cargo xtask build-ebpf`", path.display()))
}

/// The capabilities in force, as a set of bits.
///
/// # Errors
/// The kernel does not tell.
pub fn effective_capabilities() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read this process's capabilities")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff in the status")?;
    u64::from_str_radix(line.trim(), 16).context("CapEff")
}
