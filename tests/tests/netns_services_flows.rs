//! Flows through services while policy changes, and answers that nobody asked for.
//!
//! What the client knows of such a flow is the virtual address; what policy is about is the backend behind it.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netpol_tests::cluster::Cluster;
use netpol_tests::connection::{Connection, Side};
use netpol_tests::probe::{PATIENCE, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::services::{NODES, Policed, Way, egress, ingress, policy};
use tokio::net::TcpSocket;

netpol_tests::scenes! {
    egress_that_is_revoked_closes_open_connections_and_leaves_others
    ingress_that_is_revoked_closes_open_connections_and_leaves_others
    a_datagram_from_a_denied_backend_is_no_answer
    a_segment_from_a_denied_backend_is_no_answer
    a_large_datagram_passes_whole_or_not_at_all
}

/// How long nothing may arrive on a closed connection: TCP repeats several times within it.
const CUT: Duration = Duration::from_millis(1500);
/// What came late is there by now.
const LATE: Duration = Duration::from_millis(20);
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Connections of a client to backends, through every kind of translation, in both families and transports.
fn connections(policed: &Policed, from: &str, backends: &[&str], ways: &[Way]) -> Vec<Connection> {
    let mut open = Vec::new();
    for (&backend, &way) in backends.iter().flat_map(|backend| ways.iter().map(move |way| (backend, way))) {
        for (transport, ipv6) in TRANSPORTS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
            let probe = policed.services.probe(from, (backend, way), transport, ipv6).unwrap();
            open.push(Connection::open(&policed.services.cluster, &probe).unwrap());
        }
    }
    open
}

/// Whichever side begins, everything arrives.
#[track_caller]
fn assert_open(cluster: &Cluster, connections: &mut [Connection], when: &str) {
    for side in [Side::Server, Side::Client] {
        for connection in &mut *connections {
            assert!(connection.passes(cluster, side, PATIENCE).unwrap(), "{when}: {}: {side:?}", connection.probe());
        }
    }
}

/// Whichever side begins, nothing arrives: all are tried at once.
#[track_caller]
fn assert_closed(cluster: &Cluster, connections: &mut [Connection], when: &str) {
    // Idle clients first: it is the server that goes on.
    for side in [Side::Server, Side::Client, Side::Server] {
        let sent: Vec<String> = connections.iter_mut().map(|it| it.send(cluster, side).unwrap()).collect();
        let other = if side == Side::Server { Side::Client } else { Side::Server };
        let deadline = Instant::now() + CUT;
        for (connection, message) in connections.iter_mut().zip(sent) {
            let left = deadline.saturating_duration_since(Instant::now()).max(LATE);
            let arrived = connection.arrives(cluster, other, &message, left).unwrap();
            assert!(!arrived, "{when}: {}: a message of the {side:?} came through", connection.probe());
        }
    }
}

fn egress_that_is_revoked_closes_open_connections_and_leaves_others(policed: &Policed) {
    let cluster = &policed.services.cluster;
    policed.put("90.yaml", &egress("client", &["near", "far", "near-db", "far-db"])).unwrap();
    policed.put("91.yaml", &egress("other", &["near", "far"])).unwrap();
    let ways = [Way::ClusterIp, Way::NodePort(NODES[0])];
    let mut revoked = connections(policed, "shop/client", &["near", "far"], &ways);
    let mut kept = connections(policed, "shop/client", &["near-db", "far-db"], &ways);
    kept.extend(connections(policed, "shop/other", &["near", "far"], &ways));
    assert_open(cluster, &mut revoked, "before");
    assert_open(cluster, &mut kept, "before");
    policed.put("90.yaml", &egress("client", &["near-db", "far-db"])).unwrap();
    assert_closed(cluster, &mut revoked, "revoked");
    assert_open(cluster, &mut kept, "still allowed");
}

fn ingress_that_is_revoked_closes_open_connections_and_leaves_others(policed: &Policed) {
    let cluster = &policed.services.cluster;
    // The client is under egress policy as well, so that what is closed here is closed by the backend's side.
    policed.put("90.yaml", &egress("client", &["near", "far"])).unwrap();
    for (file, backend) in [("91.yaml", "near"), ("92.yaml", "far")] {
        policed.put(file, &ingress(backend, &["client", "other"])).unwrap();
    }
    let mut revoked = connections(policed, "shop/client", &["near", "far"], &[Way::ClusterIp]);
    let mut kept = connections(policed, "shop/other", &["near", "far"], &[Way::ClusterIp]);
    assert_open(cluster, &mut revoked, "before");
    assert_open(cluster, &mut kept, "before");
    for (file, backend) in [("91.yaml", "near"), ("92.yaml", "far")] {
        policed.put(file, &ingress(backend, &["other"])).unwrap();
    }
    assert_closed(cluster, &mut revoked, "revoked");
    assert_open(cluster, &mut kept, "still allowed");
}

/// Nothing may come to the client but what belongs to what it sent.
fn isolated_client(to: &[&str]) -> String {
    format!("{}---\n{}", egress("client", to), policy("client", "ingress", "[]"))
}

