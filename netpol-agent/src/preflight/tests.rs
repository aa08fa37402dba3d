//! The whole run on this machine, whatever it is like.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;

#[tokio::test]
async fn everything_is_looked_at_and_told_as_it_is_found() {
    let options = Options {
        bpffs: PathBuf::from("/nonexistent/bpf"),
        mark_mask: 0xff00_0000,
        cni_conf_dir: PathBuf::from("/nonexistent/conf"),
        cni_bin_dir: PathBuf::from("/nonexistent/bin"),
        proc: PathBuf::from("/proc"),
    };
    let mut told = Vec::new();
    let findings = run(&options, |finding| told.push(finding.clone())).await;
    assert_eq!(told, findings);
    let checks: BTreeSet<&str> = findings.iter().map(|it| it.check).collect();
    for check in [
        "kernel",
        "capabilities",
        "bpf",
        "bpffs",
        "cni conf dir",
        "cni bin dir",
        "cni configuration",
        "packet marks",
        "routing rules",
        "bridges",
        "kube-proxy",
        "other enforcers",
    ] {
        assert!(checks.contains(check), "{check}: {checks:?}");
    }
    assert!(findings.iter().any(|it| it.check == "bpffs" && it.standing == Standing::Fail));
    // Whoever is not told what to do is told that all is well.
    assert!(findings.iter().all(|it| (it.standing == Standing::Ok) == it.advice.is_empty()), "{findings:?}");
}
