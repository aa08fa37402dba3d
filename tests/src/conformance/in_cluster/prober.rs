//! What runs in the pods of a cluster under test: servers that say who they are, and questions to others.
//!
//! `prober serve` answers on every port that it is given; `prober ask` reads [`Asked`] as JSON from standard input, asks all at
//! once, and writes [`Heard`] in the same order.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::judge::{Name, Probe, Protocol};

/// The program in the prober's image.
pub const PROGRAM: &str = "/netpol-kind";
/// How long silence must last. A SYN is sent again after a second: one that was lost on the way is not a denial.
const SILENCE: Duration = Duration::from_millis(1500);

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Where.
    pub at: SocketAddr,
    /// `true` is UDP.
    pub udp: bool,
    /// Whose answer it must be, as `namespace/pod`.
    pub who: String,
}

impl Asked {
    /// By the address of the pod's service, if it has one.
    ///
    /// # Errors
    /// If the destination is no pod.
    pub fn new(probe: &Probe, services: &BTreeMap<Name, IpAddr>) -> Result<Self> {
        let name = probe.destination.pod.as_ref().context("a destination without a pod")?;
        let (namespace, pod) = name;
        let address = services.get(name).copied().unwrap_or(probe.destination.address);
        let at = SocketAddr::new(address, probe.port);
        Ok(Self { at, udp: probe.protocol == Protocol::Udp, who: format!("{namespace}/{pod}") })
    }
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Heard {
    /// The right answer.
    Answered,
    /// Nothing.
    Silence,
    /// Something else.
    Other(String),
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Silence => f.write_str("silence"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Serves until it is killed: `name` to whoever asks on these ports, TCP and UDP.
///
/// # Errors
/// If a port cannot be had.
pub async fn serve(name: &str, tcp: &[u16], udp: &[u16]) -> Result<()> {
    let mut tasks = JoinSet::new();
    for port in tcp {
        let listener = TcpListener::bind(any(*port)).await.with_context(|| format!("TCP port {port}"))?;
        let name = name.to_owned();
        tasks.spawn(async move {
            // A client that is gone already is none of ours.
            while let Ok((mut client, _)) = listener.accept().await {
                let _gone = client.write_all(name.as_bytes()).await;
            }
        });
    }
    for port in udp {
        let socket = UdpSocket::bind(any(*port)).await.with_context(|| format!("UDP port {port}"))?;
        let name = name.to_owned();
        tasks.spawn(async move {
            let mut question = [0; 64];
            loop {
                // An ICMP error about an answer of before comes back here.
                if let Ok((_, client)) = socket.recv_from(&mut question).await {
                    let _gone = socket.send_to(name.as_bytes(), client).await;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Both families.
fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

/// Asks everything at once.
pub async fn ask(asked: Vec<Asked>) -> Vec<Heard> {
    let mut tasks = JoinSet::new();
    let mut heard = vec![Heard::Silence; asked.len()];
    for (number, asked) in asked.into_iter().enumerate() {
        tasks.spawn(async move { (number, timeout(SILENCE, one(&asked)).await.unwrap_or(Heard::Silence)) });
    }
    while let Some(done) = tasks.join_next().await {
        let (number, what) = match done {
            Ok(done) => done,
            Err(_panicked) => continue,
        };
        if let Some(place) = heard.get_mut(number) {
            *place = what;
        }
    }
    heard
}

async fn one(asked: &Asked) -> Heard {
    let answer = if asked.udp { datagram(asked.at).await } else { connection(asked.at).await };
    match answer {
        Ok(name) if name == asked.who => Heard::Answered,
        Ok(name) => Heard::Other(format!("{name:?} answered")),
        Err(error) => Heard::Other(error.to_string()),
    }
}

async fn connection(at: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    stream.shutdown().await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await?;
    Ok(name)
}

async fn datagram(at: SocketAddr) -> io::Result<String> {
    let local: IpAddr = if at.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(at).await?;
    socket.send(b"?").await?;
    let mut name = [0; 256];
    let length = socket.recv(&mut name).await?;
    Ok(String::from_utf8_lossy(name.get(..length).unwrap_or_default()).into_owned())
}