fn udp_socket(cluster: &Cluster, place: &str, address: IpAddr, port: u16) -> UdpSocket {
    let socket = cluster.namespace(place).unwrap().enter(|| UdpSocket::bind((address, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

/// What is waiting at a socket, or comes soon.
fn heard(socket: &UdpSocket) -> Vec<String> {
    let mut buffer = [0; 64];
    let mut heard = Vec::new();
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => heard.push(String::from_utf8_lossy(buffer.get(..length).unwrap()).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return heard,
            Err(error) => heard.push(error.to_string()),
        }
    }
}

fn a_datagram_from_a_denied_backend_is_no_answer(policed: &Policed) {
    let cluster = &policed.services.cluster;
    for (backend, ipv6) in [("near-mute", false), ("near-mute", true), ("far-mute", false), ("far-mute", true)] {
        let place = format!("shop/{backend}");
        let speaker = udp_socket(cluster, &place, cluster.address(&place, ipv6).unwrap(), 5353);
        let at = policed.services.at(backend, Way::ClusterIp, Transport::Udp, ipv6).unwrap();
        let allowed = policed.services.at("near", Way::ClusterIp, Transport::Udp, ipv6).unwrap();
        for (peers, wanted) in [(&["near"][..], &["shop/near\n"][..]), (&["near", backend], &["push", "shop/near\n"])] {
            policed.put("90.yaml", &isolated_client(peers)).unwrap();
            let address = cluster.address("shop/client", ipv6).unwrap();
            let client = udp_socket(cluster, "shop/client", address, 0);
            // From one port to both services: the other's answer is the client's, and no licence for this one.
            client.send_to(b"knock\n", at).unwrap();
            client.send_to(b"HELLO\n", allowed).unwrap();
            let arrived = heard(&speaker);
            speaker.send_to(b"push", client.local_addr().unwrap()).unwrap();
            let mut heard = heard(&client);
            heard.sort();
            assert_eq!(
                (heard, arrived.len()),
                (wanted.iter().map(|it| (*it).to_owned()).collect(), wanted.len() - 1),
                "{backend} {at}, allowed: {peers:?}"
            );
        }
    }
}

/// Begins a connection from a fixed port and lets it go on; the port.
fn connect(cluster: &Cluster, place: &str, from: SocketAddr, to: SocketAddr) -> (u16, tokio::task::JoinHandle<bool>) {
    let socket = cluster
        .namespace(place)
        .unwrap()
        .enter(|| {
            let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
            socket.bind(from).unwrap();
            socket
        })
        .unwrap();
    let port = socket.local_addr().unwrap().port();
    (port, cluster.runtime().spawn(async move { socket.connect(to).await.is_ok() }))
}

fn a_segment_from_a_denied_backend_is_no_answer(policed: &Policed) {
    let cluster = &policed.services.cluster;
    policed.put("90.yaml", &isolated_client(&["near"])).unwrap();
    for (backend, ipv6) in [("near-mute", false), ("near-mute", true), ("far-mute", false), ("far-mute", true)] {
        let place = format!("shop/{backend}");
        let (own, backends) = (cluster.address("shop/client", ipv6).unwrap(), cluster.address(&place, ipv6).unwrap());
        let mut at_backend = cluster.watch(&place).unwrap();
        let mut at_client = cluster.watch("shop/client").unwrap();
        let at = policed.services.at(backend, Way::ClusterIp, Transport::Tcp, ipv6).unwrap();
        let (port, asks) = connect(cluster, "shop/client", (own, 0).into(), at);
        std::thread::sleep(SILENCE);
        // To the client, the kernel's translation makes of this SYN one of the service: both ends open at once.
        let (_port, pushes) = connect(cluster, &place, (backends, 8080).into(), (own, port).into());
        std::thread::sleep(SILENCE);
        assert_eq!(at_backend.at_port(Transport::Tcp, 8080).unwrap(), 0, "{backend} {at}: the client's SYN arrived");
        assert_eq!(at_client.at_port(Transport::Tcp, port).unwrap(), 0, "{backend} {at}: the backend's SYN arrived");
        assert!(!asks.is_finished() && !pushes.is_finished(), "{backend} {at}");
        asks.abort();
        pushes.abort();
    }
}

/// How much of a datagram comes in soon.
fn received(socket: &UdpSocket) -> Option<(usize, SocketAddr)> {
    let mut buffer = [0; 8192];
    socket.recv_from(&mut buffer).ok()
}

fn a_large_datagram_passes_whole_or_not_at_all(policed: &Policed) {
    const LARGE: usize = 4000;
    let cluster = &policed.services.cluster;
    for (backend, ipv6) in [("near-mute", false), ("near-mute", true), ("far-mute", false), ("far-mute", true)] {
        let place = format!("shop/{backend}");
        let speaker = udp_socket(cluster, &place, cluster.address(&place, ipv6).unwrap(), 5353);
        let at = policed.services.at(backend, Way::ClusterIp, Transport::Udp, ipv6).unwrap();
        policed.put("90.yaml", &isolated_client(&["near"])).unwrap();
        let client = udp_socket(cluster, "shop/client", cluster.address("shop/client", ipv6).unwrap(), 0);
        let mut arrivals = cluster.watch(&place).unwrap();
        client.send_to(&[b'x'; LARGE], at).unwrap();
        assert_eq!(received(&speaker), None, "{backend} {at}");
        let came = [arrivals.at_port(Transport::Udp, 5353), arrivals.later_fragments(Transport::Udp)];
        assert_eq!(came.map(Result::unwrap), [0, 0], "{backend} {at}: first and later fragments");

        policed.put("90.yaml", &isolated_client(&[backend])).unwrap();
        client.send_to(&[b'x'; LARGE], at).unwrap();
        let (length, seen) = received(&speaker).unwrap_or_else(|| panic!("nothing came to {backend} {at}"));
        assert_eq!(length, LARGE);
        assert!(arrivals.later_fragments(Transport::Udp).unwrap() > 0, "{backend} {at}: it came in pieces");
        speaker.send_to(&[b'y'; LARGE], seen).unwrap();
        assert_eq!(received(&client), Some((LARGE, at)), "{backend} {at}: the answer");
    }
}
