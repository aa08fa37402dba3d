//! Plugin and agent killed at any step: nothing is wrong, and nothing is left.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use netpol_tests::cluster::Wired;
use netpol_tests::cni::{CniError, Container};
use netpol_tests::footprint::Footprint;
use netpol_tests::level::has_agent;
use netpol_tests::netns::Namespace;
use netpol_tests::node::NODE;
use netpol_tests::servers::Transport;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::site::{API, LIMIT, Site, attach_without_us};

type Left = (Footprint, BTreeMap<String, usize>);

/// What there is before anybody is killed; the first pod makes what stays: lock files, chains.
fn warmed_up(site: &Site, sandbox: &Namespace) -> Left {
    let network = site.network();
    let warm = site.container(sandbox, "warm", API);
    site.runtime().add(&network, &warm).unwrap();
    site.runtime().del(&network, &warm).unwrap();
    site.wait("the interface is still known", || site.agent().sync().is_ok_and(|it| it.endpoints.len() == 2));
    site.left()
}

#[expect(clippy::print_stdout, reason = "it is shown where the test fails")]
fn wait_until_clean(site: &Site, (before, entries_before): &Left, whom: &str) {
    site.wait("something is left", || {
        let (after, entries) = site.left();
        let is_clean = after.since(before).is_empty() && entries == *entries_before;
        if !is_clean {
            println!("{whom}: {:#?} {entries:?} {entries_before:?}", after.since(before));
        }
        is_clean
    });
}

/// The agent has a file of an attachment.
fn is_told(site: &Site) -> bool {
    let state = site.node.node(NODE).unwrap().socket().with_extension("attachments");
    std::fs::read_dir(state).unwrap().count() > 0
}

/// A record whose end nobody told has nobody to end it but time, or the runtime's word of what is still there.
fn collect(site: &Site) {
    site.agent().request(&json!({ "cni": "gc", "valid": [] }), LIMIT).unwrap();
}

#[test]
fn whoever_is_killed_at_any_step_nothing_is_wrong_and_nothing_is_left() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new();
    let network = site.network();
    let sandbox = site.sandbox("sandbox");
    let before = warmed_up(&site, &sandbox);
    // The agent knows no such pod, so that it waits in the middle of the ADD.
    let unknown = site.container(&sandbox, "k1", ("shop", "unknown", "u-unknown"));
    for whom in ["plugin", "agent"] {
        let previous = attach_without_us(&site, &unknown);
        let runtime = site.runtime();
        let call = runtime.prepare("ADD", &network, "netpol-cni", (Some(&unknown), &previous)).unwrap();
        let mut running = call.start(Some(site.node.node(NODE).unwrap().namespace())).unwrap();
        running.feed().unwrap();
        site.wait("the agent was not told", || is_told(&site));
        if whom == "plugin" {
            running.kill().unwrap();
            runtime.del(&network, &unknown).unwrap();
        } else {
            site.agent.take().unwrap().kill().unwrap();
            let finished = running.finish().unwrap();
            assert_eq!(finished.json().unwrap()["code"], 11, "{finished:?}");
            // The kubelet's clean-up and its next try find no agent.
            site.runtime().del(&network, &unknown).unwrap();
            let refusal = site.runtime().add(&network, &unknown).unwrap_err().downcast::<CniError>().unwrap();
            assert_eq!(refusal.code, 11, "{refusal}");
            site.runtime().del(&network, &unknown).unwrap();
            site.start_agent();
            collect(&site);
        }
        wait_until_clean(&site, &before, whom);
    }
    // A pod that was there when the agent was killed is policed all the while and after.
    let container = site.add("k2", API);
    site.node.serve("shop/api", Transport::Tcp, [7000, 7001]).unwrap();
    site.agent.take().unwrap().kill().unwrap();
    let assert_policed = |site: &Site| {
        assert_eq!(site.answers("shop/client", "shop/api", 7000), [true; 2]);
        assert_eq!(site.answers("shop/stranger", "shop/api", 7001), [false; 2]);
    };
    assert_policed(&site);
    site.start_agent();
    assert_policed(&site);
    site.runtime().check(&network, &container).unwrap();
    // It goes while the agent is away.
    site.agent.take().unwrap().kill().unwrap();
    site.runtime().del(&network, &container).unwrap();
    site.node.hand_back_pod("shop/api").unwrap().namespace.remove().unwrap();
    site.start_agent();
    let state = site.agent().sync().unwrap();
    assert_eq!(state.endpoints.len(), 2, "{state:?}");
}

const LATE: (&str, &str, &str) = ("shop", "late", "u-late");

