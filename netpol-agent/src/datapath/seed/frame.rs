//! Frames for [`super`]: the least that the decision reads of a packet.

use std::net::IpAddr;

use netpol_common::abi::Mac;
use netpol_common::packet::{ether_type, protocol};

/// ICMP types of echo messages, by family: request and answer.
pub(super) const ECHO_V4: [u8; 2] = [8, 0];
pub(super) const ECHO_V6: [u8; 2] = [128, 129];

/// What a packet says beside addresses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// TCP with these flags.
    Tcp(u8),
    /// An ICMP message of this type, with this identifier.
    Icmp(u8, u16),
    /// A packet of another protocol.
    Other(u8),
}

/// An end of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// EtherType of an address' family, host order.
pub(super) const fn ether_type_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => ether_type::IPV4,
        IpAddr::V6(_) => ether_type::IPV6,
    }
}

/// An Ethernet frame from the device `from` to the device `to`. Checksums are left zero: nobody reads them.
pub(super) fn frame([from, to]: [Mac; 2], source: End, destination: End, content: Content) -> Vec<u8> {
    let (number, payload) = transport(source.port, destination.port, content);
    let mut frame = [to.octets(), from.octets()].concat();
    frame.extend(ether_type_of(source.address).to_be_bytes());
    // The longest payload here is 20 bytes.
    let length = u16::try_from(payload.len()).unwrap_or_default();
    match (source.address, destination.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, number, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([number, 64]);
            for address in [source, destination] {
                let wide = match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                frame.extend(wide.octets());
            }
        }
    }
    frame.extend(payload);
    frame
}

fn transport(source: u16, destination: u16, content: Content) -> (u8, Vec<u8>) {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    match content {
        Content::Tcp(flags) => (protocol::TCP, [&ports, &[0; 8][..], &[0x50, flags], &[0; 6]].concat()),
        Content::Icmp(kind, identifier) => {
            let number = if ECHO_V4.contains(&kind) { protocol::ICMP } else { protocol::ICMPV6 };
            (number, [&[kind, 0, 0, 0], &identifier.to_be_bytes()[..], &[0; 2]].concat())
        }
        Content::Other(protocol::UDP) => (protocol::UDP, [&ports, &[0, 8, 0, 0][..]].concat()),
        Content::Other(number) => (number, [&ports, &[0; 12][..]].concat()),
    }
}
