use std::fs;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::observe::hubble::proto::flow::layer4::Protocol;
use crate::observe::hubble::proto::flow::{
    CiliumEventType, Endpoint, Flow, Ip, Layer4, LostEvent, Tcp, TrafficDirection, Verdict,
};

fn entry(flow: Flow) -> Arc<Entry> {
    Arc::new(Entry { time: flow.time.unwrap_or_default(), content: Content::Flow(Box::new(flow)) })
}

fn flow(from: &str, port: u32) -> Flow {
    let end = |pod: &str| Endpoint {
        namespace: "shop".to_owned(),
        pod_name: pod.to_owned(),
        labels: vec![format!("k8s:app={pod}")],
        ..Endpoint::default()
    };
    Flow {
        verdict: Verdict::Dropped.into(),
        drop_reason_desc: 133,
        event_type: Some(CiliumEventType { r#type: 1, sub_type: 133 }),
        traffic_direction: TrafficDirection::Ingress.into(),
        ip: Some(Ip { source: "10.0.0.1".to_owned(), destination: "10.0.1.2".to_owned(), ..Ip::default() }),
        l4: Some(Layer4 {
            protocol: Some(Protocol::Tcp(Tcp { source_port: 40_000, destination_port: port, flags: None })),
        }),
        source: Some(end(from)),
        destination: Some(end("api")),
        node_name: "node-a".to_owned(),
        ..Flow::default()
    }
}

fn config(path: &Path) -> ExportConfig {
    ExportConfig {
        path: path.to_owned(),
        max_bytes: 1 << 20,
        backups: 2,
        node: "node-a".to_owned(),
        allow: Vec::new(),
        deny: Vec::new(),
        aggregate: None,
    }
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

fn filter(text: &str) -> FlowFilter {
    json::parse(text, false).unwrap()
}

#[test]
fn flows_that_are_wanted_are_lines_that_hubbles_client_reads() {
    let scratch = Scratch::new("lines");
    let path = scratch.0.join("flows.jsonl");
    let allow =
        r#"{"source_pod":["shop/we"],"destination_ip":["10.0.1.0/24"],"protocol":["tcp"],"event_type":[{"type":1}]}"#;
    let deny =
        r#"{"destination_port":["81"],"destination_label":["app in (api)"],"drop_reason_desc":["POLICY_DENIED"]}"#;
    let config = ExportConfig { allow: vec![filter(allow)], deny: vec![filter(deny)], ..config(&path) };
    let exporter = Exporter::start(config).unwrap();
    for (from, port) in [("web", 80), ("web", 81), ("far", 80), ("web", 82)] {
        exporter.take(&entry(flow(from, port)));
    }
    let lost = LostEvent { num_events_lost: 7, ..LostEvent::default() };
    exporter.take(&Arc::new(Entry { time: prost_types::Timestamp::default(), content: Content::Lost(lost) }));
    drop(exporter);
    eventually(|| lines(&path).len() == 3);
    let text = fs::read_to_string(&path).unwrap();
    let read: Vec<GetFlowsResponse> = text.lines().map(|line| json::parse(line, false).unwrap()).collect();
    assert!(read.iter().all(|response| response.node_name == "node-a"));
    assert_eq!(read[0].response_types, Some(ResponseTypes::Flow(flow("web", 80))), "nothing is left out");
    assert_eq!(read[1].response_types, Some(ResponseTypes::Flow(flow("web", 82))));
    assert_eq!(read[2].response_types, Some(ResponseTypes::LostEvents(lost)), "what was lost passes every filter");
    assert!(text.starts_with("{\"flow\":{"), "{text}");
}

#[test]
fn a_line_is_never_too_long_for_hubbles_client() {
    let mut long = flow("web", 80);
    long.source.as_mut().unwrap().labels = vec!["k8s:a=b".repeat(20_000)];
    let written = line(&entry(long), "node-a").unwrap();
    assert!(written.len() < LONGEST && written.contains("\"pod_name\":\"web\""), "{} bytes", written.len());
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
    let more = crate::observe::hubble::words::of_text(&[("reason", "policy-denied")], 2.0);
    for (second, from) in (1..).zip(["web", "web", "far", "web"]) {
        let time = Some(prost_types::Timestamp { seconds: second, nanos: 0 });
        let flow = Flow { time, extensions: Some(more.clone()), ..flow(from, 80) };
        exporter.take(&entry(flow.clone()));
        let verdict = CiliumEventType { r#type: 5, sub_type: 0 };
        exporter.take(&entry(Flow { event_type: Some(verdict), traffic_direction: 2, ..flow }));
    }
    drop(exporter);
    eventually(|| lines(&path).len() == 4);
    let drops: Vec<Value> = lines(&path).into_iter().filter(|line| line["flow"]["event_type"]["type"] == 1).collect();
    let sums: Vec<_> =
        drops.iter().map(|line| (&line["flow"]["source"]["pod_name"], &line["flow"]["aggregate"])).collect();
    let counted = |flows: u32| serde_json::json!({ "ingress_flow_count": flows });
    assert_eq!(sums, [(&"web".into(), &counted(3)), (&"far".into(), &counted(1))]);
    let stands_for = &drops[0]["flow"]["extensions"]["value"];
    assert_eq!((stands_for["packets"].as_f64(), stands_for["reason"].as_str()), (Some(9.0), Some("policy-denied")));
    assert_eq!(stands_for["last"], "1970-01-01T00:00:04Z", "the line's own time is the first flow's");
    assert_eq!(drops[0]["time"], "1970-01-01T00:00:01Z");
}

#[test]
fn an_interval_that_is_over_is_written_while_flows_come() {
    let scratch = Scratch::new("interval");
    let path = scratch.0.join("flows.jsonl");
    let exporter =
        Exporter::start(ExportConfig { aggregate: Some(Duration::from_millis(20)), ..config(&path) }).unwrap();
    eventually(|| {
        exporter.take(&entry(flow("web", 80)));
        lines(&path).len() > 2
    });
}

#[test]
fn what_cannot_be_written_is_a_problem_and_holds_nobody_up() {
    let exporter = Exporter::start(config(Path::new("/dev/full"))).unwrap();
    exporter.take(&entry(flow("web", 80)));
    eventually(|| exporter.problem().is_some());
    assert!(exporter.problem().unwrap().message.contains("/dev/full"));
    let begun = Instant::now();
    (0..50_000).for_each(|_| exporter.take(&entry(flow("web", 80))));
    assert!(begun.elapsed() < Duration::from_secs(10));
    eventually(|| exporter.lost() == 50_001);
    let nowhere = Exporter::start(config(Path::new("/nonexistent/flows.jsonl"))).unwrap();
    nowhere.take(&entry(flow("web", 80)));
    eventually(|| nowhere.problem().is_some());
}
