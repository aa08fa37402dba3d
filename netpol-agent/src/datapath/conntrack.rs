//! The node's connections as the kernel's conntrack knows them: above all, who opened each.
//!
//! In: a filter. Out: the [`Connection`]s that it takes, read over ctnetlink as a stream, so that a table of hundreds of
//! thousands costs only what is taken. What cannot be understood is left out and counted, never guessed. Start at [`list`].
//!
//! Needs `CAP_NET_ADMIN`; calls block and act in the network namespace of the calling thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::nfnetlink::{Answer, Attributes, DUMP, Head, Writer, answers, connect};

#[cfg(test)]
mod tests;

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
/// Connections that are taken at most: more than all pods of a node may have flows.
const MOST: usize = 1 << 20;
/// How often a list is asked for again that was interrupted, or of which the kernel had to drop a part.
const ATTEMPTS: u32 = 5;

/// Why connections are not known.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel cannot list them.
    #[error("this kernel cannot list its connections ({0}); load the module nf_conntrack_netlink")]
    Missing(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot list the kernel's connections (conntrack): {0}; needs CAP_NET_ADMIN")]
    Refused(#[source] io::Error),
}

/// One direction of a connection, as the kernel sees packets of it come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port; 0 for a protocol without ports.
    pub source_port: u16,
    /// Destination port; 0 for a protocol without ports.
    pub destination_port: u16,
}

/// An ICMP exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Echo {
    /// ICMP type of the opener's message.
    pub kind: u8,
    /// Identifier of the opener's messages.
    pub identifier: u16,
    /// Identifier of the answers, which translation may have changed.
    pub answered_identifier: u16,
}

/// Where a TCP connection is in its life (`enum tcp_conntrack`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TcpState {
    /// A SYN was seen, from one side or from both.
    SynSent,
    /// SYN and SYN-ACK were seen.
    SynReceived,
    /// Both sides talk, or one of them has said its last word.
    Established,
    /// Both sides have said their last word, or one has broken it off.
    Over,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// IANA protocol number.
    pub protocol: u8,
    /// The opener's packets as the opener sends them.
    pub original: Tuple,
    /// The answers as the answering side sends them: with addresses translated, not the reverse of `original`.
    pub reply: Tuple,
    /// The state, of TCP.
    pub tcp: Option<TcpState>,
    /// Types and identifiers, of ICMP.
    pub echo: Option<Echo>,
    /// It was answered.
    pub answered: bool,
    /// Conntrack zone.
    pub zone: u16,
    /// Seconds until conntrack forgets it.
    pub timeout: u32,
}

/// What was listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those that the filter takes.
    pub connections: Vec<Connection>,
    /// Entries that could not be understood.
    pub unreadable: u64,
    /// Everything was listed.
    pub complete: bool,
}

/// Lists the connections of both families that `wanted` takes.
///
/// # Errors
/// If the kernel cannot list them or refuses to.
pub fn list(wanted: impl Fn(&Connection) -> bool) -> Result<Listed, ConntrackError> {
    let mut listed = Listed::default();
    for _ in 0..ATTEMPTS {
        listed = Listed::default();
        match dump(&wanted, &mut listed) {
            Ok(()) => {}
            // The kernel made them faster than they were read, and threw some away.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => listed.complete = false,
            // nfnetlink does not know the subsystem.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPROTONOSUPPORT)) => {
                return Err(ConntrackError::Missing(error));
            }
            Err(error) => return Err(ConntrackError::Refused(error)),
        }
        if listed.complete {
            break;
        }
    }
    listed.connections.sort_unstable();
    listed.connections.dedup();
    Ok(listed)
}

fn dump(wanted: &impl Fn(&Connection) -> bool, listed: &mut Listed) -> io::Result<()> {
    let socket = connect()?;
    let mut request = Writer::default();
    // No family: both.
    request.message(Head { kind: GET, flags: DUMP, sequence: 1, family: 0, resource: 0 }, |_| {});
    socket.send(&request.finish(), 0)?;
    listed.complete = true;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take(&datagram, wanted, listed)? {
            return Ok(());
        }
    }
}

