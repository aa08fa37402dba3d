//! How many programs are on an interface's TCX hooks: `tc` does not list them.

use std::io;

use anyhow::{Context as _, Result};

// Numbers of include/uapi/linux/bpf.h.
const BPF_PROG_QUERY: libc::c_long = 16;
const HOOKS: [(u32, &str); 2] = [(46, "ingress"), (47, "egress")];

/// Member `query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
    rest: [u64; 4],
}

/// A line for each hook of an interface in this namespace that has programs.
pub(super) fn programs(ifindex: u32) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (attach_type, name) in HOOKS {
        let mut query = Query { ifindex, attach_type, ..Query::default() };
        // SAFETY: `query` is a live prefix of `union bpf_attr` of the size that is given; without room for ids the kernel
        // fills in their count only.
        #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for this command")]
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if result == 0 => {}
            // Nothing was ever attached; or the kernel has no TCX.
            Some(libc::ENOENT | libc::EINVAL) => continue,
            _ => return Err(error).with_context(|| format!("cannot list the programs of interface {ifindex}")),
        }
        if query.count > 0 {
            lines.push(format!("{name}: {} programs", query.count));
        }
    }
    Ok(lines)
}
