//! Thousands of questions to the network at once, each with an answer that proves something.
//!
//! A *station* is an address with servers behind it: TCP and UDP sockets on every port that is asked for, and a raw socket
//! for SCTP. All sockets are made inside their namespaces and served by one event loop, here. A question passes when its
//! number came back, by a completed TCP exchange, an answered datagram or an answered INIT, from the station that was
//! meant; that it *arrived* is noted beside, whatever the asker heard. How long silence must last is the caller's to say: it
//! is asked whenever nothing moves any more. Must not know policies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::{self, Runtime};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::sctp::{self, Message};
use crate::cluster::Cluster;
use crate::judge::Protocol;
use crate::servers::{tcp_listener, udp_socket};

/// The first look whether the silent ones are accounted for, and the longest pause between two.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];
/// After this long a question that neither arrived nor was accounted for is lost. A SYN is sent again after a second.
const LIMIT: Duration = Duration::from_millis(2500);

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// The station that asks, from its own address.
    pub(super) from: IpAddr,
    /// The station that is meant.
    pub(super) to: IpAddr,
    /// Where it is asked: the station's own address, or one that is translated to it.
    pub(super) at: SocketAddr,
    /// How.
    pub(super) protocol: Protocol,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The exchange was completed.
    Answered,
    /// It arrived, and the answer was not heard.
    Arrived,
    /// It was sent; nothing more is known.
    Silent,
    /// Something else came back, or it could not be sent.
    Other(String),
}

/// The stations and their event loop.
pub(super) struct Prober {
    stations: BTreeMap<IpAddr, Station>,
    board: Arc<Board>,
    next: u32,
    // Last: tasks end before their runtime.
    runtime: Runtime,
}

struct Station {
    place: String,
    served: BTreeSet<(Protocol, u16)>,
    sctp: Arc<AsyncFd<OwnedFd>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Station {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Prober {
    /// Without stations yet.
    pub(super) fn start() -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { stations: BTreeMap::new(), board: Arc::default(), next: 1, runtime })
    }

    /// Opens a station at an address of a place.
    pub(super) fn open(&mut self, cluster: &Cluster, place: &str, address: IpAddr) -> Result<()> {
        let _context = self.runtime.enter();
        let socket = cluster.namespace(place)?.enter(|| sctp::raw_socket(address))??;
        // SAFETY: the descriptor is the station's own and stays open until the `AsyncFd` is dropped.
        #[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]
        let sctp = Arc::new(unsafe { AsyncFd::register(socket) }?);
        let task = self.runtime.spawn(serve_sctp(Arc::clone(&sctp), address, Arc::clone(&self.board)));
        let station = Station { place: place.to_owned(), served: BTreeSet::new(), sctp, tasks: vec![task] };
        self.stations.insert(address, station);
        Ok(())
    }

    /// Closes a station.
    pub(super) fn close(&mut self, address: IpAddr) {
        self.stations.remove(&address);
    }

