//! Shapes of connections and the entries that they come to.

use netpol_common::abi::{AllowKey, AllowValue, Config};

use super::super::conntrack::Echo;
use super::*;

const NODE: &str = "192.0.2.10";
/// The bridge's address, which masquerades.
const BRIDGE: &str = "10.244.1.1";
const SERVICE: &str = "10.96.0.10";
const FAR: &str = "10.244.2.9";
/// A policy id that allows TCP and nothing else to identity 7.
const POLICY: u16 = 5;

fn tuple(source: (&str, u16), destination: (&str, u16)) -> Tuple {
    Tuple {
        source: source.0.parse().unwrap(),
        destination: destination.0.parse().unwrap(),
        source_port: source.1,
        destination_port: destination.1,
    }
}

fn tcp(original: Tuple, reply: Tuple) -> Connection {
    let tcp = Some(TcpState::Established);
    Connection { protocol: 6, original, reply, tcp, echo: None, answered: true, zone: 0, timeout: 100 }
}

/// A connection without translation.
fn plain(from: (&str, u16), to: (&str, u16)) -> Connection {
    tcp(tuple(from, to), tuple(to, from))
}

fn endpoint(slot: u16, v4: &str) -> Endpoint {
    let v4: std::net::Ipv4Addr = v4.parse().unwrap();
    let v6: std::net::Ipv6Addr = format!("fd00::{slot}").parse().unwrap();
    Endpoint {
        slot,
        flags: EndpointFlags::HAS_V4 | EndpointFlags::HAS_V6,
        mac: Mac::from_octets([2, 0, 0, 0, 1, u8::try_from(slot).unwrap()]),
        ipv4: v4.into(),
        ipv6: v6.into(),
        ..Endpoint::default()
    }
}

const A: &str = "10.244.1.5";
const B: &str = "10.244.1.6";

/// A node with pods A (slot 1) and B (slot 2).
fn node() -> Replay {
    let mut tables = HostTables::new(Config::for_hz(250));
    tables.set_role(NODE.parse().unwrap(), AddressRole::OWN);
    tables.set_role(BRIDGE.parse().unwrap(), AddressRole::OWN);
    tables.set_role(SERVICE.parse().unwrap(), AddressRole::SERVICE);
    let mut replay = Replay::new(tables);
    replay.set_pods(pods(PolicyWord::new(0, 0, 4), PolicyWord::new(0, 0, 4)));
    replay
}

fn pods(a: PolicyWord, b: PolicyWord) -> [(Endpoint, PolicyWord); 2] {
    [(endpoint(1, A), a), (endpoint(2, B), b)]
}

/// What a seed says, short: slot, pod's port, peer, opener, flags, answered table, origin.
type Line = (u16, u16, String, u16, Direction, u8, bool, u16);

fn lines(replay: &Replay) -> Vec<Line> {
    let mut lines: Vec<Line> = replay
        .seeds()
        .v4
        .iter()
        .map(|Seed { key, flow, answered }| {
            let peer = std::net::Ipv4Addr::from(key.peer).to_string();
            assert_eq!(flow.word.revision(), 4, "under the revision before the first policy");
            assert!(!flow.word.has(FlowWord::PICKED_UP));
            let flags = flow.word.flags() & (FlowWord::DEFERRED | FlowWord::EXEMPT);
            (key.slot, key.pod_port, peer, key.peer_port, flow.word.opener(), flags, *answered, flow.origin)
        })
        .collect();
    lines.sort();
    lines
}

fn opened(connection: &Connection) -> (Vec<Line>, Seeds) {
    let replay = node();
    assert!(replay.concerns(connection));
    replay.open(connection);
    (lines(&replay), replay.seeds())
}

use Direction::{Egress, Ingress};

#[test]
fn between_pods_of_one_node_each_has_an_entry_of_its_own() {
    let (lines, seeds) = opened(&plain((A, 4000), (B, 80)));
    assert_eq!(
        lines,
        [(1, 4000, B.to_owned(), 80, Egress, 0, true, 0), (2, 80, A.to_owned(), 4000, Ingress, 0, true, 0)]
    );
    assert!(seeds.v4.iter().all(|seed| seed.flow.word.state() == FlowState::Established));
    assert_eq!(seeds.backends, []);
}

