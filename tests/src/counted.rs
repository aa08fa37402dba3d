//! Traffic that goes on while something else happens, and its count.
//!
//! In: flows, each of which asks (or knocks, where it must not get in) every few milliseconds. Out: a [`Tally`]: what was
//! asked, what was never answered, what got through that should not. TCP hides a lost packet, so the kernel's count of
//! repeated segments belongs to it ([`retransmitted`]). Servers come from [`serve`]; start at [`during`]. Must not know
//! policies or the agent.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::Cluster;
use crate::servers::{Transport, tcp_listener, udp_socket, wildcard_of};

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(3);
/// A question without an answer for so long was lost: longer than any busy machine takes.
const LOST: Duration = Duration::from_secs(3);
/// How long a knock on a TCP port waits: longer than a handshake takes, shorter than a SYN's repetition.
const KNOCK: Duration = Duration::from_millis(5);
/// What a datagram says that must not arrive.
const KNOCKING: &[u8; 8] = b"let mein";

/// What a flow does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// Asks over one connection, or from one socket.
    Stays,
    /// Asks over a new connection, or from a new socket, each time.
    ComesAnew,
    /// Must not get in: a datagram that nobody answers, or a SYN.
    Knocks,
}

/// One flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Place that asks.
    pub from: String,
    /// Its address, if it has several of a family.
    pub source: Option<IpAddr>,
    /// Whom it asks.
    pub at: SocketAddr,
    /// How.
    pub transport: Transport,
    /// How often anew.
    pub manner: Manner,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}/{} ({:?})", self.from, self.at, self.transport.name(), self.manner)
    }
}

/// What came of the traffic.
#[derive(Debug, Default)]
pub struct Tally {
    asked: AtomicU64,
    lost: AtomicU64,
    knocked: AtomicU64,
    leaked: AtomicU64,
    notes: Mutex<Vec<String>>,
}

impl Tally {
    /// Questions.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Questions that nobody answered.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Packets that must not arrive.
    pub fn knocked(&self) -> u64 {
        self.knocked.load(Ordering::Relaxed)
    }

    /// Those of them that did.
    pub fn leaked(&self) -> u64 {
        self.leaked.load(Ordering::Relaxed)
    }

    /// What was lost or leaked, in words.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, counter: &AtomicU64, note: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }
}

/// Runs `body` with all flows going on, and ends them after it. The first knock or question of each may come before.
///
/// # Errors
/// What `body` returns, or a flow that could not begin.
pub fn during<T>(cluster: &Cluster, flows: &[Flow], tally: &Tally, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut running = Vec::new();
        for flow in flows {
            let Ok(namespace) = cluster.namespace(&flow.from) else {
                over.store(true, Ordering::Relaxed);
                anyhow::bail!("{flow}: no such place");
            };
            let over = &over;
            running.push((flow, scope.spawn(move || namespace.enter(|| Client { flow, over, tally }.run())?)));
        }
        let outcome = {
            // Also when it panics: the scope waits for the flows.
            let _end = EndOnDrop(&over);
            body()
        };
        for (flow, thread) in running {
            let ended = thread.join().unwrap_or_else(|_panic| Err(anyhow::anyhow!("a panic")));
            ended.with_context(|| format!("{flow}"))?;
        }
        outcome
    })
}

/// Ends the flows when it goes.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A flow, on a thread in the namespace of its place.
struct Client<'a> {
    flow: &'a Flow,
    over: &'a AtomicBool,
    tally: &'a Tally,
}

