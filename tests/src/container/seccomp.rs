//! `RuntimeDefault`: what containerd's default seccomp profile leaves to a container with CAP_BPF, CAP_NET_ADMIN and
//! CAP_PERFMON and no other capability, as data for a container runtime.
//!
//! Written as what is refused, as that is what a program can run into. Where containerd's versions, docker's and CRI-O's differ,
//! the strictest counts (io_uring is refused since containerd 2.0, vsock by docker). Containerd before 1.6.9 and docker
//! before 23 do not have the exception for CAP_BPF: there `bpf` is refused too, and no agent without CAP_SYS_ADMIN can run.
//! System calls newer than the runtime's libseccomp cannot be named to it, so they are not refused here.

use serde_json::{Value, json};

/// Groups of what is refused, by what they are about.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "mounts and roots",
        &[
            "chroot",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "umount",
            "umount2",
        ],
    ),
    ("namespaces (see `clone` below)", &["setns", "unshare"]),
    ("other processes", &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"]),
    ("keys: they are not kept apart by containers", &["add_key", "keyctl", "request_key"]),
    ("files by handle, past the root", &["name_to_handle_at", "open_by_handle_at", "lookup_dcookie"]),
    ("fanotify's privileged side", &["fanotify_init"]),
    (
        "the machine",
        &[
            "acct",
            "clock_settime",
            "create_module",
            "delete_module",
            "finit_module",
            "init_module",
            "ioperm",
            "iopl",
            "kexec_file_load",
            "kexec_load",
            "nfsservctl",
            "query_module",
            "quotactl",
            "quotactl_fd",
            "reboot",
            "setdomainname",
            "sethostname",
            "settimeofday",
            "swapoff",
            "swapon",
            "sysfs",
            "syslog",
            "_sysctl",
            "uselib",
            "ustat",
            "vhangup",
        ],
    ),
    (
        "memory of a node or of others",
        &["get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"],
    ),
    ("what attackers of kernels like", &["io_uring_enter", "io_uring_register", "io_uring_setup", "userfaultfd"]),
    // The profile lets some execution domains through; the agent has no reason to ask at all.
    ("execution domains", &["personality"]),
    ("protection keys", &["pkey_alloc", "pkey_free", "pkey_mprotect"]),
];

/// `CLONE_NEW*`: each makes a namespace.
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
const AF_VSOCK: u64 = 40;

/// The profile, in the form of the OCI runtime specification; `more` is refused as well.
#[must_use]
pub fn runtime_default(more: &[&str]) -> Value {
    let names: Vec<&str> =
        REFUSED.iter().flat_map(|(_about, names)| names.iter().copied()).chain(more.iter().copied()).collect();
    let mut rules = vec![
        refuse(&names, json!([])),
        // With ENOSYS: C libraries fall back to `clone` then, whose flags can be looked at.
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
        refuse(&["socket"], json!([{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_EQ"}])),
    ];
    for flag in NAMESPACE_FLAGS {
        rules.push(refuse(
            &["clone"],
            json!([{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}]),
        ));
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

fn refuse(names: &[&str], arguments: Value) -> Value {
    json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": arguments})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For runtimes whose own profile refuses more: what users give the agent is what it is tested under.
    #[test]
    fn the_profile_for_users_is_this_one() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/seccomp/netpol.json");
        let made = serde_json::to_string_pretty(&runtime_default(&[])).unwrap() + "\n";
        if std::env::var_os("NETPOL_BLESS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == made, "{}: NETPOL_BLESS=1 cargo test -p netpol-tests --lib seccomp", path.display());
    }
}
