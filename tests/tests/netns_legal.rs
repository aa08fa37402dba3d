//! Legal traffic that policy engines like to break, under default deny in both directions: each kind passes where a rule
//! allows it, and not where none does.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use netpol_tests::attack::arena::{Arena, Ground, in_namespace, key, marks};
use netpol_tests::attack::beyond::{Beyond, MTU};
use netpol_tests::attack::cast::{
    BYSTANDER, FAMILIES, FRIEND, GATEWAY_MAC, JAILED, MALLORY, OPEN, SEALED, VICTIM, echo_request, framed, udp,
    unspecified,
};
use netpol_tests::attack::{Drops, Intent, fragments};
use netpol_tests::frame::datagram::{Datagram, Transport};
use netpol_tests::level::has_agent;
use netpol_tests::node::{GATEWAYS, NODE, OUTSIDE, OUTSIDE_ADDRESSES};
use netpol_tests::probe::{PATIENCE, SILENCE};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6Ttl;

/// Nobody may do anything but: `friend` reach `victim` on 9000, and services and hops outside; the outside host reach
/// `victim` on 9000; `bystander` speak to groups, to which `sealed` may listen; `mallory` do anything with `victim`.
const POLICIES: &str = include_str!("../cases/legal/policies.yaml");

fn arena(ground: Ground) -> Option<Arena> {
    has_agent().then(|| Arena::start(ground, POLICIES).unwrap())
}

