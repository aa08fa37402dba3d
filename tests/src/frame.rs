//! Packets of a connection as bytes: Ethernet, IPv4 or IPv6, and TCP, UDP, SCTP or ICMP echo.
//!
//! In: the [`Probe`] that names the connection, which of its [`Packet`]s is wanted, and the link addresses. Out: a frame as
//! it crosses a pod's veth, checksums of IPv4 headers included and those of transports left zero (no hook looks at them).

pub mod datagram;

use self::datagram::{Datagram, Transport, flag};
use crate::judge::{Probe, Protocol};

/// Source port of every connection, or identifier of an echo request.
pub const SOURCE_PORT: u16 = 40_000;

/// One packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// TCP SYN, UDP datagram, SCTP INIT, echo request.
    Opening,
    /// TCP SYN-ACK, UDP datagram, SCTP INIT ACK, echo reply: from the destination to the source.
    Answer,
    /// What the opener sends later.
    FromOpener,
    /// What the other side sends later.
    FromAnswerer,
}

impl Packet {
    /// Whether it goes from the connection's source to its destination.
    #[must_use]
    pub const fn is_forward(self) -> bool {
        matches!(self, Self::Opening | Self::FromOpener)
    }
}

/// Link addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ethernet source.
    pub source: [u8; 6],
    /// Ethernet destination.
    pub destination: [u8; 6],
}

/// A packet of the probe's connection. None if its addresses are of two families.
#[must_use]
pub fn frame(probe: &Probe, packet: Packet, link: &Link) -> Option<Vec<u8>> {
    let ends = (probe.source.address, probe.destination.address);
    let (source, destination) = if packet.is_forward() { ends } else { (ends.1, ends.0) };
    let ports = if packet.is_forward() { [SOURCE_PORT, probe.port] } else { [probe.port, SOURCE_PORT] };
    let transport = match probe.protocol {
        Protocol::Tcp => Transport::Tcp {
            ports,
            flags: match packet {
                Packet::Opening => flag::SYN,
                Packet::Answer => flag::SYN_ACK,
                Packet::FromOpener | Packet::FromAnswerer => flag::PSH_ACK,
            },
        },
        Protocol::Udp => Transport::Udp { ports },
        Protocol::Sctp => Transport::Sctp { ports },
        Protocol::Icmp => Transport::Echo { reply: !packet.is_forward(), id: SOURCE_PORT },
    };
    Datagram::new(source, destination, transport).frame(link.source, link.destination)
}

/// The Internet checksum (RFC 1071) of a header or message whose checksum field is zero.
pub(crate) fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => rest.first().map_or(0, |high| u32::from(*high) << 8),
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Side;

    #[test]
    fn the_header_checksum_is_that_of_the_textbook() {
        // The worked example of Wikipedia's "Internet checksum".
        let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn a_probe_across_families_has_no_packet() {
        let side = |address: &str| Side { address: address.parse().unwrap(), pod: None };
        let link = Link { source: [2; 6], destination: [4; 6] };
        let mut probe =
            Probe { source: side("10.0.0.1"), destination: side("10.0.0.2"), protocol: Protocol::Sctp, port: 80 };
        assert_eq!(frame(&probe, Packet::Opening, &link).unwrap().len(), 14 + 20 + 12 + 20);
        let answer = frame(&probe, Packet::Answer, &link).unwrap();
        assert_eq!(answer[26..38], [10, 0, 0, 2, 10, 0, 0, 1, 0, 80, 0x9c, 0x40]);
        probe.destination = side("fd00::1");
        assert_eq!(frame(&probe, Packet::Opening, &link), None);
    }
}
