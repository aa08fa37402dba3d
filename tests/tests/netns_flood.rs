//! As many denied datagrams as this machine's namespaces carry: counted to the packet, told of within bounds, what is not told
//! of is said, and neither an observer that never reads nor the agent's memory is a matter. A second of it by default; the
//! full tier (`NETPOL_TEST_FULL`) measures for twenty, and prints the rates.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use netpol_agent::datapath::loader::default_config;
use netpol_agent::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use netpol_agent::observe::hubble::proto::observer::observer_client::ObserverClient;
use netpol_agent::observe::hubble::proto::observer::{GetFlowsRequest, GetFlowsResponse};
use netpol_tests::agent::{Agent, Options};
use netpol_tests::level::{has_agent, is_full};
use netpol_tests::node::NODE;
use netpol_tests::probe::SILENCE;
use netpol_tests::servers::Transport;
use netpol_tests::shop::{Shop, case};
use netpol_tests::table::Target;
use tonic::Streaming;
use tonic::transport::{Endpoint, Uri};

/// Isolated for egress, and whom it may not reach: dropped as soon as a packet leaves the pod.
const FROM: &str = "production/postgresql";
const TO: &str = "staging/intruder";
/// Sockets that each thread sends from in turn: each is a flow.
const SOCKETS: usize = 1024;
const THREADS: usize = 2;
const METRICS: &str = "127.0.0.1:9965";
/// Resident memory of the agent.
const MOST_RESIDENT: u64 = 100 << 20;

/// What an observer was told.
#[derive(Default)]
struct Told {
    flows: AtomicU64,
    others: AtomicU64,
    lost: AtomicU64,
}

async fn answers(path: PathBuf) -> Streaming<GetFlowsResponse> {
    let connect = move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await.unwrap();
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    ObserverClient::new(channel).get_flows(request).await.unwrap().into_inner()
}

async fn observe(path: PathBuf, told: Arc<Told>) {
    let mut answers = answers(path).await;
    while let Ok(Some(answer)) = answers.message().await {
        match answer.response_types {
            Some(ResponseTypes::Flow(flow)) => {
                let of = flow.source.map(|end| format!("{}/{}", end.namespace, end.pod_name)).unwrap_or_default();
                let counter = if of == FROM { &told.flows } else { &told.others };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Some(ResponseTypes::LostEvents(lost)) => {
                assert_ne!(lost.source, 0, "from somewhere");
                told.lost.fetch_add(lost.num_events_lost, Ordering::Relaxed);
            }
            Some(ResponseTypes::NodeStatus(_)) | None => {}
        }
    }
}

/// Sends from the pod until told to stop; what the kernel took.
fn flood(shop: &Shop, stop: &AtomicBool) -> u64 {
    let to = shop.node.address(TO, false).unwrap();
    let namespace = shop.node.namespace(FROM).unwrap();
    let sockets = || -> Vec<UdpSocket> {
        let open = |_| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((to, 9)).unwrap();
            socket
        };
        (0..SOCKETS).map(open).collect()
    };
    let send = |sockets: Vec<UdpSocket>| {
        let mut sent = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            for socket in &sockets {
                sent += u64::from(socket.send(b"denied").is_ok());
            }
        }
        sent
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let sockets = namespace.enter(sockets).unwrap();
                scope.spawn(move || send(sockets))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

fn counted(agent: &Agent) -> u64 {
    let is_ours =
        |pod: &str, direction: &str, reason: &str| (pod, direction, reason) == (FROM, "egress", "policy-denied");
    let counters = agent.counters().unwrap();
    counters.iter().filter(|it| is_ours(&it.pod, &it.direction, &it.reason)).map(|it| it.packets).sum()
}

fn resident(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn metric(shop: &Shop, name: &str) -> f64 {
    let ask = || {
        let mut stream = TcpStream::connect(METRICS).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let text = shop.node.node(NODE).unwrap().namespace().enter(ask).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().parse().unwrap_or_default()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        thread::yield_now();
    }
}

#[test]
fn a_flood_of_denied_datagrams_is_counted_exactly_and_told_within_bounds() {
    if !has_agent() {
        return;
    }
    let shop = Shop::build(&case("shop"), &[]).unwrap();
    shop.put_policies().unwrap();
    let arguments = ["--metrics-address", METRICS].map(str::to_owned).to_vec();
    let agent =
        Agent::start(&shop.node, &Options { node: Some(NODE.to_owned()), arguments, ..Options::default() }).unwrap();
    agent.sync().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let path = agent.flow_socket().unwrap();
    let (told, stuck) = (Arc::new(Told::default()), runtime.block_on(answers(path.clone())));
    runtime.spawn(observe(path, told.clone()));
    let before = counted(&agent);
    let (stop, length) = (AtomicBool::new(false), Duration::from_secs(if is_full() { 20 } else { 1 }));
    let begun = Instant::now();
    let (sent, took) = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&shop, &stop));
        // Somebody else's drop is told of all the same, while it rains.
        let database = Target { name: FROM.to_owned(), port: 5432, transport: Transport::Tcp };
        let probe = shop.probe("monitoring/grafana", &database, false).unwrap();
        drop(shop.node.probe(&probe, SILENCE).unwrap());
        eventually("a drop of another pod is not told of", || told.others.load(Ordering::Relaxed) > 0);
        thread::sleep(length.saturating_sub(begun.elapsed()));
        stop.store(true, Ordering::Relaxed);
        (flooding.join().unwrap(), begun.elapsed())
    });
    eventually("not every packet was counted", || counted(&agent) - before >= sent);
    assert_eq!(counted(&agent) - before, sent, "to the packet");

    let config = default_config().unwrap();
    let cpus = u64::try_from(thread::available_parallelism().unwrap().get()).unwrap();
    // A bucket a CPU, a verdict and a drop for each event.
    let bound = (took.as_secs() + 3) * u64::from(config.events_per_second) * cpus * 2;
    let flows = told.flows.load(Ordering::Relaxed);
    assert!((1..=bound).contains(&flows), "{flows} flows where {bound} may be");
    eventually("no observer was told what was lost", || told.lost.load(Ordering::Relaxed) > 0);
    let of = |source: &str| metric(&shop, &format!("hubble_lost_events_total{{source=\"{source}\"}}"));
    eventually("no metric says what was lost", || of("observer_events_queue") + of("perf_event_ring_buffer") > 0.0);
    let bytes = resident(&agent);
    assert!(bytes < MOST_RESIDENT, "{bytes} bytes resident");
    println!(
        "{sent} denied datagrams in {took:.1?} ({:.0} a second), all counted; {flows} flows told, {} events told as lost; {} MiB resident",
        f64::from(u32::try_from(sent).unwrap_or(u32::MAX)) / took.as_secs_f64(),
        told.lost.load(Ordering::Relaxed),
        bytes >> 20
    );
    drop(stuck);
}
