//! IPv6: extension headers up to the transport header, fragments, routing headers.

use super::v4::low_u16;
use super::{
    Address, Header, Icmp, L2_LEN, MAX_EXTENSION_HEADERS, MAX_FRAGMENTED_HEADERS, PacketBytes, Quoted, TCP_HEADER,
    datagram_len, high_half, low_byte, low_half, parse_transport, part, protocol, settle,
};
use crate::abi::{Endpoint, EndpointFlags, Mac, Reason, V6};

impl Address for V6 {
    const ICMP: u8 = protocol::ICMPV6;
    const ETHER_TYPE: u16 = super::ether_type::IPV6;
    const WORDS: usize = 4;

    #[inline(always)]
    fn parse<P: PacketBytes + ?Sized>(packet: &P, header: &mut Header<Self>) -> Result<(), Reason> {
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] =
            packet.load::<[u32; 10]>(L2_LEN).ok_or(Reason::Truncated)?;
        header.source = Self([s0, s1, s2, s3]);
        header.destination = Self([d0, d1, d2, d3]);
        header.hop_limit = low_byte(u32::from_be(second));
        header.protocol = low_byte(u32::from_be(second) >> 8);
        header.l4 = low_u16(L2_LEN + 40);
        if u32::from_be(first) >> 28 != 6 {
            return Err(Reason::Malformed);
        }
        let held = packet.length() - L2_LEN - 40;
        let payload_len = datagram_len(high_half(second), held);
        if payload_len > held {
            return Err(Reason::Truncated);
        }
        if is_extension(header.protocol) {
            skip_extensions(packet, header)?;
            if hides_transport(header) {
                return Err(Reason::UnknownExtensionHeader);
            }
        }
        // What lies behind the datagram is Ethernet padding: ports found there would be the sender's invention.
        if !matches!(header.part, super::Part::Later(_))
            && usize::from(header.l4) + transport_len(header.protocol) > L2_LEN + 40 + payload_len
        {
            return Err(if header.part == super::Part::First { Reason::FragmentTooSmall } else { Reason::Truncated });
        }
        parse_transport(packet, header)
    }

    #[inline(always)]
    fn parse_quoted<P: PacketBytes + ?Sized>(packet: &P, offset: usize) -> Option<Quoted<Self>> {
        let [first, lengths, s0, s1, s2, s3, d0, d1, d2, d3] = packet.load::<[u32; 10]>(offset)?;
        if u32::from_be(first) >> 28 != 6 {
            return None;
        }
        let protocol = low_byte(u32::from_be(lengths) >> 8);
        let (source_port, destination_port) = super::parse_quoted_ports::<Self, P>(packet, protocol, offset + 40)?;
        let (source, destination) = (Self([s0, s1, s2, s3]), Self([d0, d1, d2, d3]));
        Some(Quoted { source, destination, source_port, destination_port, protocol })
    }

    #[inline(always)]
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self> {
        endpoint.has(EndpointFlags::HAS_V6).then_some(endpoint.ipv6)
    }

    #[inline(always)]
    fn by_words(&self) -> Self {
        let [a, b, c, d] = &self.0;
        Self([*a, *b, *c, *d])
    }

    #[inline(always)]
    fn repeated(word: u32) -> Self {
        Self([word; 4])
    }

    #[inline(always)]
    fn is_group(self) -> bool {
        u32::from_be(self.0[0]) >> 24 == 0xff
    }

    #[inline(always)]
    fn is_broadcast(self) -> bool {
        false
    }

    #[inline(always)]
    fn is_unspecified(self) -> bool {
        self.0 == [0; 4]
    }

    #[inline(always)]
    fn is_link_local_of(self, mac: Mac) -> bool {
        let [a, b, c, d, e, f] = mac.octets();
        let formed = Self::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        self == formed
    }

    #[inline(always)]
    fn icmp(icmp_type: u8) -> Icmp {
        match icmp_type {
            128 => Icmp::EchoRequest,
            129 => Icmp::EchoReply,
            1..=4 => Icmp::Error,
            133 | 135 | 136 => Icmp::Neighbour,
            134 | 137 => Icmp::Router,
            130..=132 | 143 => Icmp::Listener,
            _ => Icmp::Other,
        }
    }

    #[inline(always)]
    fn widen(self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    fn narrow(words: [u32; 4]) -> Self {
        Self(words)
    }
}

#[inline(always)]
const fn transport_len(number: u8) -> usize {
    match number {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMPV6 => 8,
        protocol::SCTP => 12,
        _ => 0,
    }
}

#[inline(always)]
pub(super) const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AH
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
            | 253
            | 254
    )
}

/// True for a first fragment whose transport header lies so far in that a later fragment might pass and rewrite it: see
/// [`Header::first_later_offset`].
#[inline(always)]
const fn hides_transport(header: &Header<V6>) -> bool {
    const FARTHEST: u16 = low_u16(L2_LEN + 40 + 8) + MAX_FRAGMENTED_HEADERS - TCP_HEADER;
    matches!(header.part, super::Part::First) && is_extension(header.fragment_protocol) && header.l4 > FARTHEST
}

/// Follows the chain of extension headers (RFC 8200 §4) to the transport protocol, or to a later fragment's payload.
#[inline(never)]
fn skip_extensions<P: PacketBytes + ?Sized>(packet: &P, header: &mut Header<V6>) -> Result<(), Reason> {
    // verifier: bounded by a constant; the offset is masked at every step.
    for _ in 0..MAX_EXTENSION_HEADERS {
        let header = settle(header);
        let at = usize::from(header.l4) & 0x3fff;
        let word = match header.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::FRAGMENT
            | protocol::AH => u32::from_be(packet.load::<u32>(at).ok_or(Reason::Truncated)?),
            // The ports behind these cannot be found: never let pass unparsed.
            number if is_extension(number) => return Err(Reason::UnknownExtensionHeader),
            _ => return Ok(()),
        };
        let units = usize::from(low_byte(word >> 16));
        let length = match header.protocol {
            protocol::FRAGMENT => {
                let id: u32 = packet.load(at + 4).ok_or(Reason::Truncated)?;
                let offset_and_more = low_half(word.to_be());
                header.fragment_id = u32::from_be(id);
                header.fragment_protocol = low_byte(word >> 24);
                header.part = part(offset_and_more & 0xfff8, offset_and_more & 1 != 0);
                8
            }
            // RFC 4302 §2.2: in words, minus two.
            protocol::AH => (units + 2) * 4,
            // RFC 8200 §4.4: the fourth byte is segments left.
            protocol::ROUTING => {
                header.source_routed |= word & 0xff != 0;
                (units + 1) * 8
            }
            _ => (units + 1) * 8,
        };
        header.protocol = low_byte(word >> 24);
        header.l4 = low_u16(at + length);
        if let super::Part::Later(_) = header.part {
            return Ok(());
        }
    }
    if is_extension(header.protocol) { Err(Reason::UnknownExtensionHeader) } else { Ok(()) }
}
