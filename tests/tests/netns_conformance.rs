//! A sample of `cargo xtask conformance` on the real datapath: a few cases of each suite by both ways, a file that nobody
//! has seen, and one that is wrong.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use netpol_tests::conformance::{self, By, Level, Settings, Tally};
use netpol_tests::level::has_agent;
use serde_json::{Value, json};

/// Cases of every suite: selectors, ports of three protocols, blocks, named ports, changes, reuse of addresses, nodes.
const SAMPLE: [&str; 17] = [
    "cyclonus/example/*",
    "cyclonus/peers/01*",
    "cyclonus/action/00*",
    "e2e/base/03",
    "e2e/base/17",
    "e2e/base/22",
    "e2e/base/34",
    "e2e/base/38",
    "recipes/02",
    "recipes/docs-endport",
    "extra/named-01",
    "extra/ipreuse-0*",
    "extra/node-0*",
    "extra/upd-01",
    "netpol/named/*",
    "guides/shop/everything",
    "guides/team/metadata",
];

fn run(settings: &Settings) -> (Tally, Vec<String>) {
    let said = Mutex::new(Vec::new());
    let tally = conformance::run(settings, |line| said.lock().unwrap().push(line.to_owned())).unwrap();
    (tally, said.into_inner().unwrap())
}

fn sample(by: By) {
    if !has_agent() {
        return;
    }
    let globs = SAMPLE.iter().map(|glob| (*glob).to_owned()).collect();
    let settings = Settings { globs, by, ..Settings::all_of(conformance::committed()) };
    let (tally, said) = run(&settings);
    assert_eq!(tally.failed, 0, "{tally}\n{}", said.join("\n"));
    assert!(tally.suites == 6 && tally.passed > 10_000, "{tally}");
}

#[test]
fn a_sample_of_every_suite_is_as_stated_by_pod_address() {
    sample(By::PodIp);
}

#[test]
fn a_sample_of_every_suite_is_as_stated_by_service_address() {
    sample(By::ServiceIp);
}

/// Addresses, names and shapes that no suite here has: two nodes that share a network, another network, an outside host that
/// has an address of this harness, ports by name.
fn strange(allow: bool) -> Value {
    let pod = |name: &str, role: &str, node: &str| {
        json!({ "pod": name, "labels": { "role": role }, "node": node,
                "ports": [{ "name": "main", "port": 7070, "protocol": "TCP" }, { "port": 7070, "protocol": "SCTP" }] })
    };
    let check =
        |from: &str, to: &str, port: &str, allow: bool| json!({ "from": from, "to": to, "port": port, "allow": allow });
    json!({
        "format": "npconf/1", "suite": "strange",
        "source": { "repo": "", "commit": "", "paths": [], "how": "" },
        "ip_plans": {
            "v4": { "one/a": "172.20.0.1", "one/b": "172.20.0.2", "two/c": "10.244.1.1", "ext/far": "192.0.2.10",
                    "node/alpha": "172.30.0.1", "node/beta": "172.30.0.2" },
            "v6": { "one/a": "fd20::1", "one/b": "fd20::2", "two/c": "fd00:10:244:1::1", "ext/far": "2001:db8::10",
                    "node/alpha": "fd30::1", "node/beta": "fd30::2" },
        },
        "clusters": { "it": {
            "namespaces": { "one": {}, "two": { "team": "two" } },
            "pods": [pod("one/a", "server", "node/alpha"), pod("one/b", "client", "node/beta"), pod("two/c", "client", "node/alpha")],
            "externals": [{ "name": "node/alpha", "kind": "node" }, { "name": "node/beta", "kind": "node" },
                          { "name": "ext/far", "kind": "external" }],
        } },
        "cases": [{
            "id": "strange/1", "name": "a server and its clients", "tags": [], "cluster": "it", "needs": [], "ip_dependent": false,
            "steps": [{
                "actions": [{ "op": "create_policy", "policy": {
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": { "namespace": "one", "name": "p" },
                    "spec": { "podSelector": { "matchLabels": { "role": "server" } },
                              "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "two" } } }],
                                            "ports": [{ "port": "main" }] }] } } }],
                "probe": { "mode": "pod-ip", "ports": ["TCP/7070"] },
                "endpoints": ["one/a", "one/b", "two/c"],
                "expect": [{ "plans": ["*"], "ports": ["TCP/7070"], "allow": ["s..", "Xs.", "..s"], "self": "..." }],
                "checks": [check("two/c", "one/a", "TCP/main", true), check("two/c", "one/a", "SCTP/7070", !allow),
                           check("ext/far", "one/a", "TCP/7070", false), check("one/a", "ext/far", "UDP/99", true),
                           check("node/alpha", "one/a", "TCP/7070", true), check("node/beta", "one/a", "TCP/7070", false)],
            }],
        }],
    })
}

fn file(name: &str, content: &Value) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content.to_string()).unwrap();
    path
}

#[test]
fn a_file_that_nobody_has_seen_runs_at_both_levels() {
    if !has_agent() {
        return;
    }
    let path = file("strange.json", &strange(true));
    for (level, by) in [(Level::Pure, By::PodIp), (Level::Datapath, By::PodIp), (Level::Datapath, By::ServiceIp)] {
        let (tally, said) = run(&Settings { level, by, ..Settings::all_of(path.clone()) });
        assert_eq!((tally.passed, tally.failed), (24, 0), "{level:?} {by:?}: {tally}\n{}", said.join("\n"));
    }
}

/// What is stated wrongly fails, with the datapath's reason and the policy that isolates.
#[test]
fn a_wrong_statement_fails_and_says_why() {
    if !has_agent() {
        return;
    }
    let settings = Settings { plan: Some("v4".to_owned()), ..Settings::all_of(file("wrong.json", &strange(false))) };
    let (tally, said) = run(&settings);
    assert_eq!((tally.passed, tally.failed), (11, 1), "{tally}\n{}", said.join("\n"));
    let said = said.join("\n");
    for word in ["SCTP/7070", "two/c", "one/a", "allowed", "denied", "one/a ingress policy-denied 1", "one/p"] {
        assert!(said.contains(word), "no {word} in\n{said}");
    }
}

#[test]
fn cluster_network_policy_is_skipped_and_never_passed() {
    let settings =
        Settings { suites: vec!["cluster-network-policy".to_owned()], ..Settings::all_of(conformance::committed()) };
    let (tally, said) = run(&settings);
    assert!(tally.passed == 0 && tally.failed == 0 && tally.skipped == tally.cells && tally.cases == 24, "{tally}");
    assert!(said.iter().all(|line| line.starts_with("skipped ")), "{said:?}");
}