/// The answer to the plugin lies in its socket, unread.
fn is_answered(site: &Site) -> bool {
    let place = site.node.node(NODE).unwrap();
    let mut list = Command::new("ss");
    list.args(["-x", "-n", "-H", "state", "connected", "src"]).arg(place.socket());
    let listed = place.namespace().enter(|| list.output()).unwrap().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    // What was sent and not read stands before the address.
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let own = words.iter().position(|word| Path::new(word) == place.socket());
        own.is_some_and(|own| words[own - 1] != "0")
    })
}

#[test]
fn an_agent_that_is_killed_between_its_answer_and_the_plugins_leaves_a_pod_that_is_policed() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new();
    let network = site.network();
    let before = warmed_up(&site, &site.sandbox("sandbox"));
    let namespace = site.sandbox("late");
    let container = site.container(&namespace, "k3", LATE);
    let previous = attach_without_us(&site, &container);
    let (runtime, place) = (site.runtime(), site.node.node(NODE).unwrap());
    let call = runtime.prepare("ADD", &network, "netpol-cni", (Some(&container), &previous)).unwrap();
    let mut running = call.start(Some(place.namespace())).unwrap();
    running.feed().unwrap();
    // It waits for a pod that nobody knows yet, and stands still when the answer comes.
    site.wait("the agent was not told", || is_told(&site));
    kill(running.pid(), Signal::SIGSTOP).unwrap();
    let manifest =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop, uid: u-late, labels: {app: api}}\n";
    site.node.run().put_manifest("1-late.yaml", manifest).unwrap();
    site.agent().sync().unwrap();
    site.wait("the agent did not answer", || is_answered(&site));
    site.agent.take().unwrap().kill().unwrap();
    kill(running.pid(), Signal::SIGCONT).unwrap();
    let finished = running.finish().unwrap();
    assert!(finished.status.success(), "{finished:?}");
    let wired = wired(namespace, &finished.json().unwrap());
    site.node.adopt_pod(NODE, "shop/late", wired).unwrap();
    site.node.serve("shop/late", Transport::Tcp, [7000, 7001]).unwrap();
    let assert_policed = |site: &Site| {
        assert_eq!(site.answers("shop/client", "shop/late", 7000), [true; 2]);
        assert_eq!(site.answers("shop/stranger", "shop/late", 7001), [false; 2]);
        assert_eq!(site.answers("shop/late", "shop/stranger", 7001), [false; 2]);
    };
    assert_policed(&site);
    site.start_agent();
    assert_policed(&site);
    let check = json!({ "cni": "check", "container_id": "k3", "ifname": "eth0" });
    assert_eq!(site.agent().request(&check, LIMIT).unwrap()["result"], "done");
    site.runtime().del(&network, &container).unwrap();
    site.node.hand_back_pod("shop/late").unwrap().namespace.remove().unwrap();
    // What it talked of with others is theirs too, until housekeeping finds it over.
    let (files, entries) = before;
    let is_flow = |map: &str| map.contains("/FLOWS_") || map.contains("/UNANSWERED_");
    site.wait("something is left", || {
        let (after, now) = site.left();
        after.since(&files).is_empty() && entries.iter().all(|(map, count)| is_flow(map) || now.get(map) == Some(count))
    });
}

fn wired(namespace: Namespace, result: &Value) -> Wired {
    let ips = result["ips"].as_array().unwrap().iter();
    let addresses = ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect();
    Wired { namespace, interface: result["interfaces"][1]["name"].as_str().unwrap().to_owned(), addresses }
}

#[test]
fn an_agent_that_is_killed_in_a_del_keeps_no_pod_from_going_and_leaves_nothing() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new();
    let network = site.network();
    let sandbox = site.sandbox("sandbox");
    let before = warmed_up(&site, &sandbox);
    // Before it reads the request, and at moments at which it may be doing anything of it.
    for after in [None, Some(0), Some(2), Some(5)] {
        let container: Container = site.container(&sandbox, "k4", API);
        site.runtime().add(&network, &container).unwrap();
        let pid = site.agent().pid();
        if after.is_none() {
            kill(pid, Signal::SIGSTOP).unwrap();
        }
        let runtime = site.runtime();
        let call = runtime.prepare("DEL", &network, "netpol-cni", (Some(&container), &Value::Null)).unwrap();
        let mut running = call.start(Some(site.node.node(NODE).unwrap().namespace())).unwrap();
        running.feed().unwrap();
        // A moment by chance: whatever it is, the same holds.
        std::thread::sleep(Duration::from_millis(after.unwrap_or(20)));
        site.agent.take().unwrap().kill().unwrap();
        let finished = running.finish().unwrap();
        assert!(finished.status.success(), "a pod that goes must be able to go: {finished:?}");
        // The runtime goes on with the other plugins; ours is asked again, by nobody.
        site.runtime().del(&network, &container).unwrap();
        site.start_agent();
        collect(&site);
        wait_until_clean(&site, &before, &format!("agent, after {after:?}"));
        assert_eq!(site.agent().sync().unwrap().endpoints.len(), 2);
    }
}
