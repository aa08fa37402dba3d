//! What is served, and that dashboard and alerts ask for nothing else.

mod promql;

use std::collections::BTreeSet;
use std::time::SystemTime;

use netpol_common::abi::{Counter, Direction, Reason};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::cluster::ClusterState;
use crate::cluster::model::PolicyKey;
use crate::datapath::desired::DesiredDatapath;
use crate::datapath::store::SlotCounters;
use crate::flow::{End, Headers, Match, Who};
use crate::observe::answer::{KindReport, PodCounts, ProblemCounts, SourceReport};
use crate::observe::health::HealthAddress;

/// Counters that grow by 10 with each reading.
struct Growing(Arc<AtomicU64>);

impl Reader for Growing {
    fn slot(&self, slot: u16) -> Option<SlotCounters> {
        let packets = self.0.fetch_add(10, Ordering::Relaxed) + u64::from(slot);
        let counter = Counter { packets, bytes: 100 };
        let drop = ((Direction::Ingress, Reason::PolicyDenied), counter);
        Some(SlotCounters::from([drop, ((Direction::Egress, Reason::Established), counter)]))
    }

    fn events_lost(&self) -> Option<u64> {
        Some(7)
    }

    fn backstop(&self) -> Option<u64> {
        Some(3)
    }
}

fn denied(policy: &str) -> Flow {
    let end =
        |ip: &str| End { ip: Some(ip.parse().unwrap()), port: Some(80), pod: None, who: Who::default(), service: None };
    Flow {
        time: SystemTime::UNIX_EPOCH,
        pod: None,
        direction: Direction::Ingress,
        reason: Reason::PolicyDenied,
        drop_reason: Reason::PolicyDenied.hubble(),
        source: end("10.0.0.1"),
        destination: end("10.0.0.2"),
        protocol: "TCP".to_owned(),
        summary: String::new(),
        policies: vec![PolicyKey::new("shop", policy)],
        isolated_for: Some(Direction::Ingress),
        hint: String::new(),
        length: 60,
        suppressed: 4,
        ifindex: 1,
        allowed_by: Vec::new(),
        matched: Match::None,
        headers: Headers::default(),
        slot: 1,
    }
}

fn metrics() -> (Metrics, Arc<AtomicU64>) {
    let count = Arc::<AtomicU64>::default();
    let metrics = Metrics::new(Some(Box::new(Growing(count.clone()))));
    metrics.flow(&denied("deny"));
    metrics.enforced(Duration::from_millis(3));
    metrics.set_flow_entries(12);
    let kind =
        KindReport { kind: "pods".to_owned(), synced: true, stale_for_seconds: Some(61), ..KindReport::default() };
    metrics.publish(Snapshot {
        sizes: Sizes::of(&ClusterState::default(), &DesiredDatapath::default()),
        endpoints: PodCounts { enforced: 2, pending: 1, failed: 0 },
        problems: ProblemCounts { refused: 1, notes: 2 },
        source: SourceReport { synced: true, kinds: vec![kind], ..SourceReport::default() },
        slots: [(1, "shop".into())].into(),
        flow_capacity: 100,
        untold: 8,
        missed: 9,
        ..Snapshot::default()
    });
    (metrics, count)
}