    /// True if there is a station at this address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.stations.contains_key(&address)
    }

    /// Asks all questions at once. `accounted` is asked, with the number of those that are open, whenever nothing moves:
    /// true ends the wait.
    pub(super) fn ask(
        &mut self,
        cluster: &Cluster,
        asks: &[Ask],
        mut accounted: impl FnMut(usize) -> Result<bool>,
    ) -> Result<Vec<Outcome>> {
        self.serve_all(cluster, asks)?;
        let first = self.next;
        self.next = if first > u32::MAX / 2 { 1 } else { first + u32::try_from(asks.len())? };
        self.board.begin(first, asks);
        let mut tasks = self.send_all(cluster, first, asks)?;
        let started = Instant::now();
        let mut pause = PAUSES[0];
        while self.board.open() > 0 && started.elapsed() < LIMIT {
            let board = Arc::clone(&self.board);
            let moved = self.runtime.block_on(async { timeout(pause, board.moved.notified()).await.is_ok() });
            if moved {
                pause = PAUSES[0];
            } else if accounted(self.board.open())? {
                break;
            } else {
                pause = PAUSES[1].min(pause * 2);
            }
        }
        self.runtime.block_on(tasks.shutdown());
        Ok(self.board.end())
    }

    /// Makes the servers that are missing, one stay in a namespace for each station.
    fn serve_all(&mut self, cluster: &Cluster, asks: &[Ask]) -> Result<()> {
        let mut missing: BTreeMap<IpAddr, BTreeSet<(Protocol, u16)>> = BTreeMap::new();
        for ask in asks {
            let station = self.stations.get(&ask.to).with_context(|| format!("no station at {}", ask.to))?;
            if !station.served.contains(&(ask.protocol, ask.at.port())) {
                missing.entry(ask.to).or_default().insert((ask.protocol, ask.at.port()));
            }
        }
        let _context = self.runtime.enter();
        for (address, ports) in missing {
            let Some(station) = self.stations.get_mut(&address) else { continue };
            let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
            cluster.namespace(&station.place)?.enter(|| {
                for &(protocol, port) in &ports {
                    match protocol {
                        Protocol::Tcp => listeners.push(tcp_listener((address, port).into())?),
                        Protocol::Udp => sockets.push(udp_socket((address, port).into())?),
                        Protocol::Sctp | Protocol::Icmp => {}
                    }
                }
                anyhow::Ok(())
            })??;
            for listener in listeners {
                let served = serve_tcp(TcpListener::from_std(listener)?, address, Arc::clone(&self.board));
                station.tasks.push(self.runtime.spawn(served));
            }
            for socket in sockets {
                let served = serve_udp(UdpSocket::from_std(socket)?, address, Arc::clone(&self.board));
                station.tasks.push(self.runtime.spawn(served));
            }
            station.served.extend(ports);
        }
        Ok(())
    }

    /// Makes the clients, one stay in a namespace for each station, and lets them go.
    fn send_all(&self, cluster: &Cluster, first: u32, asks: &[Ask]) -> Result<JoinSet<()>> {
        let mut by_station: BTreeMap<IpAddr, Vec<(u32, &Ask)>> = BTreeMap::new();
        for (number, ask) in (first..).zip(asks) {
            by_station.entry(ask.from).or_default().push((number, ask));
        }
        let _context = self.runtime.enter();
        let mut tasks = JoinSet::new();
        for (address, asks) in by_station {
            let station = self.stations.get(&address).with_context(|| format!("no station at {address}"))?;
            let clients = cluster
                .namespace(&station.place)?
                .enter(|| asks.iter().map(|(_, ask)| client(ask)).collect::<io::Result<Vec<_>>>())?;
            let clients = clients.with_context(|| format!("sockets of {}", station.place))?;
            for ((number, ask), client) in asks.into_iter().zip(clients) {
                let (board, sctp, at) = (Arc::clone(&self.board), Arc::clone(&station.sctp), ask.at);
                tasks.spawn_on(
                    async move {
                        let asked = match client {
                            Client::Tcp(socket) => ask_tcp(socket, at, number).await.map(Some),
                            Client::Udp(socket) => ask_udp(socket, at, number).await.map(Some),
                            Client::Sctp => ask_sctp(&sctp, at, number).map(|()| None),
                        };
                        match asked {
                            Ok(Some(answer)) => board.answered(answer),
                            Ok(None) => {}
                            Err(error) => board.failed(number, &error.to_string()),
                        }
                    },
                    self.runtime.handle(),
                );
            }
        }
        Ok(tasks)
    }
}

/// What is known about the questions in flight.
#[derive(Default)]
struct Board {
    entries: Mutex<(u32, Vec<Entry>)>,
    moved: Notify,
}

struct Entry {
    to: u32,
    port: u16,
    arrived: bool,
    end: Option<Result<(), String>>,
}

/// A question's number and the signature of who answered it.
type Answer = [u8; 8];

impl Board {
    fn begin(&self, first: u32, asks: &[Ask]) {
        let entry = |ask: &Ask| Entry { to: signature(ask.to), port: ask.at.port(), arrived: false, end: None };
        *self.lock() = (first, asks.iter().map(entry).collect());
    }

    fn end(&self) -> Vec<Outcome> {
        let entries = std::mem::take(&mut self.lock().1);
        let outcome = |entry: Entry| match (entry.end, entry.arrived) {
            (Some(Ok(())), true) => Outcome::Answered,
            (Some(Ok(())), false) => Outcome::Other("answered, and it never arrived".to_owned()),
            (Some(Err(what)), _) => Outcome::Other(what),
            (None, true) => Outcome::Arrived,
            (None, false) => Outcome::Silent,
        };
        entries.into_iter().map(outcome).collect()
    }

    fn open(&self) -> usize {
        self.lock().1.iter().filter(|entry| entry.end.is_none()).count()
    }

    /// A question reached a station.
    fn arrived(&self, number: u32, at: (IpAddr, u16)) {
        self.change(number, |entry| {
            if (entry.to, entry.port) == (signature(at.0), at.1) {
                entry.arrived = true;
            } else {
                entry.end = Some(Err(format!("arrived at {}:{}", at.0, at.1)));
            }
        });
    }

    fn answered(&self, answer: Answer) {
        let [a, b, c, d, e, f, g, h] = answer;
        let by = u32::from_be_bytes([e, f, g, h]);
        self.change(u32::from_be_bytes([a, b, c, d]), |entry| {
            let right = entry.to == by;
            entry.end = Some(if right { Ok(()) } else { Err("answered by another station".to_owned()) });
        });
        self.moved.notify_one();
    }

    fn failed(&self, number: u32, what: &str) {
        self.change(number, |entry| entry.end = Some(Err(what.to_owned())));
        self.moved.notify_one();
    }

