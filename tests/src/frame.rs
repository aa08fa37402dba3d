//! First packets of connections as bytes: Ethernet, IPv4 or IPv6, and a TCP SYN, UDP datagram, SCTP INIT or ICMP echo request.
//!
//! In: a [`Probe`] and the link addresses. Out: a frame as it crosses the pod's veth, checksums of IPv4 headers included
//! and those of transports left zero (no hook looks at them).

use std::net::IpAddr;

use crate::judge::{Probe, Protocol};

/// Link addresses and source port of a frame; what is not in the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ethernet source.
    pub source: [u8; 6],
    /// Ethernet destination.
    pub destination: [u8; 6],
    /// Source port, or identifier of an echo request.
    pub source_port: u16,
}

/// The first packet of the probe's connection. None if its addresses are of two families.
#[must_use]
pub fn first_packet(probe: &Probe, link: &Link) -> Option<Vec<u8>> {
    let transport = transport(probe, link.source_port);
    let length = u16::try_from(transport.len()).ok()?;
    let mut frame = [link.destination, link.source].concat();
    match (probe.source.address, probe.destination.address) {
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

fn transport(probe: &Probe, source_port: u16) -> Vec<u8> {
    let ports = [source_port.to_be_bytes(), probe.port.to_be_bytes()].concat();
    match probe.protocol {
        // Sequence and acknowledgement, five words, SYN, window, checksum, urgent pointer.
        Protocol::Tcp => [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]].concat(),
        // Length and checksum, then a few bytes to read.
        Protocol::Udp => [&ports[..], &[0, 12, 0, 0], b"ping"].concat(),
        // Verification tag 0, checksum; INIT chunk of 20 bytes: tag, window, streams out and in, first sequence number.
        Protocol::Sctp => {
            let init = [1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 10, 0, 10, 0, 0, 0, 1];
            [&ports[..], &[0, 0, 0, 0, 0, 0, 0, 0], &init].concat()
        }
        Protocol::Icmp => {
            let kind = if probe.source.address.is_ipv4() { 8 } else { 128 };
            [&[kind, 0, 0, 0][..], &source_port.to_be_bytes(), &[0, 1], b"ping"].concat()
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
        let link = Link { source: [2; 6], destination: [4; 6], source_port: 1000 };
        let mut probe =
            Probe { source: side("10.0.0.1"), destination: side("10.0.0.2"), protocol: Protocol::Sctp, port: 80 };
        assert_eq!(first_packet(&probe, &link).unwrap().len(), 14 + 20 + 12 + 20);
        probe.destination = side("fd00::1");
        assert_eq!(first_packet(&probe, &link), None);
    }
}
