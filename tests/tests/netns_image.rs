//! The image's programs with exactly what the DaemonSet gives them: an empty root file system, its capabilities, mounts and
//! seccomp profile, run by runc. `NETPOL_IMAGE=FILE` has the same said of a whole image.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use netpol_tests::agent::Agent;
use netpol_tests::agent::confine::KEPT;
use netpol_tests::container::Container;
use netpol_tests::container::manifest::Settings;
use netpol_tests::container::root::{PROGRAMS, Root};
use netpol_tests::level::{has_both_agents, has_containers};
use netpol_tests::node::NODE;
use netpol_tests::probe::SILENCE;
use netpol_tests::shop::{Shop, case};
use netpol_tests::table::Table;
use netpol_tests::traffic::Traffic;
use serde_json::Value;

/// What users apply.
fn settings() -> Settings {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/netpol.yaml");
    Settings::read(&std::fs::read_to_string(manifest).unwrap()).unwrap()
}

/// Programs are large: all tests of this file share one root, which none of them can write to.
fn root() -> &'static Root {
    static ROOT: OnceLock<Root> = OnceLock::new();
    ROOT.get_or_init(|| Root::make(&PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("image")).unwrap())
}

/// A node with the shop's pods, its policies not yet in force, and the table that holds with them.
fn shop() -> (Shop, Table) {
    let case = case("shop");
    let after = Shop::expectation(&case, "after").unwrap();
    (Shop::build(&case, &[&after]).unwrap(), after)
}

fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_measured(shop: &Shop, expected: &Table) {
    let (measured, _odd) = shop.measure(expected, false).unwrap();
    assert_eq!(expected.differences(&measured), []);
}

/// What was looked at, by lines of `netpol-agent preflight`.
fn checks(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| ["ok ", "note", "FAIL"].iter().any(|it| line.starts_with(it)));
    lines.filter_map(|line| Some(line.get(6..)?.split_once(": ")?.0)).collect()
}

/// The example in deploy/README.md.
fn documented() -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let (_, example) = text.split_once("/netpol-agent preflight\n").unwrap();
    example.split("```").next().unwrap().to_owned()
}

#[test]
fn the_agent_enforces_with_what_the_daemonset_gives_it_and_nothing_else() {
    if !has_containers() {
        return;
    }
    let (shop, after) = shop();
    let container = Container::prepare(&shop.node, root(), &settings(), &[]).unwrap();
    let agent = container.start_agent().unwrap();

    let status = container.agent_status().unwrap();
    let kept = format!("{:016x}", KEPT.iter().fold(0_u64, |set, capability| set | 1 << capability));
    let none = format!("{:016x}", 0);
    for (field, wanted) in [
        ("CapBnd", kept.as_str()),
        ("CapEff", &kept),
        ("CapPrm", &kept),
        ("CapInh", &none),
        ("CapAmb", &none),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let line = format!("{field}:\t{wanted}");
        assert!(status.lines().any(|it| it == line), "no {line:?} in\n{status}");
    }

    shop.put_policies().unwrap();
    let settled = agent.sync().unwrap();
    assert!(settled.endpoints.iter().all(|endpoint| endpoint.state == "enforced"), "{settled:?}");
    assert_measured(&shop, &after);
    assert!(agent.counters().unwrap().iter().any(|it| it.reason == "policy-denied"));

    let told = container.exec(&["netpol", "status", "-o", "json"]).unwrap();
    assert!(serde_json::from_slice::<Value>(&told.stdout).is_ok(), "{}", said(&told));

    let looked = container.exec(&["netpol-agent", "preflight"]).unwrap();
    assert!(looked.status.success(), "{}", said(&looked));
    assert_eq!(checks(&String::from_utf8_lossy(&looked.stdout)), checks(&documented()), "{}", said(&looked));

    // The next container finds what this one left, as after an upgrade; meanwhile nothing changes.
    assert!(agent.stop().unwrap().success());
    assert_measured(&shop, &after);
    let agent = container.start_agent().unwrap();
    assert_measured(&shop, &after);
    agent.stop().unwrap();
}

