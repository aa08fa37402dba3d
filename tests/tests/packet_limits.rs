//! What one packet cannot show: many drops, few events, exact counters; GSO; far interfaces; few capabilities. Needs root and
//! the built object: `cargo xtask test packet`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use netpol_agent::datapath::loader::default_config;
use netpol_agent::datapath::sizing::Sizing;
use netpol_common::abi::{Config, Counter, CounterIndex, Direction, Event, Hook, Reason, capacity};
use netpol_common::classify::Frame;
use netpol_tests::agent::confine::{KEPT, confine};
use netpol_tests::frame::datagram::{Datagram, Transport};
use netpol_tests::packet::cast::{self, BRIDGE_MAC, Cast, DNS, Family, Isolation, POD_MAC, SLOT};
use netpol_tests::packet::kernel::{Context, Kernel};
use netpol_tests::packet::privilege::{effective_capabilities, object_or_skip};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

const PLAIN: Frame = Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false };

/// A kernel whose pod is denied everything, on this CPU alone: events are bounded on each.
fn denied(object: &[u8], config: Config) -> Kernel {
    let mut cpus = CpuSet::new();
    cpus.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let mut kernel = Kernel::load_sized(object, config, &Sizing::default()).unwrap();
    kernel.reset(&Cast::of(Family::V4).tables(config)).unwrap();
    kernel.set_subject(cast::endpoint(), Isolation::DenyAll.word(1)).unwrap();
    kernel
}

/// A datagram of the pod.
fn datagram(source_port: u16) -> Vec<u8> {
    let cast = Cast::of(Family::V4);
    let datagram = Datagram::new(cast.pod, cast.client, Transport::Udp { ports: [source_port, DNS] });
    datagram.frame(POD_MAC, BRIDGE_MAC).unwrap()
}

/// The counter of the pod's drops by policy, and nothing else, moved by so many of these frames.
fn require_counted(kernel: &mut Kernel, packets: u64, frame: &[u8]) {
    let index = CounterIndex::new(SLOT, Direction::Egress, Reason::PolicyDenied);
    let bytes = packets * u64::try_from(frame.len()).unwrap();
    assert_eq!(kernel.moved().unwrap(), [(index, Counter { packets, bytes })]);
}

fn suppressed(events: &[Event]) -> u64 {
    events.iter().map(|event| u64::from(event.suppressed)).sum()
}

fn count(events: &[Event]) -> u64 {
    u64::try_from(events.len()).unwrap()
}

#[test]
fn a_hundred_thousand_drops_of_one_flow_are_counted_and_told_now_and_then() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let defaults = default_config().unwrap();
    let interval = Duration::from_millis(50);
    let config = Config { event_interval: defaults.hz / 20, ..defaults };
    let mut kernel = denied(&object, config);
    let frame = datagram(40_000);
    let begun = Instant::now();
    for _ in 0..10 {
        kernel.run_often(Hook::FromPod, &frame, &Context::of(&PLAIN), 10_000).unwrap();
        sleep(Duration::from_millis(20));
    }
    let passed = begun.elapsed();
    require_counted(&mut kernel, 100_000, &frame);
    let events = kernel.events().unwrap();
    let most = passed.as_millis() / interval.as_millis() + 2;
    assert!((2..=most).contains(&u128::from(count(&events))), "{} events in {passed:?}", events.len());
    let totals = kernel.event_totals(SLOT).unwrap();
    assert_eq!(count(&events) + suppressed(&events) + totals.suppressed, 100_000, "{totals:?}");
    assert_eq!((totals.refused, totals.lost), (0, 0));
    assert!(events.is_sorted_by_key(|event| event.time));
}

#[test]
fn a_scan_of_many_flows_gets_the_pods_share_of_events_and_no_more() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let config = default_config().unwrap();
    let mut kernel = denied(&object, config);
    let begun = Instant::now();
    let flows = 20_000;
    for source_port in 1..=flows {
        kernel.run(Hook::FromPod, &datagram(source_port), &PLAIN).unwrap();
    }
    let passed = begun.elapsed();
    require_counted(&mut kernel, flows.into(), &datagram(1));
    let events = kernel.events().unwrap();
    let most = (passed.as_secs() + 2) * u64::from(config.events_per_second);
    assert!((1..=most).contains(&count(&events)), "{} events in {passed:?}", events.len());
    // Each flow was dropped once: it has an event, or the pod's budget was spent.
    let totals = kernel.event_totals(SLOT).unwrap();
    assert_eq!(
        count(&events) + suppressed(&events) + totals.suppressed + totals.refused,
        u64::from(flows),
        "{totals:?}"
    );
    assert_eq!(totals.lost, 0);
}

