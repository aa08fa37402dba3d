//! What arrives in a place, seen on its interfaces: silence at the client says nothing about what reached the server.
//!
//! In: a place. Out: how many TCP and UDP packets came in for a port since, and how many fragments after the first, which
//! have no port. Packets with IPv6 extension headers other than a fragment's are not counted.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};

use crate::cluster::Cluster;
use crate::servers::Transport;

/// `PACKET_OUTGOING`: what the place itself sends is seen too.
const OUTGOING: u8 = 4;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;
/// Every address and port is within so many bytes.
const SEEN: usize = 128;

/// A packet by where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    protocol: u8,
    /// None in a later fragment.
    port: Option<u16>,
}

/// Packets that come into a place.
#[derive(Debug)]
pub struct Arrivals {
    socket: OwnedFd,
    seen: Vec<Arrival>,
}

impl Cluster {
    /// Watches a place from now on.
    ///
    /// # Errors
    /// If the place is unknown or the kernel refuses.
    pub fn watch(&self, place: &str) -> Result<Arrivals> {
        let socket = self.namespace(place)?.enter(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
        })?;
        Ok(Arrivals { socket: socket.context("cannot watch packets")?, seen: Vec::new() })
    }
}

impl Arrivals {
    /// How many packets came for a port so far.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn at_port(&mut self, transport: Transport, port: u16) -> Result<usize> {
        self.count(transport, Some(port))
    }

    /// How many fragments after the first came so far.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn later_fragments(&mut self, transport: Transport) -> Result<usize> {
        self.count(transport, None)
    }

    fn count(&mut self, transport: Transport, port: Option<u16>) -> Result<usize> {
        let mut buffer = [0_u8; SEEN];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((_, Some(from))) if from.pkttype() == OUTGOING => {}
                Ok((length, _)) => self.seen.extend(buffer.get(..length.min(SEEN)).and_then(arrival)),
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("cannot read what arrived"),
            }
        }
        let protocol = match transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        Ok(self.seen.iter().filter(|it| **it == Arrival { protocol, port }).count())
    }
}

/// Reads an IP packet.
fn arrival(packet: &[u8]) -> Option<Arrival> {
    let first = *packet.first()?;
    let word = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
    let (protocol, header, offset) = match (first >> 4, packet.get(6)?) {
        (4, _) => (*packet.get(9)?, usize::from(first & 15) * 4, word(6)? & 0x1fff),
        (6, &FRAGMENT) => (*packet.get(40)?, 48, word(42)? >> 3),
        (6, &next) => (next, 40, 0),
        _ => return None,
    };
    let port = if offset == 0 { Some(word(header + 2)?) } else { None };
    Some(Arrival { protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_behind_options_and_not_from_later_fragments() {
        let mut v4 = [0_u8; 40];
        (v4[0], v4[9]) = (0x46, 17);
        v4[26..28].copy_from_slice(&53_u16.to_be_bytes());
        assert_eq!(arrival(&v4), Some(Arrival { protocol: 17, port: Some(53) }));
        v4[7] = 1;
        assert_eq!(arrival(&v4), Some(Arrival { protocol: 17, port: None }));
        let mut v6 = [0_u8; 60];
        (v6[0], v6[6]) = (0x60, 6);
        v6[42..44].copy_from_slice(&80_u16.to_be_bytes());
        assert_eq!(arrival(&v6), Some(Arrival { protocol: 6, port: Some(80) }));
        assert_eq!(arrival(&v6[..43]), None);
        (v6[6], v6[40], v6[42]) = (44, 17, 0);
        v6[43] = 8;
        assert_eq!(arrival(&v6), Some(Arrival { protocol: 17, port: None }));
        v6[43] = 1;
        v6[50..52].copy_from_slice(&53_u16.to_be_bytes());
        assert_eq!(arrival(&v6), Some(Arrival { protocol: 17, port: Some(53) }));
    }
}
