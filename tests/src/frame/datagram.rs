//! IP packets of any shape as bytes: options, extension headers, fragments, transports whole or cut.
//!
//! In: a [`Datagram`], of which every field may be odd on purpose. Out: its bytes, with the lengths and the IPv4 header
//! checksum that a sender would put there; transports' checksums are left zero (no hook looks at them). Nothing is judged
//! and nothing is refused but addresses of two families. Start at [`Datagram::new`].

use std::net::IpAddr;

use super::checksum;

/// TCP flag bits.
pub mod flag {
    pub use netpol_common::packet::tcp_flag::{ACK, FIN, RST, SYN};
    /// An answer to SYN.
    pub const SYN_ACK: u8 = SYN | ACK;
    /// Data, or the end of the handshake.
    pub const PSH_ACK: u8 = 0x08 | ACK;
    /// The usual end.
    pub const FIN_ACK: u8 = FIN | ACK;
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment without payload.
    Tcp {
        /// Source and destination port.
        ports: [u16; 2],
        /// Flags, low byte.
        flags: u8,
    },
    /// A UDP datagram of four bytes.
    Udp {
        /// Source and destination port.
        ports: [u16; 2],
    },
    /// An SCTP INIT.
    Sctp {
        /// Source and destination port.
        ports: [u16; 2],
    },
    /// An echo request or reply of the family.
    Echo {
        /// True for the reply.
        reply: bool,
        /// Identifier.
        id: u16,
    },
    /// Another message of the family's ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// What follows the checksum.
        body: Vec<u8>,
    },
    /// Any bytes under any protocol number.
    Raw {
        /// Protocol number.
        protocol: u8,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

impl Transport {
    /// IANA number in a packet of this family.
    #[must_use]
    pub fn number(&self, ipv4: bool) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Sctp { .. } => 132,
            Self::Echo { .. } | Self::Icmp { .. } => {
                if ipv4 {
                    1
                } else {
                    58
                }
            }
            Self::Raw { protocol, .. } => *protocol,
        }
    }

    /// The bytes behind the IP header.
    #[must_use]
    pub fn bytes(&self, ipv4: bool) -> Vec<u8> {
        let pair = |ports: &[u16; 2]| ports.map(u16::to_be_bytes).concat();
        match self {
            // Sequence and acknowledgement, five words, flags, window, checksum, urgent pointer.
            Self::Tcp { ports, flags } => {
                [&pair(ports)[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, *flags, 0xfa, 0xf0, 0, 0, 0, 0]].concat()
            }
            // Length and checksum, then a few bytes to read.
            Self::Udp { ports } => [&pair(ports)[..], &[0, 12, 0, 0], b"ping"].concat(),
            // Verification tag 0, checksum; INIT chunk of 20 bytes: tag, window, streams out and in, first sequence number.
            Self::Sctp { ports } => {
                let init = [1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 10, 0, 10, 0, 0, 0, 1];
                [&pair(ports)[..], &[0, 0, 0, 0, 0, 0, 0, 0], &init].concat()
            }
            Self::Echo { reply, id } => {
                let kind = match (ipv4, reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], b"ping"].concat()
            }
            Self::Icmp { kind, code, body } => [&[*kind, *code, 0, 0][..], body].concat(),
            Self::Raw { bytes, .. } => bytes.clone(),
        }
    }
}

/// Where a fragment lies in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification of the datagram.
    pub id: u32,
    /// Offset in bytes, a multiple of eight.
    pub offset: u16,
    /// True if more follow.
    pub more: bool,
}

/// An IPv6 extension header: its number, and its bytes behind the next-header field.
pub type Extension = (u8, Vec<u8>);

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Hop limit or time to live.
    pub hop_limit: u8,
    /// IPv4 options; their length must be a multiple of four, at most 40.
    pub options: Vec<u8>,
    /// IPv6 extension headers before the fragment header.
    pub extensions: Vec<Extension>,
    /// The fragment, if it is one.
    pub fragment: Option<Fragment>,
    /// What it carries.
    pub transport: Transport,
}

impl Datagram {
    /// A plain packet.
    #[must_use]
    pub const fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            source,
            destination,
            hop_limit: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            transport,
        }
    }

    /// The same with another hop limit.
    #[must_use]
    pub const fn hops(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// The same with IPv4 options.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// The same with an extension header more.
    #[must_use]
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        self.extensions.push((number, rest.to_vec()));
        self
    }

    /// The same as a fragment.
    #[must_use]
    pub const fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { id, offset, more });
        self
    }

    /// From the IP header on. None if the addresses are of two families or a length does not fit its field.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source.octets(), destination.octets()),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source.octets(), destination.octets()),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    /// As a frame between these link addresses. None as in [`Datagram::bytes`].
    #[must_use]
    pub fn frame(&self, source: [u8; 6], destination: [u8; 6]) -> Option<Vec<u8>> {
        let ether_type = if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        Some([&destination[..], &source, &ether_type, &self.bytes()?].concat())
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> Option<Vec<u8>> {
        let transport = self.transport.bytes(true);
        let header_len = 20 + self.options.len();
        let words = u8::try_from(header_len / 4).ok().filter(|words| *words < 16)?;
        let mut header = vec![0x40 | words, 0];
        header.extend(u16::try_from(header_len + transport.len()).ok()?.to_be_bytes());
        match self.fragment {
            None => header.extend([0, 1, 0x40, 0]),
            Some(Fragment { id, offset, more }) => {
                header.extend(u16::try_from(id).ok()?.to_be_bytes());
                header.extend((offset >> 3 | u16::from(more) << 13).to_be_bytes());
            }
        }
        header.extend([self.hop_limit, self.transport.number(true), 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(&self.options);
        let sum = checksum(&header).to_be_bytes();
        header.splice(10..12, sum);
        header.extend(transport);
        Some(header)
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> Option<Vec<u8>> {
        let mut extensions = self.extensions.clone();
        if let Some(Fragment { id, offset, more }) = self.fragment {
            let word = offset | u16::from(more);
            extensions.push((44, [&[0][..], &word.to_be_bytes(), &id.to_be_bytes()].concat()));
        }
        let numbers: Vec<u8> = extensions.iter().map(|(number, _)| *number).collect();
        let next = numbers.into_iter().chain([self.transport.number(false)]);
        let mut next = next.collect::<Vec<_>>().into_iter();
        let first = next.next()?;
        let mut payload = Vec::new();
        for ((_, rest), following) in extensions.into_iter().zip(next) {
            payload.push(following);
            payload.extend(rest);
        }
        payload.extend(self.transport.bytes(false));
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(payload.len()).ok()?.to_be_bytes());
        packet.extend([first, self.hop_limit]);
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        Some(packet)
    }
}
