//! A connection that stays open, with both its ends in the test's hands.
//!
//! For what happens to open connections when policy changes: send from either side, and ask whether it arrives. Every
//! message is unique, so that a late repetition of an earlier one (TCP repeats) never counts as the one asked for.
//! [`Connection::passes`] says yes or no for one direction; [`Connection::send`] and [`Connection::arrives`] are its halves.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::Cluster;
use crate::probe::{PATIENCE, Probe, Unconnected};
use crate::servers::ServerEnd;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that opened the connection.
    Client,
    /// The one that was listening.
    Server,
}

/// An open TCP connection, or a UDP exchange between two fixed sockets.
#[derive(Debug)]
pub struct Connection {
    client: End,
    server: End,
    local: SocketAddr,
    probe: Probe,
}

#[derive(Debug)]
enum End {
    Tcp { read: OwnedReadHalf, write: OwnedWriteHalf, seen: VecDeque<u8> },
    Udp { socket: Arc<UdpSocket> },
    UdpServer { socket: Arc<UdpSocket>, peer: SocketAddr, received: mpsc::UnboundedReceiver<Vec<u8>> },
}

static NUMBER: AtomicU64 = AtomicU64::new(1);

fn next_number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

impl Connection {
    /// Opens a connection as `probe` says.
    ///
    /// # Errors
    /// If it cannot be opened: nothing answers within [`PATIENCE`].
    pub fn open(cluster: &Cluster, probe: &Probe) -> Result<Self> {
        Self::open_from(cluster, probe, None)
    }

    /// As [`Connection::open`], from one of several addresses of the client's place.
    ///
    /// # Errors
    /// As [`Connection::open`], or if the place does not have the address.
    pub fn open_from(cluster: &Cluster, probe: &Probe, source: Option<IpAddr>) -> Result<Self> {
        let socket = cluster.client_socket(&probe.from, probe.transport, probe.at.ip(), source)?;
        let number = next_number();
        let server = cluster.servers().expect(number);
        cluster.block_on(async {
            let (client, local) = timeout(PATIENCE, hold(socket, probe, number))
                .await
                .with_context(|| format!("no answer: {probe}"))?
                .with_context(|| format!("cannot connect: {probe}"))?;
            let server = server.await.with_context(|| format!("no server took the connection: {probe}"))?;
            let server = match server {
                ServerEnd::Tcp(stream) => End::tcp(stream)?,
                ServerEnd::Udp(socket, peer, received) => End::UdpServer { socket, peer, received },
            };
            Ok(Self { client, server, local, probe: probe.clone() })
        })
    }

    /// What the connection was opened for.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The client's address and port.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a message from one side and returns it, for [`Connection::arrives`].
    ///
    /// # Errors
    /// If the socket is closed or an error was reported to it.
    pub fn send(&mut self, cluster: &Cluster, from: Side) -> Result<String> {
        let message = format!("[message {}]", next_number());
        let end = self.end(from);
        cluster.block_on(end.send(message.as_bytes())).with_context(|| format!("cannot send from the {from:?}"))?;
        Ok(message)
    }

    /// True if the message sent from the other side comes in within the limit.
    ///
    /// # Errors
    /// If the connection was closed meanwhile, which is neither arrival nor silence.
    pub fn arrives(&mut self, cluster: &Cluster, at: Side, message: &str, limit: Duration) -> Result<bool> {
        let end = self.end(at);
        cluster.block_on(end.wait_for(message.as_bytes(), limit)).with_context(|| format!("at the {at:?}"))
    }

    /// Sends from one side: does it reach the other within `limit`?
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::arrives`].
    pub fn passes(&mut self, cluster: &Cluster, from: Side, limit: Duration) -> Result<bool> {
        let message = self.send(cluster, from)?;
        let to = if from == Side::Client { Side::Server } else { Side::Client };
        self.arrives(cluster, to, &message, limit)
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

async fn hold(socket: Unconnected, probe: &Probe, number: u64) -> Result<(End, SocketAddr)> {
    let line = format!("HOLD {number}\n");
    let mut answer = vec![0; 256];
    Ok(match socket {
        Unconnected::Tcp(socket) => {
            let mut stream = socket.connect(probe.at).await?;
            stream.set_nodelay(true)?;
            stream.write_all(line.as_bytes()).await?;
            let length = stream.read(&mut answer).await?;
            check_answer(answer.get(..length), probe)?;
            let local = stream.local_addr()?;
            (End::tcp(stream)?, local)
        }
        Unconnected::Udp(socket) => {
            let socket = UdpSocket::from_std(socket)?;
            socket.connect(probe.at).await?;
            socket.send(line.as_bytes()).await?;
            let length = socket.recv(&mut answer).await?;
            check_answer(answer.get(..length), probe)?;
            let local = socket.local_addr()?;
            (End::Udp { socket: Arc::new(socket) }, local)
        }
    })
}

fn check_answer(answer: Option<&[u8]>, probe: &Probe) -> Result<()> {
    let answer = String::from_utf8_lossy(answer.unwrap_or_default());
    if answer.trim_end() != probe.to {
        bail!("answered by {:?}", answer.trim_end());
    }
    Ok(())
}

impl End {
    fn tcp(stream: TcpStream) -> Result<Self> {
        // Closing a revoked connection in order would repeat what nobody lets through, for minutes.
        stream.set_zero_linger()?;
        let (read, write) = stream.into_split();
        Ok(Self::Tcp { read, write, seen: VecDeque::new() })
    }

    async fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Tcp { write, .. } => write.write_all(message).await?,
            Self::Udp { socket } => drop(socket.send(message).await?),
            Self::UdpServer { socket, peer, .. } => drop(socket.send_to(message, *peer).await?),
        }
        Ok(())
    }

    async fn wait_for(&mut self, message: &[u8], limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let Ok(received) = timeout_at(deadline, self.receive()).await else { return Ok(false) };
            let received = received?;
            if let Self::Tcp { seen, .. } = self {
                seen.extend(received);
                if contains(seen.make_contiguous(), message) {
                    seen.clear();
                    return Ok(true);
                }
            } else if received == message {
                return Ok(true);
            }
        }
    }

    async fn receive(&mut self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; 4096];
        let length = match self {
            Self::Tcp { read, .. } => match read.read(&mut buffer).await? {
                0 => bail!("the other side closed the connection"),
                length => length,
            },
            Self::Udp { socket } => socket.recv(&mut buffer).await?,
            Self::UdpServer { received, .. } => return received.recv().await.context("the server ended"),
        };
        buffer.truncate(length);
        Ok(buffer)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