#[test]
fn with_an_end_elsewhere_there_is_one_entry() {
    for (connection, line) in [
        (plain((A, 4000), (FAR, 80)), (1, 4000, FAR.to_owned(), 80, Egress, 0, true, 0)),
        (plain((FAR, 4000), (A, 80)), (1, 80, FAR.to_owned(), 4000, Ingress, 0, true, 0)),
        (plain((NODE, 4000), (A, 80)), (1, 80, NODE.to_owned(), 4000, Ingress, FlowWord::EXEMPT, true, 0)),
    ] {
        assert_eq!(opened(&connection).0, [line]);
    }
    assert!(!node().concerns(&plain((FAR, 1), (NODE, 2))));
}

#[test]
fn behind_a_service_the_pod_knows_the_service_and_the_backend_is_recorded() {
    let deferred = FlowWord::DEFERRED;
    let remote = tcp(tuple((A, 4000), (SERVICE, 80)), tuple((FAR, 8080), (A, 4000)));
    let (lines, seeds) = opened(&remote);
    assert_eq!(lines, [(1, 4000, SERVICE.to_owned(), 80, Egress, deferred, true, 0)]);
    let [(key, backend)] = seeds.backends.as_slice() else { panic!("{seeds:?}") };
    assert_eq!((key.slot, backend.port, backend.address), (1, 8080, [seeds_of(FAR), 0, 0, 0]));

    let local = tcp(tuple((A, 4000), (SERVICE, 80)), tuple((B, 8080), (A, 4000)));
    let (lines, seeds) = opened(&local);
    assert_eq!(
        lines,
        [
            (1, 4000, SERVICE.to_owned(), 80, Egress, deferred, true, 0),
            (2, 8080, A.to_owned(), 4000, Ingress, 0, true, 0)
        ]
    );
    assert_eq!(seeds.backends.len(), 1);
}

fn seeds_of(address: &str) -> u32 {
    V4::from(address.parse::<std::net::Ipv4Addr>().unwrap()).0
}

#[test]
fn who_hides_behind_a_masquerade_is_known_if_it_is_a_pod_of_this_node() {
    // A node port of its own node, and a pod through its own service.
    let through_node = tcp(tuple((A, 4000), (NODE, 30080)), tuple((B, 8080), (BRIDGE, 5000)));
    let both = FlowWord::DEFERRED | FlowWord::EXEMPT;
    assert_eq!(
        opened(&through_node).0,
        [
            (1, 4000, NODE.to_owned(), 30080, Egress, both, true, 0),
            (2, 8080, BRIDGE.to_owned(), 5000, Ingress, 0, true, 1)
        ]
    );
    let hairpin = tcp(tuple((A, 4000), (SERVICE, 80)), tuple((A, 8080), (BRIDGE, 5000)));
    let (lines, _) = opened(&hairpin);
    let exempt = FlowWord::EXEMPT;
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0].4, lines[0].5), (Egress, FlowWord::DEFERRED));
    assert_eq!((lines[1].4, lines[1].5, lines[1].2.as_str()), (Ingress, exempt, BRIDGE));
    // A pod of another node, by way of a node port of this one.
    let elsewhere = tcp(tuple((FAR, 4000), (NODE, 30080)), tuple((A, 8080), (BRIDGE, 5000)));
    assert_eq!(opened(&elsewhere).0, [(1, 8080, BRIDGE.to_owned(), 5000, Ingress, 0, true, 0)]);
}

#[test]
fn what_is_not_answered_or_over_is_so() {
    let state = |connection: &Connection| {
        let (_, seeds) = opened(connection);
        seeds.v4.iter().map(|seed| (seed.flow.word.state(), seed.answered)).collect::<Vec<_>>()
    };
    let open = plain((A, 4000), (FAR, 80));
    let syn = Connection { tcp: Some(TcpState::SynSent), answered: false, ..open };
    assert_eq!(state(&syn), [(FlowState::Opening, false)]);
    let answered = Connection { tcp: Some(TcpState::SynReceived), ..open };
    assert_eq!(state(&answered), [(FlowState::Established, false)], "a flood of SYNs is answered too");
    let over = Connection { tcp: Some(TcpState::Over), ..open };
    assert_eq!(state(&over), [(FlowState::Closing, true)]);
    let datagrams = Connection { protocol: 17, tcp: None, ..open };
    assert_eq!(state(&datagrams), [(FlowState::Established, true)]);
    assert_eq!(state(&Connection { answered: false, ..datagrams }), [(FlowState::Opening, false)]);
    let sctp = Connection { protocol: 132, tcp: None, ..open };
    assert_eq!(state(&sctp), [(FlowState::Established, true)]);
}