/// A socket of a place that gives up in time.
fn socket(arena: &Arena, place: &str, at: SocketAddr) -> UdpSocket {
    let socket = arena.node.namespace(place).unwrap().enter(|| UdpSocket::bind(at)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn place(pod: &str) -> String {
    if pod == OUTSIDE { pod.to_owned() } else { key(pod) }
}

/// Sends a datagram there and back. False if one of the two did not arrive in time.
fn exchange(client: &UdpSocket, server: &UdpSocket, bytes: usize) -> bool {
    let question: Vec<u8> = (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mut buffer = vec![0; 65_536];
    client.send(&question).unwrap();
    let Ok((length, from)) = server.recv_from(&mut buffer) else { return false };
    assert!(buffer[..length] == question, "the question arrived otherwise than it was sent");
    server.send_to(&question, from).unwrap();
    client.recv(&mut buffer).is_ok_and(|length| buffer[..length] == question)
}

#[test]
fn large_datagrams_go_both_ways_in_fragments() {
    for ground in [Ground::default(), Ground { conntrack: true, ..Ground::default() }] {
        let Some(arena) = arena(ground) else { return };
        for ipv6 in FAMILIES {
            let at = SocketAddr::new(arena.cast().address(VICTIM, ipv6), OPEN);
            let server = socket(&arena, &key(VICTIM), at);
            for from in [FRIEND, OUTSIDE] {
                let client = socket(&arena, &place(from), SocketAddr::new(unspecified(ipv6), 0));
                client.connect(at).unwrap();
                // The pods' link is smaller than the uplink: a sender outside learns that by losing its first datagram.
                let learns = from == OUTSIDE;
                server.set_read_timeout(Some(if learns { SILENCE } else { PATIENCE })).unwrap();
                let learnt = learns && !exchange(&client, &server, 1452);
                // What it learnt is an error of the next call, unless somebody takes it.
                let _too_long = client.take_error().unwrap();
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                for bytes in [1400, 1452, 2900, 9000, 60_000] {
                    let answered = exchange(&client, &server, bytes);
                    assert!(answered, "{bytes} bytes, {from} to victim, IPv6 {ipv6}, {ground:?}, learnt {learnt}");
                }
            }
        }
    }
}

/// The frames of a datagram in two fragments, with two legal marks.
fn two_fragments(arena: &Arena, from: &str, ipv6: bool, id: u32) -> [Vec<u8>; 2] {
    let cast = arena.cast();
    let protocol = 17;
    let head = udp([40_000, OPEN], &[&Intent::Legal.mark()[..], &[0; 24]].concat()).bytes(true);
    let first = Transport::Raw { protocol, bytes: head.into_iter().take(16).collect() };
    let first = cast.packet(from, VICTIM, ipv6, first);
    let later = fragments::later(&first, Intent::Legal).fragment(id, 16, false);
    let to = if from == OUTSIDE { cast.uplink() } else { cast.mac(VICTIM) };
    [first.fragment(id, 0, true), later].map(|packet| framed(&packet, cast.mac(from), to))
}

/// Without connection tracking nobody on the node puts fragments together; with it (as on any node with kube-proxy) what the
/// node forwards arrives whole.
#[test]
fn fragments_out_of_order_arrive() {
    for ground in [Ground::default(), Ground { conntrack: true, ..Ground::default() }] {
        let Some(mut arena) = arena(ground) else { return };
        for (from, ids) in [(OUTSIDE, [100, 200]), (FRIEND, [300, 400])] {
            for (ipv6, id) in FAMILIES.into_iter().zip(ids) {
                arena.wire(VICTIM).unwrap().forget().unwrap();
                let [first, later] = two_fragments(&arena, from, ipv6, id);
                for frame in [&later, &first] {
                    arena.wire(from).unwrap().send(frame).unwrap();
                }
                let count = |frames: &[Vec<u8>]| frames.iter().map(|it| marks(it, Intent::Legal)).sum::<usize>();
                let arrived = arena.wire(VICTIM).unwrap().wait_until(PATIENCE, |frames| count(frames) == 2).unwrap();
                assert!(arrived, "from {from}, IPv6 {ipv6}, {ground:?}");
            }
        }
        let ahead = Drops { pod: FRIEND, direction: "egress", reason: "fragment-ahead", packets: 2 };
        assert_eq!(arena.counted(&ahead).unwrap(), 2, "{ground:?}");
    }
}

#[test]
fn path_mtu_discovery_works_from_an_isolated_pod() {
    let Some(arena) = arena(Ground::default()) else { return };
    let beyond = Beyond::add(&arena.node).unwrap();
    for ipv6 in FAMILIES {
        let at = SocketAddr::new(Beyond::address(ipv6), 7000);
        let listener = beyond.namespace.enter(|| TcpListener::bind(at)).unwrap().unwrap();
        let related = Drops { pod: FRIEND, direction: "ingress", reason: "related-icmp", packets: 1 };
        let before = arena.counted(&related).unwrap();
        let friend = arena.node.namespace(&key(FRIEND)).unwrap();
        let mut client = friend.enter(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap().unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let (mut server, _client) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = vec![0x5a; 64 * MTU];
        let received = thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut received = Vec::new();
                server.read_to_end(&mut received).map(|_length| received)
            });
            client.write_all(&sent).unwrap();
            drop(client);
            reader.join().unwrap()
        });
        assert_eq!(received.unwrap().len(), sent.len(), "IPv6 {ipv6}");
        assert!(arena.counted(&related).unwrap() > before, "IPv6 {ipv6}: no error about the MTU came in");
    }
}

/// Source address of an ICMP message of this type, if the frame is one (without options or extension headers).
fn source_of(frame: &[u8], kind: u8) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] if frame.get(23)? == &1 && frame.get(34)? == &kind => {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(26..30)?).ok()?).into())
        }
        [0x86, 0xdd] if frame.get(20)? == &58 && frame.get(54)? == &kind => {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(22..38)?).ok()?).into())
        }
        _ => None,
    }
}