#[test]
fn each_program_runs_where_nothing_but_the_image_is() {
    if !has_containers() {
        return;
    }
    let (shop, _after) = shop();
    let container = Container::prepare(&shop.node, root(), &settings(), &[]).unwrap();
    for program in ["/netpol", "/netpol-agent"] {
        let output = container.run(&[program, "--help"], &[], "").unwrap();
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Usage:"),
            "{}",
            said(&output)
        );
    }
    let version = container.run(&["/netpol-cni"], &["CNI_COMMAND=VERSION"], r#"{"cniVersion":"1.0.0"}"#).unwrap();
    let answer: Value = serde_json::from_slice(&version.stdout).unwrap_or_default();
    assert!(
        answer["supportedVersions"].as_array().is_some_and(|it| it.contains(&"1.0.0".into())),
        "{}",
        said(&version)
    );
    for program in PROGRAMS {
        assert!(root().directory().join(program).is_file());
    }
}

#[test]
fn a_runtime_that_refuses_bpf_is_named_by_the_agent() {
    if !has_containers() {
        return;
    }
    let (shop, _after) = shop();
    // As the default profiles of containerd before 1.6.9 and docker before 23 did.
    let container = Container::prepare(&shop.node, root(), &settings(), &["bpf"]).unwrap();
    let error = container.start_agent().map(|agent: Agent| agent.stop()).unwrap_err();
    let told = format!("{error:#}");
    assert!(told.contains("BPF"), "{told}");
}

/// As kube-proxy has it on every node: conntrack knows the connections, those between pods of one bridge too.
fn track_connections(shop: &Shop) {
    let node = shop.node.node(NODE).unwrap().namespace();
    node.set_sysctls(&[("bridge/bridge-nf-call-iptables", "1"), ("bridge/bridge-nf-call-ip6tables", "1")]).unwrap();
    let rules =
        "table inet tracking { chain forward { type filter hook forward priority 0; ct state invalid counter; }; }";
    let output = node.enter(|| std::process::Command::new("nft").arg(rules).output()).unwrap().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// A connection that policy allows goes on through all of it; attempts that it forbids fail from install to uninstall.
#[test]
fn install_upgrade_roll_back_and_uninstall_with_traffic_counted_throughout() {
    if !has_containers() || !has_both_agents() {
        return;
    }
    let (shop, after) = shop();
    shop.put_policies().unwrap();
    track_connections(&shop);
    let next = Root::of_next_version(&PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("next-image")).unwrap();
    let [first, upgraded] = [root(), &next].map(|root| Container::prepare(&shop.node, root, &settings(), &[]).unwrap());
    let everything = Traffic::of_the_shop(&shop).unwrap();
    let allowed = Traffic::of_the_shop(&shop).unwrap().without_forbidden();

    let (agent, installed) = allowed.during(|| {
        let agent = first.start_agent().unwrap();
        agent.sync().unwrap();
        agent
    });
    assert_eq!(installed.lost, [""; 0], "install");
    assert_measured(&shop, &after);

    let (agent, changed) = everything.during(|| {
        agent.stop().unwrap();
        let agent = upgraded.start_agent().unwrap();
        agent.sync().unwrap();
        agent.stop().unwrap();
        let agent = first.start_agent().unwrap();
        agent.sync().unwrap();
        agent
    });
    assert_eq!((&changed.lost[..], &changed.leaked[..]), (&[][..], &[][..]), "upgrade and roll back");
    assert!(changed.exchanged > 0 && changed.refused > 0, "{changed:?}");
    assert_measured(&shop, &after);

    let ((), removed) = allowed.during(|| {
        let told = first.exec(&["netpol", "cleanup", "--yes"]).unwrap();
        assert!(told.status.success(), "{}", said(&told));
        agent.stop().unwrap();
    });
    assert_eq!(removed.lost, [""; 0], "uninstall");
    let open = Traffic::of_the_shop(&shop).unwrap();
    let ((), now_open) = open.during(|| std::thread::sleep(SILENCE * 4));
    assert!(!now_open.leaked.is_empty(), "nothing is policed any more: {now_open:?}");
}
