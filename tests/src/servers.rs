//! Real servers in pods: TCP and UDP, on as many ports as asked, each saying who answered.
//!
//! The protocol is one line each way. `HELLO` is answered with the server's name: a completed exchange. `HOLD n` hands
//! the server's side of the connection to the test that asked under number `n` ([`Servers::expect`]), so that it can send
//! from either side of one connection. Sockets are made inside the place's namespace and served by the cluster's runtime.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::Cluster;
use crate::judge::Protocol;

/// A transport the harness can speak. (SCTP is tested as raw packets: this machine's kernel may have none.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A completed exchange over a connection.
    Tcp,
    /// An answered datagram.
    Udp,
}

impl Transport {
    /// `tcp` or `udp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// The server's side of a held connection.
#[derive(Debug)]
pub enum ServerEnd {
    /// The accepted connection.
    Tcp(TcpStream),
    /// The server's socket, the client as it sees it, and what arrives from there.
    Udp(Arc<UdpSocket>, SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>),
}

/// Held connections, by the number the client sends.
#[derive(Debug, Default)]
pub struct Servers {
    expected: Mutex<HashMap<u64, oneshot::Sender<ServerEnd>>>,
}

impl Servers {
    /// Announces that a client will send `HOLD number`; the receiver gets the server's side.
    pub fn expect(&self, number: u64) -> oneshot::Receiver<ServerEnd> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(number, sender);
        receiver
    }

    /// True if somebody waits for it.
    fn hand_over(&self, number: u64, end: ServerEnd) -> bool {
        let sender = self.lock().remove(&number);
        sender.is_some_and(|sender| sender.send(end).is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<ServerEnd>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Serves ports on every address of a place. Answers name the place.
    ///
    /// # Errors
    /// If the place is unknown or a port taken.
    pub fn serve(&self, place: &str, transport: Transport, ports: impl IntoIterator<Item = u16>) -> Result<()> {
        let ports: Vec<u16> = ports.into_iter().collect();
        let mut addresses = self.addresses(place)?.to_vec();
        if let Ok(node) = self.node(place) {
            addresses.extend(node.plan().gateways());
        }
        let endpoints: Vec<SocketAddr> =
            addresses.iter().flat_map(|&address| ports.iter().map(move |&port| (address, port).into())).collect();
        let _context = self.runtime().enter();
        match transport {
            Transport::Tcp => {
                let listeners = self
                    .namespace(place)?
                    .enter(|| endpoints.iter().map(|&at| tcp_listener(at)).collect::<Result<Vec<_>>>())??;
                for listener in listeners {
                    let listener = TcpListener::from_std(listener)?;
                    self.runtime().spawn(serve_tcp(listener, place.to_owned(), Arc::clone(self.servers())));
                }
            }
            Transport::Udp => {
                let sockets = self
                    .namespace(place)?
                    .enter(|| endpoints.iter().map(|&at| udp_socket(at)).collect::<Result<Vec<_>>>())??;
                for socket in sockets {
                    let socket = UdpSocket::from_std(socket)?;
                    self.runtime().spawn(serve_udp(socket, place.to_owned(), Arc::clone(self.servers())));
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn tcp_listener(at: SocketAddr) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(at).with_context(|| format!("cannot listen on {at}/tcp"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket that speaks from the very address it was spoken to.
pub(crate) fn udp_socket(at: SocketAddr) -> Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(at).with_context(|| format!("cannot bind {at}/udp"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn serve_tcp(listener: TcpListener, name: String, servers: Arc<Servers>) {
    loop {
        let Ok((stream, _client)) = listener.accept().await else {
            // A client that reset its connection before it was accepted, or no descriptors for a moment.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let (name, servers) = (name.clone(), Arc::clone(&servers));
        tokio::spawn(async move {
            // The client gives up on its own; what went wrong here is what it did not hear.
            let _ended = serve_connection(stream, &name, &servers).await;
        });
    }
}

async fn serve_connection(stream: TcpStream, name: &str, servers: &Servers) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    stream.get_mut().write_all(format!("{name}\n").as_bytes()).await?;
    if let Some(number) = held(&line) {
        servers.hand_over(number, ServerEnd::Tcp(stream.into_inner()));
    } else {
        // Hold the connection until the client has what it wants and closes.
        line.clear();
        stream.read_line(&mut line).await?;
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, name: String, servers: Arc<Servers>) {
    let socket = Arc::new(socket);
    let mut clients: BTreeMap<SocketAddr, mpsc::UnboundedSender<Vec<u8>>> = BTreeMap::new();
    let mut buffer = [0; 2048];
    loop {
        // An error here is one that ICMP reported about an earlier answer: no reason to stop serving.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let datagram = buffer.get(..length).unwrap_or_default();
        if let Some(number) = std::str::from_utf8(datagram).ok().and_then(held) {
            let (sender, receiver) = mpsc::unbounded_channel();
            if servers.hand_over(number, ServerEnd::Udp(Arc::clone(&socket), client, receiver)) {
                clients.insert(client, sender);
            }
        } else if let Some(held) = clients.get(&client)
            && held.send(datagram.to_vec()).is_ok()
        {
            continue;
        }
        // As above: an answer that cannot be sent is one the client does not hear.
        let _sent = socket.send_to(format!("{name}\n").as_bytes(), client).await;
    }
}

fn held(line: &str) -> Option<u64> {
    line.trim_end().strip_prefix("HOLD ")?.parse().ok()
}

/// The wildcard address of the family of `address`.
#[must_use]
pub(crate) fn wildcard_of(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) }
}
