//! Files that are no manifests, or are hostile.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::{ManifestSource, SourceError};
use super::{TempDir, load, model_lines, problem_lines};

const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";
const GOOD_LINE: &str = "Namespace good [kubernetes.io/metadata.name=good]";

/// The one problem of a directory whose other file is good and is taken.
fn beside_a_good_file(name: &str, content: impl AsRef<[u8]>) -> String {
    let dir = TempDir::new();
    dir.write("good.yaml", GOOD);
    dir.write(name, content);
    let (source, changes) = load(&dir);
    assert_eq!(model_lines(&source), [GOOD_LINE]);
    let lines = problem_lines(&changes);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines.concat()
}

#[test]
fn five_megabytes_of_junk_are_one_line() {
    assert_eq!(
        beside_a_good_file("junk.yaml", vec![b'x'; 5_000_000]),
        "junk.yaml: 5000000 bytes are more than the 4194304 that a manifest may have; split the file; \
         effect: nothing is taken from this file"
    );
}

#[test]
fn junk_within_the_limit_is_one_line() {
    let line = beside_a_good_file("junk.yaml", "[{&*%".repeat(800_000));
    assert!(line.starts_with("junk.yaml:1: cannot be parsed: "), "{line}");
    assert!(line.len() < 400, "{line}");
}

#[test]
fn text_that_is_not_utf8_is_one_line() {
    assert_eq!(
        beside_a_good_file("latin1.yaml", b"name: caf\xe9\n"),
        "latin1.yaml: not UTF-8 (byte 9); save it as UTF-8; effect: nothing is taken from this file"
    );
}

#[test]
fn zero_bytes_are_one_line() {
    let line = beside_a_good_file("zero.yaml", vec![0_u8; 1000]);
    assert!(line.starts_with("zero.yaml:1: cannot be parsed: "), "{line}");
}

#[test]
fn an_alias_bomb_does_not_hang() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let begin = Instant::now();
    let line = beside_a_good_file("bomb.yaml", bomb);
    assert!(line.starts_with("bomb.yaml:"), "{line}");
    assert!(line.contains("cannot be parsed"), "{line}");
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
}

#[test]
fn deep_nesting_is_refused() {
    let line = beside_a_good_file("deep.yaml", format!("a: {}{}\n", "[".repeat(50_000), "]".repeat(50_000)));
    assert!(line.starts_with("deep.yaml:1: cannot be parsed: "), "{line}");
    let line = beside_a_good_file("deep.json", "[".repeat(100_000));
    assert!(line.starts_with("deep.json:1: cannot be parsed: recursion limit exceeded"), "{line}");
}

#[test]
fn a_thousand_broken_documents_are_a_hundred_lines_and_a_count() {
    let dir = TempDir::new();
    dir.write("many.yaml", "---\nx\n".repeat(1000));
    let lines = problem_lines(&load(&dir).1);
    assert_eq!(lines.len(), 101);
    assert_eq!(
        lines.last().unwrap(),
        "many.yaml: 900 more problems in this file are not shown; effect: of the same kinds as those shown"
    );
}

#[test]
fn a_key_twice_in_json_is_refused() {
    assert_eq!(
        beside_a_good_file("twice.json", "{\n  \"kind\": \"Pod\",\n  \"kind\": \"Namespace\"\n}\n"),
        "twice.json:3: cannot be parsed: duplicate key \"kind\"; effect: nothing is taken from this document"
    );
}

#[test]
fn json_problems_have_lines_too() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\n\t\t\"name\": \"x\",\n\t\t\
                \"labels\": {\n\t\t\t\"a\\/b\": 5\n\t\t}\n\t}\n}\n";
    assert_eq!(
        beside_a_good_file("pod.json", text),
        "pod.json:7: Pod default/x: metadata.labels[\"a/b\"]: invalid type: integer `5`, expected a string: quote it; \
         effect: the pod is not known: no selector matches it and no policy selects it"
    );
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let dir = TempDir::new();
    dir.write("good.yaml", GOOD);
    std::fs::create_dir(dir.path().join("dir.yaml")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo.yaml"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let (source, changes) = load(&dir);
    assert_eq!(model_lines(&source), [GOOD_LINE]);
    assert_eq!(
        problem_lines(&changes),
        [
            "dir.yaml: not a regular file; remove or rename it; effect: nothing is taken from this file",
            "fifo.yaml: not a regular file; remove or rename it; effect: nothing is taken from this file",
        ]
    );
}

#[test]
fn only_manifests_are_read_and_not_hidden_ones() {
    let dir = TempDir::new();
    for name in [".hidden.yaml", "..data", "README.md", "old.yaml.bak", "noextension", "#good.yaml#", "good.yaml~"] {
        dir.write(name, "junk: [");
    }
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    dir.write("sub/inner.yaml", "junk: [");
    for (name, namespace) in [("a.yaml", "a"), ("b.yml", "b"), ("c.YAML", "c")] {
        dir.write(name, GOOD.replace("good", namespace));
    }
    dir.write("d.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "d"}}"#);
    let (source, changes) = load(&dir);
    assert_eq!(problem_lines(&changes), [""; 0]);
    assert_eq!(source.objects().count(), 4);
}

#[test]
fn a_file_name_cannot_break_the_line() {
    let dir = TempDir::new();
    let name = std::ffi::OsStr::from_bytes(b"evil\n\x1b[31m\xff.yaml");
    std::fs::write(dir.path().join(name), "x").unwrap();
    let lines = problem_lines(&load(&dir).1);
    assert_eq!(lines.len(), 1);
    assert!(!lines.concat().contains(char::is_control), "{lines:?}");
}

#[test]
fn a_mounted_config_map_is_read_through_its_links() {
    let dir = TempDir::new();
    std::fs::create_dir(dir.path().join("..2024_01")).unwrap();
    dir.write("..2024_01/good.yaml", GOOD);
    std::os::unix::fs::symlink("..2024_01", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/good.yaml", dir.path().join("good.yaml")).unwrap();
    std::os::unix::fs::symlink("..data/gone.yaml", dir.path().join("gone.yaml")).unwrap();
    let (source, changes) = load(&dir);
    assert_eq!(model_lines(&source), [GOOD_LINE]);
    assert_eq!(problem_lines(&changes), [""; 0], "a link to nothing is no file");
}

#[test]
fn a_missing_directory_is_an_error_at_start() {
    let error = ManifestSource::load(Path::new("/nowhere/manifests")).unwrap_err();
    assert!(matches!(error, SourceError::Directory { .. }));
    assert_eq!(
        error.to_string(),
        "cannot read manifests from /nowhere/manifests: No such file or directory (os error 2); give a directory that exists and may be read"
    );
}