/// Takes one datagram in; true if it was the last.
fn take(datagram: &[u8], wanted: &impl Fn(&Connection) -> bool, listed: &mut Listed) -> io::Result<bool> {
    for answer in answers(datagram) {
        match answer {
            Answer::Done { error: 0 } | Answer::Result { error: 0, .. } => return Ok(true),
            Answer::Done { error } | Answer::Result { error, .. } => return Err(io::Error::from_raw_os_error(error)),
            Answer::Object { attributes, interrupted } => {
                listed.complete &= !interrupted;
                match connection(attributes) {
                    None => listed.unreadable += 1,
                    Some(found) if !wanted(&found) => {}
                    Some(_) if listed.connections.len() >= MOST => listed.complete = false,
                    Some(found) => listed.connections.push(found),
                }
            }
        }
    }
    Ok(false)
}

/// An entry (`enum ctattr_type`); none if it lacks what every entry has.
fn connection(entry: Attributes<'_>) -> Option<Connection> {
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const STATUS: u16 = 3;
    const PROTOCOL_INFO: u16 = 4;
    const TIMEOUT: u16 = 7;
    const ZONE: u16 = 18;
    const SEEN_REPLY: u32 = 1 << 1;
    let (protocol, original, asked) = tuple(entry.nested(ORIGINAL))?;
    let (_, reply, answered) = tuple(entry.nested(REPLY))?;
    let status = entry.fixed(STATUS).map_or(0, u32::from_be_bytes);
    let echo = asked.map(|(kind, identifier)| Echo {
        kind,
        identifier,
        answered_identifier: answered.map_or(identifier, |(_, identifier)| identifier),
    });
    let info = entry.nested(PROTOCOL_INFO);
    Some(Connection {
        protocol,
        original,
        reply,
        tcp: tcp_state(info),
        echo,
        answered: status & SEEN_REPLY != 0,
        zone: entry.fixed(ZONE).map_or(0, u16::from_be_bytes),
        timeout: entry.fixed(TIMEOUT).map_or(0, u32::from_be_bytes),
    })
}

/// Protocol, addresses and ports, and ICMP's type and identifier (`enum ctattr_tuple` and what is in it).
#[expect(clippy::type_complexity, reason = "three parts of one attribute, taken apart at once")]
fn tuple(tuple: Attributes<'_>) -> Option<(u8, Tuple, Option<(u8, u16)>)> {
    let (ip, proto) = (tuple.nested(1), tuple.nested(2));
    let v4 = |kind| ip.fixed::<4>(kind).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 = |kind| ip.fixed::<16>(kind).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    let port = |kind| proto.fixed(kind).map(u16::from_be_bytes);
    let [protocol] = proto.fixed(1)?;
    let icmp = |identifier, kind| Some((proto.fixed::<1>(kind)?[0], port(identifier)?));
    let found = Tuple {
        source: v4(1).or_else(|| v6(3))?,
        destination: v4(2).or_else(|| v6(4))?,
        source_port: port(2).unwrap_or(0),
        destination_port: port(3).unwrap_or(0),
    };
    Some((protocol, found, icmp(4, 5).or_else(|| icmp(7, 8))))
}

/// TCP's state (`CTA_PROTOINFO_TCP_STATE`).
fn tcp_state(info: Attributes<'_>) -> Option<TcpState> {
    const SYN_SENT: u8 = 1;
    const SYN_RECEIVED: u8 = 2;
    const LAST_ACK: u8 = 6;
    const TIME_WAIT: u8 = 7;
    const CLOSE: u8 = 8;
    const SYN_SENT_BOTH: u8 = 9;
    let [state] = info.nested(1).fixed(1)?;
    Some(match state {
        SYN_SENT | SYN_SENT_BOTH => TcpState::SynSent,
        SYN_RECEIVED => TcpState::SynReceived,
        LAST_ACK | TIME_WAIT | CLOSE => TcpState::Over,
        // Established, and one side's FIN; what a later kernel may add is best taken for alive.
        _ => TcpState::Established,
    })
}
