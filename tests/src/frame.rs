//! Packets of a connection as bytes: Ethernet, IPv4 or IPv6, and TCP, UDP, SCTP or ICMP echo.
//!
//! In: the [`Probe`] that names the connection, which of its [`Packet`]s is wanted, and the link addresses. Out: a frame as
//! it crosses a pod's veth, checksums of IPv4 headers included and those of transports left zero (no hook looks at them).

use std::net::IpAddr;

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
    let transport = transport(probe, packet);
    let length = u16::try_from(transport.len()).ok()?;
    let mut frame = [link.destination, link.source].concat();
    let ends = (probe.source.address, probe.destination.address);
    match if packet.is_forward() { ends } else { (ends.1, ends.0) } {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, number(probe), 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = checksum(&header).to_be_bytes();
            header.splice(10..12, checksum);
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([number(probe), 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    frame.extend(transport);
    Some(frame)
}

/// IANA number of the probe's protocol in its family.
fn number(probe: &Probe) -> u8 {
    match probe.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
        Protocol::Icmp if probe.source.address.is_ipv4() => 1,
        Protocol::Icmp => 58,
    }
}

fn transport(probe: &Probe, packet: Packet) -> Vec<u8> {
    let (from, to) = if packet.is_forward() { (SOURCE_PORT, probe.port) } else { (probe.port, SOURCE_PORT) };
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    match probe.protocol {
        Protocol::Tcp => {
            let flags = match packet {
                Packet::Opening => 0x02,
                Packet::Answer => 0x12,
                Packet::FromOpener | Packet::FromAnswerer => 0x18,
            };
            // Sequence and acknowledgement, five words, flags, window, checksum, urgent pointer.
            [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]].concat()
        }
        // Length and checksum, then a few bytes to read.
        Protocol::Udp => [&ports[..], &[0, 12, 0, 0], b"ping"].concat(),
        Protocol::Sctp => {
            let kind = match packet {
                Packet::Opening => 1,
                Packet::Answer => 2,
                Packet::FromOpener | Packet::FromAnswerer => 0,
            };
            // Verification tag (0 in an INIT), checksum; a chunk of 20 bytes: for INIT tag, window, streams, sequence number.
            let tag = [0, 0, 0, u8::from(packet != Packet::Opening), 0, 0, 0, 0];
            [&ports[..], &tag, &[kind, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 10, 0, 10, 0, 0, 0, 1]].concat()
        }
        Protocol::Icmp => {
            let kind = match (probe.source.address.is_ipv4(), packet.is_forward()) {
                (true, true) => 8,
                (true, false) => 0,
                (false, true) => 128,
                (false, false) => 129,
            };
            [&[kind, 0, 0, 0][..], &SOURCE_PORT.to_be_bytes(), &[0, 1], b"ping"].concat()
        }
    }
}

/// The Internet checksum (RFC 1071) of a header whose checksum field is zero.
fn checksum(header: &[u8]) -> u16 {
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