    /// Late news of an earlier batch change nothing.
    fn change(&self, number: u32, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        let place = number.checked_sub(entries.0).and_then(|it| usize::try_from(it).ok());
        if let Some(entry) = place.and_then(|place| entries.1.get_mut(place)).filter(|entry| entry.end.is_none()) {
            change(entry);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u32, Vec<Entry>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who answered, in 32 bits (FNV-1a).
fn signature(address: IpAddr) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    match address {
        IpAddr::V4(address) => address.octets().iter().fold(0x811c_9dc5, step),
        IpAddr::V6(address) => address.octets().iter().fold(0x811c_9dc5, step),
    }
}

fn answer(number: [u8; 4], by: IpAddr) -> Answer {
    let ([a, b, c, d], [e, f, g, h]) = (number, signature(by).to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

enum Client {
    Tcp(TcpSocket),
    Udp(std::net::UdpSocket),
    /// The station's own socket.
    Sctp,
}

fn client(ask: &Ask) -> io::Result<Client> {
    let local = SocketAddr::new(ask.from, 0);
    Ok(match ask.protocol {
        Protocol::Tcp => {
            let socket = if local.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.bind(local)?;
            Client::Tcp(socket)
        }
        Protocol::Udp => {
            let socket = std::net::UdpSocket::bind(local)?;
            socket.set_nonblocking(true)?;
            Client::Udp(socket)
        }
        Protocol::Sctp => Client::Sctp,
        Protocol::Icmp => return Err(io::Error::new(io::ErrorKind::Unsupported, "ICMP has no ports")),
    })
}

async fn ask_tcp(socket: TcpSocket, at: SocketAddr, number: u32) -> io::Result<Answer> {
    let mut stream = socket.connect(at).await?;
    // No TIME-WAIT: no port is met again in an unknown state.
    stream.set_zero_linger()?;
    stream.write_all(&number.to_be_bytes()).await?;
    let mut answer = Answer::default();
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn ask_udp(socket: std::net::UdpSocket, at: SocketAddr, number: u32) -> io::Result<Answer> {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(at).await?;
    socket.send(&number.to_be_bytes()).await?;
    let mut answer = Answer::default();
    socket.recv(&mut answer).await?;
    Ok(answer)
}

/// The answer comes to the station's own task.
fn ask_sctp(socket: &AsyncFd<OwnedFd>, at: SocketAddr, number: u32) -> io::Result<()> {
    // Ports of a batch differ, and no port is soon met again.
    let from = u16::try_from(20_000 + number % 40_000).unwrap_or(u16::MAX);
    let message = Message { from, to: at.port(), is_answer: false, verification: 0, tag: number };
    Ok(sctp::send(socket.get_ref(), at.ip(), &message)?)
}

async fn serve_tcp(listener: TcpListener, address: IpAddr, board: Arc<Board>) {
    let port = listener.local_addr().map_or(0, |at| at.port());
    loop {
        // An error is of one client, which hears nothing then.
        let Ok((stream, _client)) = listener.accept().await else { continue };
        let board = Arc::clone(&board);
        tokio::spawn(async move { drop(serve_connection(stream, (address, port), &board).await) });
    }
}

async fn serve_connection(mut stream: TcpStream, at: (IpAddr, u16), board: &Board) -> io::Result<()> {
    let mut number = [0; 4];
    stream.read_exact(&mut number).await?;
    board.arrived(u32::from_be_bytes(number), at);
    stream.write_all(&answer(number, at.0)).await?;
    // Until the client closes.
    stream.read_exact(&mut number).await.map(drop)
}

async fn serve_udp(socket: UdpSocket, address: IpAddr, board: Arc<Board>) {
    let port = socket.local_addr().map_or(0, |at| at.port());
    let mut number = [0; 4];
    loop {
        // Errors are ICMP's reports about earlier answers.
        let Ok((4, client)) = socket.recv_from(&mut number).await else { continue };
        board.arrived(u32::from_be_bytes(number), (address, port));
        drop(socket.send_to(&answer(number, address), client).await);
    }
}

async fn serve_sctp(socket: Arc<AsyncFd<OwnedFd>>, address: IpAddr, board: Arc<Board>) {
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        while let Ok((from, message)) = sctp::receive(socket.get_ref()) {
            if message.is_answer {
                let [a, b, c, d] = message.verification.to_be_bytes();
                let [e, f, g, h] = message.tag.to_be_bytes();
                board.answered([a, b, c, d, e, f, g, h]);
            } else {
                board.arrived(message.tag, (address, message.to));
                let (own, peer) = (message.to, message.from);
                let tag = signature(address);
                let reply = Message { from: own, to: peer, is_answer: true, verification: message.tag, tag };
                // An answer that cannot be sent is one that is not heard.
                let _sent = sctp::send(socket.get_ref(), from, &reply);
            }
        }
        ready.clear_ready();
    }
}
