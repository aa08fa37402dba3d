//! A storm of denied packets, and ten observers: counters exact, events bounded, what is lost told, memory bounded. Needs root
//! and the built object: `cargo xtask test packet`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::TokioIo;
use netpol_agent::cluster::ClusterState;
use netpol_agent::datapath::loader::default_config;
use netpol_agent::datapath::sizing::Sizing;
use netpol_agent::flow::decode::decode;
use netpol_agent::flow::departed::Departed;
use netpol_agent::flow::enrich::{Clock, Surroundings, enrich};
use netpol_agent::observe::hubble::Hub;
use netpol_agent::observe::hubble::listen;
use netpol_agent::observe::hubble::peers::Address;
use netpol_agent::observe::hubble::proto::observer::GetFlowsRequest;
use netpol_agent::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use netpol_agent::observe::hubble::proto::observer::observer_client::ObserverClient;
use netpol_agent::policy::Provenance;
use netpol_common::abi::{Config, Counter, CounterIndex, Direction, Hook, Reason};
use netpol_common::classify::Frame;
use netpol_tests::frame::datagram::{Datagram, Transport};
use netpol_tests::packet::cast::{self, BRIDGE_MAC, Cast, DNS, Family, Isolation, POD_MAC, SLOT};
use netpol_tests::packet::kernel::{Context, Kernel};
use netpol_tests::packet::privilege::object_or_skip;
use tonic::transport::{Channel, Endpoint, Uri};

const PLAIN: Frame = Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false };
/// Packets of the storm, and how many of them between two looks into the ring.
const PACKETS: u64 = 10_000_000;
const AT_A_TIME: u32 = 50_000;
/// Resident memory of this whole process that observers may bring it to.
const MOST_RESIDENT: u64 = 100 << 20;

async fn channel(path: PathBuf) -> Channel {
    let connect = move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(connect)).await.unwrap()
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A storm under this configuration into a ring of the usual size: events that came out of the kernel.
fn storm(object: &[u8], config: Config, packets: u64, hub: &Hub) -> u64 {
    let mut kernel = Kernel::load_sized(object, config, &Sizing::default()).unwrap();
    kernel.reset(&Cast::of(Family::V4).tables(config)).unwrap();
    kernel.set_subject(cast::endpoint(), Isolation::DenyAll.word(1)).unwrap();
    let (cluster, departed, own) = (ClusterState::default(), Departed::default(), BTreeSet::new());
    let (mut sent, mut events, mut port, mut bytes) = (0, 0, 1, 0);
    while sent < packets {
        port = if port == u16::MAX { 1 } else { port + 1 };
        let to = Transport::Udp { ports: [port, DNS] };
        let frame = Datagram::new(Cast::of(Family::V4).pod, Cast::of(Family::V4).client, to);
        let frame = frame.frame(POD_MAC, BRIDGE_MAC).unwrap();
        kernel.run_often(Hook::FromPod, &frame, &Context::of(&PLAIN), AT_A_TIME).unwrap();
        sent += u64::from(AT_A_TIME);
        bytes += u64::from(AT_A_TIME) * u64::try_from(frame.len()).unwrap();
        for record in kernel.records() {
            let event = decode(record.into()).unwrap();
            let around = Surroundings {
                clock: Clock { zero: SystemTime::UNIX_EPOCH },
                cluster: &cluster,
                departed: &departed,
                provenance: &Provenance::default(),
                node: "n",
                own_addresses: &own,
            };
            hub.take(&enrich(&event, around));
            events += 1;
        }
    }
    let index = CounterIndex::new(SLOT, Direction::Egress, Reason::PolicyDenied);
    assert_eq!(kernel.moved().unwrap(), [(index, Counter { packets: sent, bytes })], "counted to the packet");
    events
}

#[test]
fn ten_million_denied_packets_are_counted_exactly_and_told_within_bounds() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let hub = Arc::new(Hub::new("n", 4095));
    let path = std::env::temp_dir().join(format!("netpol-storm-{}.sock", std::process::id()));
    let told = Arc::new(AtomicU64::new(0));
    let (_served, _stuck) = runtime.block_on(async {
        let served = listen::on_socket(&path, hub.clone(), Address::default()).unwrap();
        let request = || GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
        let mut stuck = None;
        for number in 0..10 {
            let mut observer = ObserverClient::new(channel(path.clone()).await);
            let mut answers = observer.get_flows(request()).await.unwrap().into_inner();
            if number == 0 {
                stuck = Some(answers);
                continue;
            }
            let told = told.clone();
            tokio::spawn(async move {
                while let Ok(Some(answer)) = answers.message().await {
                    let count = match answer.response_types {
                        Some(ResponseTypes::Flow(_)) => 1,
                        Some(ResponseTypes::LostEvents(lost)) => lost.num_events_lost,
                        Some(ResponseTypes::NodeStatus(_)) | None => 0,
                    };
                    told.fetch_add(count, Ordering::Relaxed);
                }
            });
        }
        (served, stuck)
    });
    let started = Instant::now();
    let config = default_config().unwrap();
    let events = storm(&object, config, PACKETS, &hub);
    // A bucket a CPU, refilled once a second.
    let cpus = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let bound = (started.elapsed().as_secs() + 2) * u64::from(config.events_per_second) * cpus;
    assert!((1..=bound).contains(&events), "{events} events where {bound} may be");

    // As many events as packets, while nobody of the ten is quick enough: the ring does not grow.
    let unbounded = Config { event_interval: 0, events_per_second: u32::MAX, ..config };
    let more = storm(&object, unbounded, 250_000, &hub);
    assert!(more > bound, "{more} events");
    assert_eq!(hub.ring().seen(), 2 * (events + more), "a verdict and a drop for each");
    let deadline = Instant::now() + Duration::from_secs(30);
    let all = 9 * 2 * (events + more);
    while told.load(Ordering::Relaxed) < all {
        assert!(Instant::now() < deadline, "observers were told of {} of {all}", told.load(Ordering::Relaxed));
        std::thread::yield_now();
    }
    assert_eq!(told.load(Ordering::Relaxed), all, "nothing twice");
    assert!(hub.ring().len() <= 4095 && resident() < MOST_RESIDENT, "{} bytes resident", resident());
}