impl Client<'_> {
    fn run(&self) -> Result<()> {
        let mut held = self.open()?;
        let mut number = 0_u64;
        while !self.over.load(Ordering::Relaxed) {
            number += 1;
            match (self.flow.manner, &mut held) {
                (Manner::Knocks, held) => self.knock(held.as_ref())?,
                (Manner::Stays, Some(socket)) => self.ask(socket, number),
                (Manner::Stays | Manner::ComesAnew, _) => match self.connect() {
                    Ok(mut socket) => self.ask(&mut socket, number),
                    Err(error) => self.tally.note(&self.tally.lost, format!("{}: {error:#}", self.flow)),
                },
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The socket that is kept, if one is.
    fn open(&self) -> Result<Option<Socket>> {
        match (self.flow.manner, self.flow.transport) {
            (Manner::ComesAnew, _) | (Manner::Knocks, Transport::Tcp) => Ok(None),
            (Manner::Stays, _) | (Manner::Knocks, Transport::Udp) => Ok(Some(self.connect()?)),
        }
    }

    fn connect(&self) -> Result<Socket> {
        Ok(match self.flow.transport {
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&self.flow.at, LOST).context("cannot connect")?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(LOST))?;
                Socket::Tcp(stream)
            }
            Transport::Udp => {
                let local = self.flow.source.unwrap_or_else(|| wildcard_of(self.flow.at.ip()));
                let socket = UdpSocket::bind((local, 0)).with_context(|| format!("cannot bind {local}"))?;
                socket.connect(self.flow.at)?;
                socket.set_read_timeout(Some(LOST))?;
                Socket::Udp(socket)
            }
        })
    }

    fn ask(&self, socket: &mut Socket, number: u64) {
        self.tally.asked.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = socket.exchange(number) {
            self.tally.note(&self.tally.lost, format!("{}: question {number}: {error}", self.flow));
        }
    }

    /// One packet that must not arrive. A datagram that does is counted by the server.
    fn knock(&self, socket: Option<&Socket>) -> Result<()> {
        match socket {
            Some(Socket::Udp(socket)) => match socket.send(KNOCKING) {
                Ok(_length) => {}
                // Nobody listens there, and says so: it arrived.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.tally.note(&self.tally.leaked, format!("{}: {error}", self.flow));
                    return Ok(());
                }
                Err(error) => return Err(error).context("cannot send"),
            },
            _ => match TcpStream::connect_timeout(&self.flow.at, KNOCK) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.tally.note(&self.tally.leaked, format!("{}: {error}", self.flow));
                }
                Err(error) => return Err(error).context("cannot connect, and not for silence"),
                Ok(_stream) => self.tally.note(&self.tally.leaked, format!("{}: it connected", self.flow)),
            },
        }
        self.tally.knocked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Socket {
    /// Sends a number and waits for it.
    fn exchange(&mut self, number: u64) -> std::io::Result<()> {
        let (question, mut answer) = (number.to_be_bytes(), [0; 8]);
        match self {
            Self::Tcp(stream) => {
                stream.write_all(&question)?;
                stream.read_exact(&mut answer)
            }
            Self::Udp(socket) => {
                socket.send(&question)?;
                // An answer that comes too late to count must not be taken for the next one.
                while answer != question {
                    socket.recv(&mut answer)?;
                }
                Ok(())
            }
        }
    }
}

/// Answers whatever comes to these ports of a place, on all its addresses, until the node goes; counts knocks as leaked.
///
/// # Errors
/// If a port is taken.
pub fn serve(cluster: &Cluster, place: &str, ports: &[(Transport, u16)], tally: &Arc<Tally>) -> Result<()> {
    let _context = cluster.runtime().enter();
    for &(transport, port) in ports {
        for &address in cluster.addresses(place)? {
            let at = SocketAddr::new(address, port);
            match transport {
                Transport::Tcp => {
                    let listener = cluster.namespace(place)?.enter(|| tcp_listener(at))??;
                    cluster.runtime().spawn(answer_connections(tokio::net::TcpListener::from_std(listener)?));
                }
                Transport::Udp => {
                    let socket = cluster.namespace(place)?.enter(|| udp_socket(at))??;
                    let socket = tokio::net::UdpSocket::from_std(socket)?;
                    cluster.runtime().spawn(answer_datagrams(socket, at, Arc::clone(tally)));
                }
            }
        }
    }
    Ok(())
}

async fn answer_connections(listener: tokio::net::TcpListener) {
    loop {
        let Ok((mut stream, _client)) = listener.accept().await else {
            // A client that gave up before it was accepted.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        tokio::spawn(async move {
            let mut question = [0; 8];
            // What goes wrong here is what the client does not hear, and counts.
            while stream.read_exact(&mut question).await.is_ok() && stream.write_all(&question).await.is_ok() {}
        });
    }
}

async fn answer_datagrams(socket: tokio::net::UdpSocket, at: SocketAddr, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    loop {
        // An error here is one that ICMP reported about an earlier answer: no reason to stop.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let question = buffer.get(..length).unwrap_or_default();
        if question == KNOCKING {
            tally.note(&tally.leaked, format!("a datagram of {client} came to {at}"));
            continue;
        }
        // As above.
        let _sent = socket.send_to(question, client).await;
    }
}

/// TCP segments that sockets of a place had to send again, since the place was made.
///
/// # Errors
/// If the kernel does not tell.
pub fn retransmitted(cluster: &Cluster, place: &str) -> Result<u64> {
    let text = cluster.namespace(place)?.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().context("no names of TCP")?, lines.next().context("no values of TCP")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    Ok(found.context("no RetransSegs")?.1.parse()?)
}
