//! The demo as a user runs it, with the real agent.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use netpol_tests::level::has_agent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-demo"));
    command.args(arguments);
    command
}

fn steps(arguments: &[&str]) -> (bool, Vec<Value>) {
    let output = demo(arguments).stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn the_demo_succeeds_in_both_families_and_reports_drops_and_the_revoked_connection() {
    if !has_agent() {
        return;
    }
    for family in [&["--json"][..], &["--json", "--ipv6"]] {
        let (good, steps) = steps(family);
        let failed: Vec<&Value> = steps.iter().filter(|step| step["holds"] == false).collect();
        let differences: Vec<&Value> = steps.iter().filter_map(|step| step.get("differences")).collect();
        assert!(good, "{family:?}: {failed:?} {differences:?}");
        let drops: Vec<String> =
            steps.iter().filter(|step| step["step"] == "drop").map(|step| step["drop"].to_string()).collect();
        assert_eq!(drops.iter().filter(|drop| drop.contains("policy-denied")).count(), 4, "{drops:?}");
        assert_eq!(drops.iter().filter(|drop| drop.contains("denied-after-translation")).count(), 1, "{drops:?}");
        assert_eq!(drops.iter().filter(|drop| drop.contains("flow-revoked")).count(), 1, "{drops:?}");
        let last = steps.last().unwrap();
        assert_eq!((&last["step"], &last["ok"]), (&"result".into(), &true.into()));
        assert!(last["seconds"].as_f64().unwrap() < 20.0, "too slow: {last}");
    }
}

#[test]
fn without_an_agent_the_demo_fails_and_names_the_cells() {
    if !has_agent() {
        return;
    }
    let (good, steps) = steps(&["--json", "--no-agent"]);
    assert!(!good);
    let after = steps.iter().find(|step| step["name"] == "after").unwrap();
    let first = "staging/intruder -> production/user-api 8080/tcp: expected x, measured ok";
    assert!(after["differences"].as_array().unwrap().iter().any(|it| it == first), "{after}");
}

#[test]
fn an_agent_dies_with_a_killed_demo_and_is_stopped_by_ctrl_c() {
    if !has_agent() {
        return;
    }
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mut child = demo(&["--json", "--keep"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let steps = lines.by_ref().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        let agent = steps.filter(|step| step["step"] == "agent").map(|step| step["pid"].clone()).next().unwrap();
        let left_up = lines.by_ref().find(|line| line.contains("\"try\""));
        assert!(left_up.is_some());
        // Somebody must go on reading, or the demo ends by itself.
        std::thread::spawn(|| lines.for_each(drop));
        let agent = Pid::from_raw(agent.as_i64().unwrap().try_into().unwrap());
        assert!(runs(agent));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        child.wait().unwrap();
        // The kernel takes its time to end a process that holds programs and maps.
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            !runs(agent)
        });
        assert!(gone, "the agent survived {signal}");
    }
}

/// False for a process that is gone, or dead and not yet waited for.
fn runs(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
}
