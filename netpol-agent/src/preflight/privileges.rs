//! Capabilities of this process, and whether the kernel lets it load programs with them.

use std::fs;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;

use super::Finding;
use super::kernel::{Release, WITHOUT_MEMLOCK};
use crate::problem::chain;

/// Number, name, and what for.
type Capability = (u32, &'static str, &'static str);

const BPF: &str = "bpf";

const NEEDED: [Capability; 3] = [
    (39, "CAP_BPF", "programs and maps cannot be made without it"),
    (12, "CAP_NET_ADMIN", "programs cannot be attached and the node's interfaces not be read without it"),
    (38, "CAP_PERFMON", "the kernel refuses netpol's programs without it (pointer arithmetic)"),
];
const BELOW_5_11: Capability = (24, "CAP_SYS_RESOURCE", "maps count against the limit on locked memory below 5.11");
/// Found, it is more than is needed.
const TOO_MUCH: Capability = (21, "CAP_SYS_ADMIN", "");
/// For these the kernel takes CAP_SYS_ADMIN as well (capability.h: `bpf_capable`, `perfmon_capable`).
const IMPLIED: [&str; 2] = ["CAP_BPF", "CAP_PERFMON"];

pub(super) fn check(proc: &Path, release: Option<&Release>) -> Vec<Finding> {
    match fs::read_to_string(proc.join("self/status")) {
        Ok(status) => judge(&status, release),
        Err(error) => vec![Finding::note("capabilities", format!("they cannot be read: {error}"), "mount /proc")],
    }
}

fn judge(status: &str, release: Option<&Release>) -> Vec<Finding> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()) else {
        return vec![Finding::note("capabilities", "there is no CapEff in the status of this process", "mount /proc")];
    };
    let has = |(number, ..): &Capability| set & (1 << number) != 0;
    let is_old = release.is_some_and(|it| *it < WITHOUT_MEMLOCK);
    let wanted = NEEDED.iter().chain(Some(&BELOW_5_11).filter(|_| is_old));
    let mut findings: Vec<Finding> = wanted
        .map(|it| match (has(it), has(&TOO_MUCH) && IMPLIED.contains(&it.1)) {
            (true, _) => Finding::ok("capabilities", format!("{} is effective", it.1)),
            (false, true) => Finding::ok("capabilities", format!("{} is not, and CAP_SYS_ADMIN does for it", it.1)),
            (false, false) => Finding::fail("capabilities", format!("{} is missing: {}", it.1, it.2), advice(it)),
        })
        .collect();
    if has(&TOO_MUCH) {
        findings.push(Finding::note(
            "capabilities",
            "CAP_SYS_ADMIN is effective, and not needed",
            "drop all capabilities but those above (the chart does)",
        ));
    }
    findings
}

fn advice((number, name, _): &Capability) -> String {
    let value = if *number == BELOW_5_11.0 { " (the chart's value oldKernels)" } else { "" };
    format!(
        "add {name} to the container's securityContext.capabilities{value}; a runtime that does not know it is too old"
    )
}

/// Loads a program of two instructions: capabilities alone do not say that a seccomp profile or a lockdown lets it through.
pub(super) fn check_programs(proc: &Path) -> Finding {
    let is_filtered = fs::read_to_string(proc.join("self/status")).is_ok_and(|status| is_filtered(&status));
    match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Finding::ok(BPF, "the kernel takes programs from this process"),
        Ok(false) => refused("the kernel takes no program for traffic control".to_owned(), is_filtered),
        Err(error) => refused(format!("the kernel refuses a program: {}", chain(&error)), is_filtered),
    }
}

/// True if a seccomp filter is in force.
fn is_filtered(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn refused(found: String, is_filtered: bool) -> Finding {
    let advice = if is_filtered {
        "see the capabilities above; if all are effective, it is the seccomp profile that this container runs under: \
         RuntimeDefault lets bpf(2) through to CAP_BPF from containerd 1.6.9 and docker 23 on, CRI-O's may not; update the runtime, or see \
         \"Runtimes that refuse bpf\" in deploy/README.md"
    } else {
        "see the capabilities above; if all are effective, the kernel lacks CONFIG_BPF_SYSCALL or CONFIG_NET_CLS_BPF, or is \
         locked down (/sys/kernel/security/lockdown)"
    };
    Finding::fail(BPF, found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Standing;

    #[test]
    fn each_capability_is_looked_for_by_itself() {
        let failed = |set: u64, release| {
            let findings = judge(&format!("Name:\tx\nCapEff:\t{set:016x}\n"), Some(&release));
            let failed = findings.into_iter().filter(|it| it.standing == Standing::Fail);
            failed.map(|it| it.found.split(' ').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        let all = 1 << 39 | 1 << 12 | 1 << 38;
        assert_eq!(failed(all, Release(6, 1)), [""; 0]);
        assert_eq!(failed(all, Release(5, 10)), ["CAP_SYS_RESOURCE"]);
        assert_eq!(failed(all | 1 << 24, Release(5, 10)), [""; 0]);
        assert_eq!(failed(all & !(1 << 38), Release(6, 1)), ["CAP_PERFMON"]);
        assert_eq!(failed(0, Release(6, 1)), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        // The kernel asks for CAP_SYS_ADMIN in the place of two of them, and of these only.
        assert_eq!(failed(1 << 21, Release(5, 10)), ["CAP_NET_ADMIN", "CAP_SYS_RESOURCE"]);
        let noted = judge("CapEff: 000001ffffffffff\n", None);
        assert!(noted.iter().any(|it| it.standing == Standing::Note && it.found.contains("CAP_SYS_ADMIN")));
    }
    #[test]
    fn a_refusal_is_put_down_to_seccomp_only_where_a_filter_is_in_force() {
        assert!(is_filtered("NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
        assert!(refused(String::new(), true).advice.contains("1.6.9"));
        assert!(!refused(String::new(), false).advice.contains("seccomp"));
    }
}
