//! What stays in force when files change, and what is said about it.

use super::{TempDir, event_lines, load, model_lines, problem_lines};

const KEPT: &str = "this version is not taken; the last valid one stays in force";

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

fn pod(name: &str, address: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {address}}}\n")
}

fn policy(name: &str, spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

const OPEN: &str = "{podSelector: {}, ingress: [{}]}";
const BROKEN: &str = "{podSelector: {}, ingress: [{from: [{}]}]}";
const IN_FORCE: &str = "NetworkPolicy default/p selects {}; ingress [everyone: everything]; egress not isolated";
const NARROWED: &str = "NetworkPolicy default/p selects {}; ingress [nobody: everything]; egress not isolated";
const EMPTY_PEER: &str = "NetworkPolicy default/p: spec.ingress[0].from[0]: empty peer; use podSelector, \
                          namespaceSelector or ipBlock, or leave out the list for everyone; effect: ";

#[test]
fn a_reload_tells_only_what_differs() {
    let dir = TempDir::new();
    dir.write("a.yaml", [namespace("one", "a: b"), pod("x", "10.0.0.1")].join("---\n"));
    dir.write("b.yaml", policy("p", OPEN));
    let (mut source, changes) = load(&dir);
    assert_eq!(event_lines(&changes), ["+ NetworkPolicy default/p", "+ Namespace one", "+ Pod default/x"]);
    assert_eq!(event_lines(&source.reload()), [""; 0]);
    dir.write("a.yaml", [namespace("one", "a: c"), pod("x", "10.0.0.1")].join("---\n# moved\n"));
    assert_eq!(event_lines(&source.reload()), ["+ Namespace one"]);
}

#[test]
fn what_comes_is_told_before_what_goes_and_policies_come_first_and_go_last() {
    let dir = TempDir::new();
    dir.write("a.yaml", [policy("old", OPEN), pod("x", "10.0.0.1"), namespace("one", "")].join("---\n"));
    let (mut source, _) = load(&dir);
    dir.write("a.yaml", [pod("other", "10.0.0.2"), namespace("two", ""), policy("new", OPEN)].join("---\n"));
    assert_eq!(
        event_lines(&source.reload()),
        [
            "+ NetworkPolicy default/new",
            "+ Namespace two",
            "+ Pod default/other",
            "- Pod default/x",
            "- Namespace one",
            "- NetworkPolicy default/old",
        ]
    );
}

#[test]
fn an_invalid_update_leaves_the_last_valid_version_in_force() {
    let dir = TempDir::new();
    dir.write("p.yaml", policy("p", OPEN));
    let (mut source, _) = load(&dir);
    dir.write("p.yaml", policy("p", BROKEN));
    let changes = source.reload();
    assert_eq!(event_lines(&changes), [""; 0]);
    assert_eq!(problem_lines(&changes), [format!("p.yaml:4: {EMPTY_PEER}{KEPT}")]);
    assert_eq!(model_lines(&source), [IN_FORCE]);
    assert_eq!(problem_lines(&source.reload()).len(), 1, "a problem is told until it is mended");
    dir.write("p.yaml", policy("p", "{podSelector: {}}"));
    let changes = source.reload();
    assert_eq!(event_lines(&changes), ["+ NetworkPolicy default/p"]);
    assert_eq!(problem_lines(&changes), [""; 0]);
}

#[test]
fn a_policy_that_was_never_valid_is_narrowed_and_narrowed_again() {
    let dir = TempDir::new();
    dir.write("p.yaml", policy("p", BROKEN));
    let (mut source, changes) = load(&dir);
    assert_eq!(problem_lines(&changes), [format!("p.yaml:4: {EMPTY_PEER}this peer matches nobody")]);
    assert_eq!(model_lines(&source), [NARROWED]);
    dir.write("p.yaml", policy("p", "{podSelecter: {}}"));
    assert_eq!(event_lines(&source.reload()), ["+ NetworkPolicy default/p"]);
    assert_eq!(model_lines(&source), ["NetworkPolicy default/p selects {}; ingress []; egress []"]);
    dir.write("p.yaml", policy("p", OPEN));
    source.reload();
    assert_eq!(model_lines(&source), [IN_FORCE]);
}

#[test]
fn a_note_does_not_hold_an_update_back() {
    let dir = TempDir::new();
    dir.write("p.yaml", policy("p", "{podSelector: {}}"));
    let (mut source, _) = load(&dir);
    dir.write("p.yaml", policy("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]}"));
    assert_eq!(event_lines(&source.reload()), ["+ NetworkPolicy default/p"]);
    assert_eq!(
        model_lines(&source),
        ["NetworkPolicy default/p selects {}; ingress [10.0.0.0/8: everything]; egress not isolated"]
    );
}

#[test]
fn an_invalid_update_of_a_pod_leaves_the_pod_as_it_was() {
    let dir = TempDir::new();
    dir.write("x.yaml", pod("x", "10.0.0.1"));
    let (mut source, _) = load(&dir);
    for broken in [pod("x", "10.0.0.500"), pod("x", "[10.0.0.2]"), pod("x", "10.0.0.2, podIps: []")] {
        dir.write("x.yaml", broken);
        let changes = source.reload();
        assert_eq!(event_lines(&changes), [""; 0]);
        assert_eq!(model_lines(&source), ["Pod default/x [] at [10.0.0.1] ports []"]);
        assert!(problem_lines(&changes).concat().ends_with(KEPT), "{:?}", changes.problems);
    }
}

#[test]
fn a_file_that_cannot_be_parsed_or_read_keeps_its_objects() {
    let dir = TempDir::new();
    let good = [policy("p", OPEN), namespace("one", "")].join("---\n");
    dir.write("p.yaml", &good);
    let (mut source, _) = load(&dir);
    let told = "what was last read from this file stays in force: Namespace one, NetworkPolicy default/p";
    let broken: [(&[u8], &str); 6] = [
        (b"", "p.yaml: the file is empty; delete it to take its objects out of force"),
        (b"# all gone\n", "p.yaml: the file is empty; delete it to take its objects out of force"),
        (b"\xff", "p.yaml: not UTF-8 (byte 0); save it as UTF-8"),
        (b"a: [", "p.yaml:1: cannot be parsed: unclosed bracket '['"),
        (b"hello", "p.yaml:1: \"hello\" is no object; write a mapping with apiVersion, kind and metadata"),
        (
            &[b'#'; 5_000_000],
            "p.yaml: 5000000 bytes are more than the 4194304 that a manifest may have; split the file",
        ),
    ];
    for (content, message) in broken {
        dir.write("p.yaml", content);
        let changes = source.reload();
        assert_eq!(event_lines(&changes), [""; 0]);
        assert_eq!(problem_lines(&changes), [format!("{message}; effect: {told}")]);
    }
    assert_eq!(source.objects().count(), 2);
    dir.remove("p.yaml");
    std::fs::create_dir(dir.path().join("p.yaml")).unwrap();
    assert_eq!(event_lines(&source.reload()), [""; 0]);
    std::fs::remove_dir(dir.path().join("p.yaml")).unwrap();
    assert_eq!(event_lines(&source.reload()), ["- Namespace one", "- NetworkPolicy default/p"]);
}

#[test]
fn a_broken_document_keeps_what_is_missing_and_takes_what_is_there() {
    let dir = TempDir::new();
    dir.write("a.yaml", [policy("p", OPEN), policy("q", OPEN), namespace("one", "")].join("---\n"));
    let (mut source, _) = load(&dir);
    dir.write("a.yaml", ["kind: [\n".to_owned(), policy("q", "{podSelector: {}}"), namespace("two", "")].join("---\n"));
    let changes = source.reload();
    assert_eq!(event_lines(&changes), ["+ NetworkPolicy default/q", "+ Namespace two"]);
    assert_eq!(
        problem_lines(&changes),
        ["a.yaml:1 (document 1): cannot be parsed: unclosed bracket '['; \
          effect: what was last read from this file stays in force: Namespace one, NetworkPolicy default/p"]
    );
    dir.write("a.yaml", [policy("q", "{podSelector: {}}"), namespace("two", "")].join("---\n"));
    assert_eq!(event_lines(&source.reload()), ["- Namespace one", "- NetworkPolicy default/p"]);
}

#[test]
fn a_misspelt_kind_keeps_only_the_object_of_that_name() {
    let dir = TempDir::new();
    dir.write("a.yaml", [policy("p", OPEN), policy("q", OPEN)].join("---\n"));
    let (mut source, _) = load(&dir);
    dir.write("a.yaml", policy("p", OPEN).replace("NetworkPolicy", "NetworkPolcy"));
    let changes = source.reload();
    assert_eq!(event_lines(&changes), ["- NetworkPolicy default/q"]);
    assert_eq!(
        problem_lines(&changes),
        ["a.yaml:2: NetworkPolcy p: kind: unknown kind \"NetworkPolcy\" (did you mean \"NetworkPolicy\"?); \
          effect: what was last read from this file stays in force: NetworkPolicy default/p"]
    );
}

#[test]
fn a_policy_whose_name_or_version_breaks_stays_in_force() {
    let dir = TempDir::new();
    dir.write("p.yaml", policy("p", OPEN));
    let (mut source, _) = load(&dir);
    let good = policy("p", OPEN);
    for broken in [
        good.replace("name: p", "name: 5"),
        good.replace("name: p", "nmae: p"),
        good.replace("name: p", "name: p, namespace: UPPER"),
        good.replace("networking.k8s.io/v1", "networking.k8s.io/v2"),
        good.replace("apiVersion:", "apiVersoin:"),
        good.replace("kind:", "kine:"),
    ] {
        dir.write("p.yaml", &broken);
        assert_eq!(event_lines(&source.reload()), [""; 0], "{broken}");
        assert_eq!(model_lines(&source), [IN_FORCE], "{broken}");
    }
}

#[test]
fn the_first_of_two_objects_of_a_name_counts_until_it_goes() {
    let dir = TempDir::new();
    dir.write("b.yaml", policy("p", OPEN));
    let (mut source, _) = load(&dir);
    dir.write("a.yaml", policy("p", "{podSelector: {}}"));
    let changes = source.reload();
    assert_eq!(event_lines(&changes), ["+ NetworkPolicy default/p"]);
    assert_eq!(
        problem_lines(&changes),
        ["b.yaml:1: NetworkPolicy default/p: already defined in a.yaml:1; remove one of them; \
          effect: the one in a.yaml:1 is in force"]
    );
    assert_eq!(event_lines(&source.reload()), [""; 0]);
    dir.remove("a.yaml");
    assert_eq!(event_lines(&source.reload()), ["+ NetworkPolicy default/p"]);
    assert_eq!(model_lines(&source), [IN_FORCE]);
}

#[test]
fn an_object_that_moves_to_another_file_does_not_go() {
    let dir = TempDir::new();
    dir.write("a.yaml", policy("p", OPEN));
    let (mut source, _) = load(&dir);
    std::fs::rename(dir.path().join("a.yaml"), dir.path().join("z.yaml")).unwrap();
    assert_eq!(event_lines(&source.reload()), [""; 0]);
    dir.remove("z.yaml");
    dir.write("y.yaml", policy("p", BROKEN));
    assert_eq!(event_lines(&source.reload()), [""; 0], "moved and broken at once: the valid version stays");
    dir.remove("y.yaml");
    assert_eq!(event_lines(&source.reload()), ["- NetworkPolicy default/p"]);
}

#[test]
fn a_directory_that_vanishes_changes_nothing_until_it_is_back() {
    let dir = TempDir::new();
    dir.write("p.yaml", policy("p", OPEN));
    dir.write("q.yaml", policy("q", BROKEN));
    let (mut source, changes) = load(&dir);
    let away = dir.path().with_extension("away");
    std::fs::rename(dir.path(), &away).unwrap();
    let gone = source.reload();
    assert_eq!(event_lines(&gone), [""; 0]);
    let lines = problem_lines(&gone);
    assert_eq!(
        lines.first().unwrap(),
        &format!(
            "{}: the directory cannot be read: No such file or directory (os error 2); \
             effect: what was last read from it stays in force",
            dir.path().display()
        )
    );
    assert_eq!(lines.get(1..).unwrap(), problem_lines(&changes));
    std::fs::rename(&away, dir.path()).unwrap();
    assert_eq!(event_lines(&source.reload()), [""; 0]);
    dir.remove("q.yaml");
    assert_eq!(event_lines(&source.reload()), ["- NetworkPolicy default/q"]);
}

#[test]
fn reloading_step_by_step_ends_where_a_fresh_load_does() {
    let dir = TempDir::new();
    let (mut source, _) = load(&dir);
    let steps: [(&str, String); 6] = [
        ("a.yaml", [policy("p", OPEN), pod("x", "10.0.0.1")].join("---\n")),
        ("b.yaml", [policy("p", BROKEN), namespace("one", "")].join("---\n")),
        ("a.yaml", pod("x", "10.0.0.2")),
        ("c.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one"}}"#.to_owned()),
        ("b.yaml", [policy("p", OPEN), namespace("two", "")].join("---\n")),
        ("a.yaml", pod("x", "10.0.0.3")),
    ];
    for (name, content) in steps {
        dir.write(name, content);
        source.reload();
    }
    assert_eq!(model_lines(&source), model_lines(&load(&dir).0));
}

#[test]
fn a_file_that_comes_and_goes_while_it_is_read_does_no_harm() {
    let dir = TempDir::new();
    dir.write("good.yaml", policy("p", OPEN));
    let (mut source, _) = load(&dir);
    let path = dir.path().join("flicker.yaml");
    let text = policy("q", OPEN);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..500 {
                std::fs::write(&path, &text).unwrap();
                std::fs::remove_file(&path).unwrap();
            }
        });
        while !writer.is_finished() {
            for line in problem_lines(&source.reload()) {
                // An empty file is one that was created and is yet to be written.
                assert!(line.starts_with("flicker.yaml: "), "{line}");
            }
            assert!(source.objects().count() >= 1);
        }
    });
    source.reload();
    assert_eq!(model_lines(&source), [IN_FORCE]);
}