#[test]
fn echo_has_its_identifier_at_the_end_that_asks() {
    let echo = Some(Echo { kind: 8, identifier: 77, answered_identifier: 77 });
    let connection = Connection { protocol: 1, tcp: None, echo, ..plain((A, 0), (B, 0)) };
    assert_eq!(
        opened(&connection).0,
        [(1, 77, B.to_owned(), 0, Egress, 0, true, 0), (2, 0, A.to_owned(), 77, Ingress, 0, true, 0)]
    );
    let other = Connection { echo: Some(Echo { kind: 13, identifier: 77, answered_identifier: 77 }), ..connection };
    assert_eq!(opened(&other).0, []);
}

#[test]
fn the_other_family_is_the_same() {
    let v6 = plain(("fd00::1", 4000), ("2001:db8::1", 80));
    let (_, seeds) = opened(&v6);
    assert_eq!((seeds.v6.len(), seeds.v4.len()), (1, 0));
    assert!(seeds.v6.iter().all(|seed| seed.answered && seed.flow.word.opener() == Egress));
}

#[test]
fn what_is_worth_most_comes_first() {
    let replay = node();
    let over = Connection { tcp: Some(TcpState::Over), ..plain((A, 1), (FAR, 80)) };
    let datagrams = Connection { protocol: 17, tcp: None, ..plain((A, 2), (FAR, 80)) };
    let asked = Connection { answered: false, ..datagrams };
    for connection in [over, asked, Connection { original: tuple((A, 3), (FAR, 80)), ..plain((A, 3), (FAR, 80)) }] {
        replay.open(&connection);
    }
    replay.open(&Connection { protocol: 17, tcp: None, ..plain((A, 4), (FAR, 80)) });
    let ports: Vec<u16> = replay.seeds().v4.iter().map(|seed| seed.key.pod_port).collect();
    assert_eq!(ports, [3, 4, 2, 1]);
}

/// The slots and directions that refuse each connection, under policies where A and B let identity 7 have TCP.
fn refused(connections: &[Connection], a: PolicyWord, b: PolicyWord) -> Vec<Option<(u16, Direction)>> {
    let mut replay = node();
    connections.iter().for_each(|connection| replay.open(connection));
    replay.set_policy(|tables| {
        tables.allow.insert(AllowKey::new(POLICY, 7), AllowValue { tcp: 1, ..AllowValue::default() });
        tables.set_identity(FAR.parse().unwrap(), 7);
        tables.set_identity(A.parse().unwrap(), 7);
    });
    replay.set_pods(pods(a, b));
    connections.iter().map(|one| replay.refusal(one).map(|it| (it.slot, it.direction))).collect()
}

#[test]
fn a_connection_is_judged_by_who_opened_it() {
    let inbound = plain(("198.51.100.9", 4000), (B, 80));
    let outbound = plain((B, 4001), ("198.51.100.9", 80));
    let free = PolicyWord::new(0, 0, 4);
    let ingress_only = PolicyWord::new(POLICY, 0, 5);
    assert_eq!(refused(&[inbound, outbound], free, ingress_only), [Some((2, Ingress)), None]);
    let egress_only = PolicyWord::new(0, POLICY, 5);
    assert_eq!(refused(&[inbound, outbound], free, egress_only), [None, Some((2, Egress))]);
    let peer = plain((FAR, 4000), (B, 80));
    let datagrams = Connection { protocol: 17, tcp: None, ..plain((FAR, 4000), (B, 53)) };
    assert_eq!(refused(&[peer, datagrams], free, ingress_only), [None, Some((2, Ingress))]);
}

#[test]
fn a_service_is_judged_by_its_backend_and_a_masquerade_by_who_is_behind_it() {
    let free = PolicyWord::new(0, 0, 4);
    let to = |backend| tcp(tuple((A, 4000), (SERVICE, 80)), tuple((backend, 8080), (A, 4000)));
    let egress = PolicyWord::new(0, POLICY, 5);
    assert_eq!(refused(&[to(FAR)], egress, free), [None]);
    assert_eq!(refused(&[to("10.244.2.10")], egress, free), [Some((1, Egress))]);
    let through_node = |from| tcp(tuple((from, 4000), (NODE, 30080)), tuple((B, 8080), (BRIDGE, 5000)));
    let ingress = PolicyWord::new(POLICY, 0, 5);
    assert_eq!(refused(&[through_node(A)], free, ingress), [None]);
    assert_eq!(refused(&[through_node(FAR)], free, ingress), [Some((2, Ingress))], "it is the node's address");
}