#[test]
fn traceroute_hears_every_hop_where_it_is_allowed() {
    let Some(mut arena) = arena(Ground::default()) else { return };
    let _beyond = Beyond::add(&arena.node).unwrap();
    let hops = |ipv6: bool| [GATEWAYS, OUTSIDE_ADDRESSES].map(|[v4, v6]| if ipv6 { v6 } else { v4 });
    for ipv6 in FAMILIES {
        let (exceeded, unreachable) = if ipv6 { (3, 1) } else { (11, 3) };
        let target = Beyond::address(ipv6);
        // UDP, as traceroute does it, where a rule allows the ports.
        let socket = socket(&arena, &key(FRIEND), SocketAddr::new(unspecified(ipv6), 0));
        let answers = hops(ipv6).into_iter().map(|hop| (hop, exceeded)).chain([(target, unreachable)]);
        for (ttl, (hop, kind)) in (1..).zip(answers) {
            let wire = arena.wire(FRIEND).unwrap();
            wire.forget().unwrap();
            if ipv6 {
                setsockopt(&socket, Ipv6Ttl, &i32::try_from(ttl).unwrap()).unwrap();
            } else {
                socket.set_ttl(ttl).unwrap();
            }
            // An answer about an earlier packet is an error of the next call.
            let _earlier = socket.take_error().unwrap();
            socket.send_to(b"traceroute", (target, 33_434)).unwrap();
            let heard = wire.wait_for(PATIENCE, |frame| source_of(frame, kind) == Some(hop)).unwrap();
            assert!(heard, "IPv6 {ipv6}: hop {ttl} ({hop}) is silent");
        }
        // Echo, where a rule without ports allows it, and where none does.
        for (from, allowed) in [(BYSTANDER, true), (FRIEND, false)] {
            for (ttl, hop) in (1..).zip(hops(ipv6)) {
                let packet = echo_request(arena.cast().address(from, ipv6), target, b"traceroute").hops(ttl);
                let frame = framed(&packet, arena.cast().mac(from), GATEWAY_MAC);
                let wire = arena.wire(from).unwrap();
                wire.forget().unwrap();
                wire.send(&frame).unwrap();
                let limit = if allowed { PATIENCE } else { SILENCE };
                let heard = wire.wait_for(limit, |frame| source_of(frame, exceeded) == Some(hop)).unwrap();
                assert_eq!(heard, allowed, "IPv6 {ipv6}: echo of {from}, hop {ttl} ({hop})");
            }
        }
    }
}