/// Names as Prometheus stores them.
fn names(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

#[test]
fn figures_are_served_under_their_labels() {
    let (metrics, _) = metrics();
    let text = metrics.scrape().unwrap();
    for line in [
        "netpol_drops_total{reason=\"policy-denied\",direction=\"ingress\",namespace=\"shop\"} 1",
        "netpol_policy_drops_total{policy=\"shop/deny\",direction=\"ingress\"} 5",
        "hubble_drop_total{reason=\"POLICY_DENIED\",protocol=\"TCP\"} 6",
        "hubble_policy_verdicts_total{direction=\"ingress\",match=\"none\",action=\"dropped\"} 1",
        "hubble_flows_processed_total{type=\"Drop\",subtype=\"\",verdict=\"DROPPED\",protocol=\"TCP\"} 1",
        "hubble_lost_events_total{source=\"perf_event_ring_buffer\"} 7",
        "hubble_lost_events_total{source=\"observer_events_queue\"} 8",
        "hubble_lost_events_total{source=\"hubble_ring_buffer\"} 9",
        "netpol_endpoints{state=\"pending\"} 1",
        "netpol_problems{severity=\"refused\"} 1",
        "netpol_source_stale_seconds{kind=\"pods\"} 61",
        "netpol_map_entries{map=\"flows\"} 12",
        "netpol_map_capacity{map=\"flows\"} 100",
        "netpol_backstop_in_force 1",
        "netpol_backstop_drops_total 3",
        "netpol_event_to_kernel_seconds_count 1",
    ] {
        let is_there = |served: &str| served == line || served.strip_suffix(".0") == Some(line);
        assert!(text.lines().any(is_there), "{line} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_a_slot_counts_goes_to_the_namespace_that_has_it_now_and_names_are_bounded() {
    let (metrics, _) = metrics();
    metrics.scrape().unwrap();
    metrics.publish(Snapshot { slots: [(1, "other-shop".into())].into(), ..Snapshot::default() });
    let text = metrics.scrape().unwrap();
    assert!(text.contains("namespace=\"shop\"} 1\n") && text.contains("namespace=\"other-shop\"} 10\n"), "{text}");
    for number in 0..300 {
        metrics.flow(&denied(&format!("p{number}")));
    }
    let text = metrics.scrape().unwrap();
    assert_eq!(text.matches("netpol_policy_drops_total{").count(), 201);
    assert!(text.contains("netpol_policy_drops_total{policy=\"other\",direction=\"ingress\"} 505"), "{text}");
}

#[test]
fn dashboard_and_alerts_ask_for_what_is_served_in_promql_that_parses() {
    let served = names(&metrics().0.scrape().unwrap());
    let dashboard: Value = serde_json::from_str(include_str!("../../../../deploy/monitoring/dashboard.json")).unwrap();
    let alerts: Value = serde_saphyr::from_str(include_str!("../../../../deploy/monitoring/alerts.yaml")).unwrap();
    let guide = include_str!("../../../../deploy/monitoring/README.md");
    let mut expressions = Vec::new();
    for target in dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap())
    {
        expressions.push(target["expr"].as_str().unwrap().replace("$__rate_interval", "5m"));
    }
    let mut runbooks = BTreeSet::new();
    for rule in alerts["spec"]["groups"][0]["rules"].as_array().unwrap() {
        expressions.push(rule["expr"].as_str().unwrap().to_owned());
        let alert = rule["alert"].as_str().unwrap();
        let anchor = format!("deploy/monitoring/README.md#{}", alert.to_lowercase());
        let runbook = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert!(guide.contains(&format!("\n### {alert}\n")), "{alert} has no section");
        assert!(runbook.ends_with(&anchor) && runbooks.insert(runbook), "{runbook}");
    }
    assert!(expressions.len() > 30);
    let mut asked = BTreeSet::new();
    for expression in &expressions {
        promql::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        asked
            .extend(words.filter(|word| word.starts_with("netpol_") || word.starts_with("hubble_")).map(str::to_owned));
    }
    let unknown: Vec<&String> = asked.difference(&served).collect();
    assert_eq!(unknown, [""; 0], "served: {served:?}");
}

#[tokio::test]
async fn metrics_are_served_to_whoever_asks_for_them() {
    let (metrics, _) = metrics();
    let here = HealthAddress::At("127.0.0.1:0".parse().unwrap());
    let server = MetricsServer::start(here, metrics.clone()).await.unwrap().unwrap();
    for (path, status) in [("/metrics", "200"), ("/livez", "404")] {
        let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    let taken = MetricsServer::start(HealthAddress::At(server.address()), metrics).await.unwrap_err().to_string();
    assert!(taken.contains("--metrics-address"), "{taken}");
}
