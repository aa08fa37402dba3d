//! IPv4: header length, total length, options, fragments.

use super::{
    Address, Header, Icmp, L2_LEN, PacketBytes, Quoted, datagram_len, low_byte, low_half, parse_transport, part,
    protocol, settle,
};
use crate::abi::{Endpoint, EndpointFlags, Mac, Reason, V4};

/// Option numbers that route by the sender's will (RFC 791: loose and strict source route).
const SOURCE_ROUTES: [u8; 2] = [131, 137];
/// Bytes of options at most: a header is 60 bytes long, 20 of them fixed.
const MAX_OPTION_BYTES: usize = 40;
/// The more-fragments bit of the fragment word.
const MORE_FRAGMENTS: u16 = 0x2000;

impl Address for V4 {
    const ICMP: u8 = protocol::ICMP;
    const ETHER_TYPE: u16 = super::ether_type::IPV4;
    const WORDS: usize = 1;

    #[inline(always)]
    fn parse<P: PacketBytes + ?Sized>(packet: &P, header: &mut Header<Self>) -> Result<(), Reason> {
        let [first, fragment, ttl, source, destination] = packet.load::<[u32; 5]>(L2_LEN).ok_or(Reason::Truncated)?;
        header.source = Self(source);
        header.destination = Self(destination);
        let ttl = u32::from_be(ttl);
        header.hop_limit = low_byte(ttl >> 24);
        header.protocol = low_byte(ttl >> 16);
        header.fragment_protocol = header.protocol;

        let version_and_length = u32::from_be(first) >> 24;
        let header_len = ((version_and_length & 0xf) * 4) as usize;
        let held = packet.length() - L2_LEN;
        let total_len = datagram_len(low_half(first), held);
        if version_and_length >> 4 != 4 || header_len < 20 {
            return Err(Reason::Malformed);
        }
        if total_len < header_len || total_len > held {
            return Err(Reason::Truncated);
        }
        header.l4 = low_u16(L2_LEN + header_len);
        let word = low_half(fragment);
        header.part = part((word & 0x1fff) << 3, word & MORE_FRAGMENTS != 0);
        header.fragment_id = u32::from_be(fragment) >> 16;
        if header_len > 20 {
            header.cursor = low_u16(L2_LEN + 20);
            find_source_route(packet, header)?;
        }
        // What lies behind the datagram is Ethernet padding: ports found there would be the sender's invention.
        if !matches!(header.part, super::Part::Later(_)) {
            require_ports(header, total_len - header_len)?;
        }
        parse_transport(packet, header)
    }

    #[inline(always)]
    fn parse_quoted<P: PacketBytes + ?Sized>(packet: &P, offset: usize) -> Option<Quoted<Self>> {
        let [first, fragment, ttl, source, destination] = packet.load::<[u32; 5]>(offset)?;
        // verifier: options would make the offset of the ports variable; an error about such a packet is not related.
        if u32::from_be(first) >> 24 != 0x45 || low_half(fragment) & 0x1fff != 0 {
            return None;
        }
        let protocol = low_byte(u32::from_be(ttl) >> 16);
        let (source_port, destination_port) = super::parse_quoted_ports::<Self, P>(packet, protocol, offset + 20)?;
        Some(Quoted { source: Self(source), destination: Self(destination), source_port, destination_port, protocol })
    }

    #[inline(always)]
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self> {
        endpoint.has(EndpointFlags::HAS_V4).then_some(endpoint.ipv4)
    }

    #[inline(always)]
    fn by_words(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn repeated(word: u32) -> Self {
        Self(word)
    }

    #[inline(always)]
    fn is_group(self) -> bool {
        u32::from_be(self.0) >> 28 == 0xe || self.is_broadcast()
    }

    #[inline(always)]
    fn is_broadcast(self) -> bool {
        self.0 == u32::MAX
    }

    #[inline(always)]
    fn is_unspecified(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    fn is_link_local_of(self, _mac: Mac) -> bool {
        false
    }

    #[inline(always)]
    fn icmp(icmp_type: u8) -> Icmp {
        match icmp_type {
            8 => Icmp::EchoRequest,
            0 => Icmp::EchoReply,
            3 | 11 | 12 => Icmp::Error,
            // Redirect and router advertisement (RFC 792, RFC 1256).
            5 | 9 => Icmp::Router,
            _ => Icmp::Other,
        }
    }

    #[inline(always)]
    fn widen(self) -> [u32; 4] {
        [self.0, 0, 0, 0]
    }

    #[inline(always)]
    fn narrow(words: [u32; 4]) -> Self {
        let [word, ..] = words;
        Self(word)
    }
}

/// Offsets within a frame fit 16 bits: two headers of bounded length.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a bounded offset, masked for the verifier")]
pub(super) const fn low_u16(offset: usize) -> u16 {
    (offset & 0x3fff) as u16
}

/// The transport header must lie inside the datagram, not in the padding behind it.
#[inline(always)]
fn require_ports(header: &Header<V4>, payload_len: usize) -> Result<(), Reason> {
    let needed = match header.protocol {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP => 8,
        protocol::SCTP => 12,
        _ => 0,
    };
    if payload_len >= needed {
        return Ok(());
    }
    Err(if header.part == super::Part::First { Reason::FragmentTooSmall } else { Reason::Truncated })
}

/// Walks the options (RFC 791 §3.1) from the header's cursor to the transport header.
#[inline(never)]
fn find_source_route<P: PacketBytes + ?Sized>(packet: &P, header: &mut Header<V4>) -> Result<(), Reason> {
    // verifier: at most one option a byte; the cursor lives in the header, so that every round looks the same.
    for _ in 0..MAX_OPTION_BYTES {
        let header = settle(header);
        if header.cursor >= header.l4 {
            return Ok(());
        }
        // verifier: kind and length at once; a check for a single byte at a variable offset proves it nothing. A last
        // option of one byte is always followed by the transport header.
        let [kind, option_len] = packet.load::<[u8; 2]>(usize::from(header.cursor)).ok_or(Reason::Truncated)?;
        match kind {
            0 => return Ok(()),
            1 => header.cursor = header.cursor.wrapping_add(1),
            kind if SOURCE_ROUTES.contains(&kind) => {
                header.source_routed = true;
                return Ok(());
            }
            _ if option_len < 2 => return Err(Reason::Malformed),
            _ => header.cursor = header.cursor.wrapping_add(u16::from(option_len)),
        }
    }
    Ok(())
}
