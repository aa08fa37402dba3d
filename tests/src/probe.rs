//! One question to the network: does an exchange from here to there complete?
//!
//! A TCP probe passes when the server's name came back over a new connection, a UDP probe when a datagram was answered.
//! Silence until the timeout is [`Outcome::Silence`]; anything else is shown as it is, since a refusal or a wrong answer
//! means that the packet went somewhere. [`Cluster::probe_all`] asks all questions at once, so that a table of denials takes
//! as long as one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::servers::{Transport, udp_socket, wildcard_of};

/// How long silence must last to be a denial. Longer than any answer on an idle machine, shorter than a SYN's repetition.
pub const SILENCE: Duration = Duration::from_millis(250);
/// How long to wait for an answer that is expected, before the network is blamed rather than a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The exchange completed with the right server.
    Answered,
    /// Nothing came back.
    Silence,
    /// Something else came back: a reset, an ICMP error, another server's name.
    Other(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Silence => f.write_str("silence"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// From a place to an address and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Place that asks.
    pub from: String,
    /// Place whose server must answer.
    pub to: String,
    /// Where it is asked.
    pub at: SocketAddr,
    /// How.
    pub transport: Transport,
}

impl Probe {
    /// A probe of a place's address in one family.
    ///
    /// # Errors
    /// If the place has no such address.
    pub fn new(cluster: &Cluster, from: &str, to: (&str, Transport, u16), ipv6: bool) -> Result<Self> {
        let (to, transport, port) = to;
        let at = SocketAddr::new(cluster.address(to, ipv6)?, port);
        Ok(Self { from: from.to_owned(), to: to.to_owned(), at, transport })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} ({}/{})", self.from, self.to, self.at, self.transport.name())
    }
}

/// A socket made in the namespace of its place, before anything is sent.
pub(crate) enum Unconnected {
    Tcp(TcpSocket),
    Udp(std::net::UdpSocket),
}

impl Cluster {
    /// Makes a client socket in a place, from a source address if one is given.
    pub(crate) fn client_socket(
        &self,
        from: &str,
        transport: Transport,
        towards: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<Unconnected> {
        self.namespace(from)?.enter(|| unconnected(transport, towards, source))?
    }

    /// Asks one question: with [`PATIENCE`] for what should be answered, with [`SILENCE`] for what should not.
    ///
    /// # Errors
    /// If the probe's places are unknown.
    pub fn probe(&self, probe: &Probe, limit: Duration) -> Result<Outcome> {
        let mut outcomes = self.probe_all(std::slice::from_ref(probe), limit)?;
        outcomes.pop().context("a probe has an outcome")
    }

    /// Asks all questions at once; outcomes are in the order of the probes.
    ///
    /// # Errors
    /// If a probe's places are unknown, or sockets run out.
    pub fn probe_all(&self, probes: &[Probe], limit: Duration) -> Result<Vec<Outcome>> {
        let sockets = self.sockets_for(probes)?;
        self.block_on(async {
            let mut tasks = Vec::with_capacity(probes.len());
            for (probe, socket) in probes.iter().cloned().zip(sockets) {
                tasks.push(tokio::spawn(async move {
                    timeout(limit, exchange(socket, &probe)).await.unwrap_or(Outcome::Silence)
                }));
            }
            let mut outcomes = Vec::with_capacity(tasks.len());
            for task in tasks {
                outcomes.push(task.await.context("a probe panicked")?);
            }
            Ok(outcomes)
        })
    }

    /// One stay in a namespace for all probes that start there, as entering costs more than a socket.
    fn sockets_for(&self, probes: &[Probe]) -> Result<Vec<Unconnected>> {
        let mut sockets: Vec<Option<Unconnected>> = probes.iter().map(|_| None).collect();
        let mut places: Vec<&str> = probes.iter().map(|probe| probe.from.as_str()).collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            self.namespace(place)?.enter(|| {
                for (probe, socket) in probes.iter().zip(&mut sockets).filter(|(probe, _)| probe.from == place) {
                    *socket = Some(unconnected(probe.transport, probe.at.ip(), None)?);
                }
                anyhow::Ok(())
            })??;
        }
        sockets.into_iter().collect::<Option<_>>().context("every probe starts somewhere")
    }
}

fn unconnected(transport: Transport, towards: IpAddr, source: Option<IpAddr>) -> Result<Unconnected> {
    let local = SocketAddr::new(source.unwrap_or_else(|| wildcard_of(towards)), 0);
    Ok(match transport {
        Transport::Tcp => {
            let socket = if towards.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if source.is_some() {
                socket.bind(local).with_context(|| format!("cannot bind {local}"))?;
            }
            Unconnected::Tcp(socket)
        }
        Transport::Udp => Unconnected::Udp(udp_socket(local)?),
    })
}

async fn exchange(socket: Unconnected, probe: &Probe) -> Outcome {
    let answer = match socket {
        Unconnected::Tcp(socket) => ask_tcp(socket, probe.at).await,
        Unconnected::Udp(socket) => ask_udp(socket, probe.at).await,
    };
    match answer {
        Ok(name) if name.trim_end() == probe.to => Outcome::Answered,
        Ok(other) => Outcome::Other(format!("answered by {:?}", other.trim_end())),
        Err(error) => Outcome::Other(error.to_string()),
    }
}

async fn ask_tcp(socket: TcpSocket, at: SocketAddr) -> std::io::Result<String> {
    let mut stream = socket.connect(at).await?;
    abort_on_close(&stream)?;
    stream.write_all(b"HELLO\n").await?;
    let mut answer = Vec::new();
    let mut buffer = [0; 256];
    while !answer.ends_with(b"\n") {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Thousands of probes leave no sockets in TIME-WAIT behind, and no port is met again in an unknown state.
fn abort_on_close(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_zero_linger()
}

async fn ask_udp(socket: std::net::UdpSocket, at: SocketAddr) -> std::io::Result<String> {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(at).await?;
    socket.send(b"HELLO\n").await?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).await?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}
