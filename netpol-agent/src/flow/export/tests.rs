use std::fs;
use std::path::Path;

use netpol_common::abi::{Direction, Reason};
use serde_json::Value;

use super::*;
use crate::cluster::model::{PodKey, PolicyKey};
use crate::flow::{End, Headers, Match, Who};

fn flow(from: &str, port: u16) -> Flow {
    let end = |pod: &str, ip: &str, port| End {
        ip: Some(ip.parse().unwrap()),
        port: Some(port),
        pod: Some(PodKey::new("shop", pod)),
        who: Who::default(),
        service: None,
    };
    Flow {
        time: std::time::SystemTime::UNIX_EPOCH,
        pod: Some(PodKey::new("shop", "api")),
        direction: Direction::Ingress,
        reason: Reason::PolicyDenied,
        drop_reason: Reason::PolicyDenied.hubble(),
        source: end(from, "10.0.0.1", 40_000),
        destination: end("api", "10.0.1.2", port),
        protocol: "TCP".to_owned(),
        summary: String::new(),
        policies: vec![PolicyKey::new("shop", "deny")],
        isolated_for: Some(Direction::Ingress),
        hint: String::new(),
        length: 60,
        suppressed: 2,
        ifindex: 1,
        allowed_by: Vec::new(),
        matched: Match::None,
        headers: Headers::default(),
        slot: 1,
    }
}

fn config(path: &Path) -> ExportConfig {
    ExportConfig { path: path.to_owned(), max_bytes: 1 << 20, backups: 2, filters: Filters::default(), aggregate: None }
}

/// A directory of its own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("netpol-export-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for something that another thread does.
fn eventually(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never came");
        thread::yield_now();
    }
}

#[test]
fn flows_that_are_wanted_are_lines() {
    let scratch = Scratch::new("lines");
    let path = scratch.0.join("flows.jsonl");
    let filters = Filters {
        allow: vec![
            r#"{"source_pod":["shop/we"],"destination_ip":["10.0.1.0/24"],"protocol":["tcp"]}"#.parse().unwrap(),
        ],
        deny: vec![r#"{"destination_port":["81"],"verdict":["DROPPED"]}"#.parse().unwrap()],
    };
    let exporter = Exporter::start(ExportConfig { filters, ..config(&path) }).unwrap();
    for (from, port) in [("web", 80), ("web", 81), ("far", 80), ("web", 82)] {
        exporter.flow(&flow(from, port));
    }
    drop(exporter);
    eventually(|| lines(&path).len() == 2);
    let ports: Vec<Value> = lines(&path).iter().map(|line| line["destination"]["port"].clone()).collect();
    assert_eq!(ports, [80, 82]);
    for wrong in [r#"{"source_pods":["x/"]}"#, r#"{"source_port":["http"]}"#, r#"{"source_ip":["x"]}"#, "web"] {
        assert!(wrong.parse::<filter::FlowFilter>().is_err(), "{wrong}");
    }
}

#[test]
fn full_files_are_put_aside_and_the_oldest_goes() {
    let scratch = Scratch::new("rotate");
    let path = scratch.0.join("flows.jsonl");
    let mut output = Output::new(&path, 25, 2);
    for number in 0..7 {
        output.write_line(&format!("{{\"n\":{number}}}")).unwrap();
    }
    let numbers = |name: &str| -> Vec<u64> {
        lines(&scratch.0.join(name)).iter().map(|line| line["n"].as_u64().unwrap()).collect()
    };
    assert_eq!(
        (numbers("flows.jsonl"), numbers("flows.jsonl.1"), numbers("flows.jsonl.2")),
        (vec![6], vec![3, 4, 5], vec![0, 1, 2])
    );
    for number in 7..11 {
        output.write_line(&format!("{{\"n\":{number}}}")).unwrap();
    }
    assert_eq!(numbers("flows.jsonl.2"), [3, 4, 5]);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 3);
}

#[test]
fn flows_are_summed_up_by_pods_port_and_reason() {
    let scratch = Scratch::new("sums");
    let path = scratch.0.join("flows.jsonl");
    let exporter =
        Exporter::start(ExportConfig { aggregate: Some(Duration::from_secs(3600)), ..config(&path) }).unwrap();
    for from in ["web", "web", "far", "web"] {
        exporter.flow(&flow(from, 80));
    }
    drop(exporter);
    eventually(|| lines(&path).len() == 2);
    let sums: Vec<(Value, Value)> =
        lines(&path).iter().map(|line| (line["source"]["pod"].clone(), line["aggregate"]["packets"].clone())).collect();
    assert_eq!(sums, [("shop/far".into(), 3.into()), ("shop/web".into(), 9.into())]);
}

#[test]
fn an_interval_that_is_over_is_written_while_flows_come() {
    let scratch = Scratch::new("interval");
    let path = scratch.0.join("flows.jsonl");
    let exporter =
        Exporter::start(ExportConfig { aggregate: Some(Duration::from_millis(20)), ..config(&path) }).unwrap();
    eventually(|| {
        exporter.flow(&flow("web", 80));
        lines(&path).len() > 2
    });
}

#[test]
fn what_cannot_be_written_is_a_problem_and_holds_nobody_up() {
    let exporter = Exporter::start(config(Path::new("/dev/full"))).unwrap();
    exporter.flow(&flow("web", 80));
    eventually(|| exporter.problem().is_some());
    assert!(exporter.problem().unwrap().message.contains("/dev/full"));
    let begun = Instant::now();
    (0..50_000).for_each(|_| exporter.flow(&flow("web", 80)));
    assert!(begun.elapsed() < Duration::from_secs(10));
    eventually(|| exporter.lost() == 50_001);
    let nowhere = Exporter::start(config(Path::new("/nonexistent/flows.jsonl"))).unwrap();
    nowhere.flow(&flow("web", 80));
    eventually(|| nowhere.problem().is_some());
}
