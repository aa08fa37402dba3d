//! Every case of `corpus/*.txt`: a manifest, the exact problem lines it gives, and the objects that come of it.
//!
//! A case is `=== name`, the manifest, `=== gives`, the lines. With `NETPOL_BLESS=1` the lines are written anew: read the
//! difference before committing it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::{TempDir, load, model_lines};
use crate::problem::Severity;

const GIVES: &str = "=== gives";

struct Case<'t> {
    name: &'t str,
    manifest: &'t str,
    gives: &'t str,
}

fn cases(text: &str) -> Vec<Case<'_>> {
    let parts = text.split("=== case ").skip(1);
    let case = |part| {
        let (name, rest): (&str, &str) = str::split_once(part, '\n').unwrap();
        let (manifest, gives) = rest.split_once(GIVES).unwrap();
        Case { name, manifest, gives: gives.trim() }
    };
    parts.map(case).collect()
}

/// What reading the manifest as the only file of a directory gives.
fn outcome(manifest: &str) -> String {
    let dir = TempDir::new();
    dir.write("case.yaml", manifest);
    let (source, changes) = load(&dir);
    let mut text = String::new();
    for problem in &changes.problems {
        let severity = match problem.severity {
            Severity::Note => "note",
            Severity::Refused => "refused",
        };
        assert!(!problem.message.is_empty() && !problem.effect.is_empty() && !problem.origin.is_empty(), "{problem:?}");
        let line = format!("{severity}: {problem}");
        assert!(!line.contains(char::is_control), "not one line: {line:?}");
        writeln!(text, "{line}").unwrap();
    }
    for line in model_lines(&source) {
        writeln!(text, "{line}").unwrap();
    }
    text
}

fn check(file: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/source/tests/corpus").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let cases = cases(&text);
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    let manifests: BTreeSet<&str> = cases.iter().map(|case| case.manifest).collect();
    assert_eq!(manifests.len(), cases.len(), "two cases have one manifest");
    let outcomes: Vec<String> = cases.iter().map(|case| outcome(case.manifest)).collect();
    if std::env::var_os("NETPOL_BLESS").is_some() {
        let blessed = cases.iter().zip(&outcomes);
        let blessed = blessed.map(|(case, gives)| format!("=== case {}\n{}{GIVES}\n{gives}", case.name, case.manifest));
        std::fs::write(&path, blessed.collect::<Vec<_>>().join("\n")).unwrap();
        return cases.len();
    }
    let differing = cases.iter().zip(&outcomes).filter(|(case, gives)| case.gives != gives.trim());
    let report: Vec<String> =
        differing.map(|(case, gives)| format!("{}\n  expected:\n{}\n  got:\n{gives}", case.name, case.gives)).collect();
    assert!(report.is_empty(), "{file}, {} cases:\n{}", report.len(), report.join("\n"));
    cases.len()
}

#[test]
fn a_broken_policy_is_narrowed_and_says_so_in_one_line() {
    assert!(check("policies.txt") >= 40);
}

#[test]
fn a_broken_pod_namespace_or_service_says_so_in_one_line() {
    assert!(check("objects.txt") >= 15);
}

#[test]
fn a_broken_document_does_not_take_the_others_with_it() {
    assert!(check("documents.txt") >= 10);
}

#[test]
fn valid_manifests_mean_what_kubernetes_says_they_mean() {
    assert!(check("valid.txt") >= 15);
}
