//! Packets as bytes, as they cross a pod's veth: first packets of connections here, packets of any shape in [`datagram`].
//!
//! In: a [`Probe`] and the link addresses. Out: a frame, checksums of IPv4 headers included and those of transports left
//! zero (no hook looks at them).

pub mod datagram;

use crate::judge::{Probe, Protocol};

use self::datagram::{Datagram, Transport, flag};

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
    let ports = [link.source_port, probe.port];
    let transport = match probe.protocol {
        Protocol::Tcp => Transport::Tcp { ports, flags: flag::SYN },
        Protocol::Udp => Transport::Udp { ports },
        Protocol::Sctp => Transport::Sctp { ports },
        Protocol::Icmp => Transport::Echo { reply: false, id: link.source_port },
    };
    Datagram::new(probe.source.address, probe.destination.address, transport).frame(link.source, link.destination)
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

    #[test]
    fn extension_headers_name_what_follows_them() {
        let (source, destination) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let udp = Datagram::new(source, destination, Transport::Udp { ports: [1, 2] });
        let bytes = udp.extension(60, &[0; 7]).fragment(7, 16, true).bytes().unwrap();
        assert_eq!((bytes[6], bytes[40], bytes[48]), (60, 44, 17));
        assert_eq!(bytes[48..56], [17, 0, 0, 17, 0, 0, 0, 7]);
        assert_eq!(usize::from(bytes[5]), bytes.len() - 40);
    }
}