#[test]
fn events_that_find_the_ring_full_are_counted() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let config = Config { event_interval: 0, events_per_second: u32::MAX, ..default_config().unwrap() };
    let mut kernel = denied(&object, config);
    let packets = 20_000;
    let frame = datagram(40_000);
    kernel.run_often(Hook::FromPod, &frame, &Context::of(&PLAIN), packets).unwrap();
    require_counted(&mut kernel, packets.into(), &frame);
    let events = kernel.events().unwrap();
    // An event and the ring's own eight bytes.
    assert_eq!(events.len(), usize::try_from(capacity::EVENT_RING_BYTES).unwrap() / (size_of::<Event>() + 8));
    let totals = kernel.event_totals(SLOT).unwrap();
    assert_eq!(count(&events) + totals.lost, u64::from(packets), "{totals:?}");
}

#[test]
fn a_gso_packet_counts_as_its_segments() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let mut kernel = denied(&object, default_config().unwrap());
    let frame = datagram(40_000);
    for (segments, packets) in [(0, 1), (1, 1), (2, 2), (45, 45)] {
        kernel.run_as(Hook::FromPod, &frame, &Context::of(&PLAIN).segments(segments)).unwrap();
        let bytes = u64::try_from(frame.len()).unwrap();
        let index = CounterIndex::new(SLOT, Direction::Egress, Reason::PolicyDenied);
        assert_eq!(kernel.moved().unwrap(), [(index, Counter { packets, bytes })]);
    }
}

/// A long-lived node has counted its interfaces beyond the array.
#[test]
fn an_interface_with_a_large_index_has_its_endpoint_too() {
    let Some(object) = object_or_skip().unwrap() else { return };
    // The namespace is this thread's, and ends with it.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for (name, ifindex) in
        [("near", capacity::NEAR_IFINDEXES - 1), ("edge", capacity::NEAR_IFINDEXES), ("far", 1_000_000)]
    {
        let index = ifindex.to_string();
        let peer = format!("{name}-peer");
        let made = Command::new("ip")
            .args(["link", "add", "name", name, "index", &index, "type", "veth", "peer", "name", &peer])
            .status()
            .expect("iproute2");
        assert!(made.success());
        assert_eq!(if_nametoindex(name).unwrap(), ifindex);
    }
    let mut kernel = Kernel::load_sized(&object, default_config().unwrap(), &Sizing::default()).unwrap();
    kernel.reset(&Cast::of(Family::V4).tables(kernel.config())).unwrap();
    for ifindex in [capacity::NEAR_IFINDEXES - 1, capacity::NEAR_IFINDEXES, 1_000_000] {
        let context = Context::of(&PLAIN).at(ifindex);
        // Nobody has registered it: closed.
        assert!(!kernel.run_as(Hook::FromPod, &datagram(40_000), &context).unwrap().passed());
        kernel.set_subject_at(ifindex, cast::endpoint(), Isolation::Free.word(1)).unwrap();
        let outcome = kernel.run_as(Hook::FromPod, &datagram(40_000), &context).unwrap();
        assert!(outcome.passed());
        assert_eq!(outcome.mark, 0xff00_0000, "judged, as the mark of every pod says");
    }
    let reasons: Vec<(u8, u32)> = kernel.events().unwrap().iter().map(|event| (event.reason, event.ifindex)).collect();
    let pending = Reason::EndpointPending as u8;
    assert_eq!(reasons.first(), Some(&(pending, capacity::NEAR_IFINDEXES - 1)));
}

/// This test again, in a process that may do no more than the agent.
const CONFINED: &str = "NETPOL_TEST_CONFINED";

#[test]
fn three_capabilities_are_enough_to_load() {
    let Some(object) = object_or_skip().unwrap() else { return };
    if std::env::var_os(CONFINED).is_some() {
        let kept = KEPT.iter().fold(0, |set, capability| set | 1_u64 << capability);
        assert_eq!(effective_capabilities().unwrap(), kept);
        Kernel::load_sized(&object, default_config().unwrap(), &Sizing::default()).unwrap();
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "three_capabilities_are_enough_to_load", "--nocapture"]).env(CONFINED, "1");
    confine(&mut again, None).unwrap();
    let output = again.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
