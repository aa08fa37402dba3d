//! What the agent may do: root by number, with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and no way to gain more.
//!
//! The bounding set is emptied of all else before the agent's binary is run, so that the kernel itself computes the set a
//! container runtime would give. If the agent needs anything more, every test of the netns level fails.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::netns::Namespace;

const CAP_NET_ADMIN: u32 = 12;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// Numbers of the capabilities that are kept.
pub const KEPT: [u32; 3] = [CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF];

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// As `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// As `struct __user_cap_data_struct`, of which version 3 has two: capabilities 0 to 31, and 32 to 63.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Lines of `/proc/PID/status` of a process that is confined as [`confine`] says.
pub(super) fn expected_status() -> [(&'static str, String); 5] {
    let kept = format!("{:016x}", KEPT.iter().fold(0_u64, |set, capability| set | 1 << capability));
    let none = format!("{:016x}", 0);
    [("CapInh", none.clone()), ("CapPrm", kept.clone()), ("CapEff", kept.clone()), ("CapBnd", kept), ("CapAmb", none)]
}

/// Has the command run with the kept capabilities alone, in this namespace if one is given, in a process group of its own (Ctrl-C is
/// for the harness to judge), and end with the thread that started it.
///
/// # Errors
/// The kernel does not say which capabilities there are.
pub fn confine(command: &mut Command, namespace: Option<&Namespace>) -> Result<()> {
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .context("cannot read which capabilities there are")?
        .trim_end()
        .parse()
        .context("the number of the last capability")?;
    let namespace = namespace.map(|namespace| namespace.fd().as_raw_fd());
    let enter = move || Ok(become_agent(namespace, last)?);
    command.process_group(0);
    // SAFETY: between fork and exec only system calls are made, without locks or allocation: see `become_agent`.
    #[expect(unsafe_code, reason = "the child must change before it becomes the agent")]
    unsafe {
        command.pre_exec(enter);
    }
    Ok(())
}

/// System calls only: this runs in a forked child of a process with threads.
fn become_agent(namespace: Option<i32>, last_capability: u32) -> Result<(), Errno> {
    // SAFETY: plain system calls; the structures passed to capset outlive the call and are as the kernel declares them.
    #[expect(unsafe_code, reason = "no safe wrapper drops capabilities")]
    unsafe {
        if let Some(namespace) = namespace {
            Errno::result(libc::setns(namespace, libc::CLONE_NEWNET))?;
        }
        Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        Errno::result(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        for capability in (0..=last_capability).filter(|it| !KEPT.contains(it)) {
            Errno::result(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))?;
        }
        // Nothing inherited: for root the new permitted set is the inheritable one or the bounding one, joined.
        let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        let mut data = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
        Errno::result(libc::syscall(libc::SYS_capget, &raw const header, &raw mut data))?;
        for word in &mut data {
            word.inheritable = 0;
        }
        Errno::result(libc::syscall(libc::SYS_capset, &raw const header, &raw const data))?;
    }
    Ok(())
}