/// Waits until an address of a pod's interface is as wanted.
fn wait_for_address(arena: &Arena, pod: &str, address: IpAddr, wanted: impl Fn(&str) -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown =
            in_namespace(&arena.node, &key(pod), "ip", &["-6", "-o", "address", "show", "dev", "eth0"]).unwrap();
        if shown.lines().any(|line| line.contains(&format!(" {address}/")) && wanted(line)) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn duplicate_address_detection_finds_duplicates_and_nothing_else_under_default_deny() {
    let Some(arena) = arena(Ground::default()) else { return };
    let address = |pod: &str, verb: &str, address: IpAddr| {
        let address = format!("{address}/64");
        in_namespace(&arena.node, &key(pod), "ip", &["address", verb, &address, "dev", "eth0"]).unwrap();
    };
    let own = arena.cast().address(SEALED, true);
    let others = arena.cast().address(VICTIM, true);
    let namespace = arena.node.namespace(&key(SEALED)).unwrap();
    namespace.set_sysctls(&[("ipv6/conf/all/accept_dad", "1"), ("ipv6/conf/eth0/accept_dad", "1")]).unwrap();
    address(SEALED, "del", own);
    address(SEALED, "add", own);
    address(SEALED, "add", others);
    assert!(wait_for_address(&arena, SEALED, others, |line| line.contains("dadfailed")), "nobody defends its address");
    assert!(wait_for_address(&arena, SEALED, own, |line| !line.contains("tentative")), "its own address is no good");
}

#[test]
fn arp_and_neighbour_discovery_work_under_default_deny() {
    let Some(arena) = arena(Ground::default()) else { return };
    in_namespace(&arena.node, &key(SEALED), "ip", &["neigh", "flush", "all"]).unwrap();
    for ipv6 in FAMILIES {
        let socket = socket(&arena, &key(SEALED), SocketAddr::new(unspecified(ipv6), 0));
        for neighbour in [NODE, FRIEND] {
            let address = arena.cast().address(neighbour, ipv6);
            let mac = arena.cast().mac(neighbour).map(|byte| format!("{byte:02x}")).join(":");
            socket.send_to(b"who are you", (address, 9)).unwrap();
            let deadline = Instant::now() + PATIENCE;
            let shown =
                || in_namespace(&arena.node, &key(SEALED), "ip", &["neigh", "show", &address.to_string()]).unwrap();
            while !shown().contains(&mac) {
                assert!(Instant::now() < deadline, "{neighbour} ({address}) is not found: {}", shown());
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn multicast_reaches_who_may_hear_it_from_who_may_send_it() {
    let Some(mut arena) = arena(Ground::default()) else { return };
    let groups = [
        (false, IpAddr::from([224, 0, 0, 251])),
        (false, IpAddr::from([239, 1, 2, 3])),
        (true, IpAddr::from([0xff05, 0, 0, 0, 0, 0, 1, 3])),
        // Sent from the link-local address, which only an ipBlock can name.
        (true, IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0xfb])),
    ];
    for (ipv6, group) in groups {
        for (from, to, allowed) in
            [(BYSTANDER, SEALED, true), (MALLORY, SEALED, false), (BYSTANDER, FRIEND, false), (SEALED, FRIEND, false)]
        {
            let receiver = socket(&arena, &key(to), SocketAddr::new(unspecified(ipv6), 5353));
            let index =
                arena.node.namespace(&key(to)).unwrap().enter(|| nix::net::if_::if_nametoindex("eth0")).unwrap();
            match (group, arena.cast().address(to, false)) {
                (IpAddr::V4(group), IpAddr::V4(own)) => receiver.join_multicast_v4(&group, &own).unwrap(),
                (IpAddr::V6(group), _) => receiver.join_multicast_v6(&group, index.unwrap()).unwrap(),
                (IpAddr::V4(_), IpAddr::V6(_)) => unreachable!("an IPv4 address was asked for"),
            }
            // The sender's interface, whatever its routes say.
            let packet =
                Datagram::new(arena.cast().address(from, ipv6), group, udp([5353, 5353], Intent::Legal.mark()));
            let link_local = group == IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]);
            let source = if link_local { arena.cast().link_local(from) } else { packet.source };
            let mac = match group {
                IpAddr::V4(group) => [0x01, 0, 0x5e, group.octets()[1] & 0x7f, group.octets()[2], group.octets()[3]],
                IpAddr::V6(group) => {
                    let [.., a, b, c, d] = group.octets();
                    [0x33, 0x33, a, b, c, d]
                }
            };
            let frame = framed(&Datagram { source, hop_limit: 1, ..packet }, arena.cast().mac(from), mac);
            arena.wire(to).unwrap().forget().unwrap();
            arena.wire(from).unwrap().send(&frame).unwrap();
            let limit = if allowed { PATIENCE } else { SILENCE };
            let heard = arena.wire(to).unwrap().wait_for(limit, |frame| marks(frame, Intent::Legal) > 0).unwrap();
            assert_eq!(heard, allowed, "{group} from {from} to {to}");
        }
    }
}

#[test]
fn a_rule_without_ports_allows_ping_and_one_with_ports_does_not() {
    let Some(mut arena) = arena(Ground::default()) else { return };
    for ipv6 in FAMILIES {
        let victim = arena.cast().address(VICTIM, ipv6);
        for (from, allowed) in [(MALLORY, true), (FRIEND, false), (JAILED, false)] {
            let packet = echo_request(arena.cast().address(from, ipv6), victim, Intent::Legal.mark());
            let frame = arena.cast().frame(from, VICTIM, &packet);
            let wire = arena.wire(from).unwrap();
            wire.forget().unwrap();
            wire.send(&frame).unwrap();
            let limit = if allowed { PATIENCE } else { SILENCE };
            let reply = if ipv6 { 129 } else { 0 };
            let heard = wire.wait_for(limit, |frame| source_of(frame, reply) == Some(victim)).unwrap();
            assert_eq!(heard, allowed, "IPv6 {ipv6}: {from}");
        }
    }
}
