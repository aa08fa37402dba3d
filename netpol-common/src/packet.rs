//! Bytes in, header out: Ethernet, IPv4 with options, IPv6 with extension headers, fragments, and the ports behind them.
//!
//! Nothing is trusted and nothing is assumed to be where it usually is; what cannot be parsed is a [`Reason`] to drop,
//! never a reason to pass. Reads go through [`PacketBytes`], so the same code runs on an `sk_buff` and on a slice.

use network_types::eth::{EthHdr, EtherType};
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};
use network_types::sctp::SctpHdr;
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::abi::{Endpoint, Flow, FlowKey, Mac, Reason, V4, V6};

/// Unsigned integers and arrays of them: what can be read from a packet as it lies there.
pub trait Wire: Copy {
    /// Size in bytes.
    const SIZE: usize;
    /// The value of the first `SIZE` bytes, or none if there are fewer.
    fn from_slice(bytes: &[u8]) -> Option<Self>;
}

macro_rules! wire {
    ($($word:ty),+) => {$(
        impl Wire for $word {
            const SIZE: usize = size_of::<$word>();
            #[inline(always)]
            fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.first_chunk().copied().map(<$word>::from_ne_bytes)
            }
        }
        impl<const N: usize> Wire for [$word; N] {
            const SIZE: usize = N * size_of::<$word>();
            #[inline(always)]
            fn from_slice(bytes: &[u8]) -> Option<Self> {
                let mut words = [0; N];
                for (word, chunk) in words.iter_mut().zip(bytes.get(..Self::SIZE)?.chunks_exact(size_of::<$word>())) {
                    *word = <$word>::from_ne_bytes(*chunk.first_chunk()?);
                }
                Some(words)
            }
        }
    )+};
}
wire!(u8, u16, u32);

/// A packet, from its Ethernet header on.
pub trait PacketBytes {
    /// The value at `offset`, in memory order; none if the packet ends before it does.
    fn load<T: Wire>(&self, offset: usize) -> Option<T>;
    /// Length in bytes.
    fn length(&self) -> usize;
}

impl PacketBytes for [u8] {
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        T::from_slice(self.get(offset..)?)
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// EtherTypes in host order.
pub mod ether_type {
    use super::EtherType;
    /// 0x0800.
    pub const IPV4: u16 = u16::from_be(EtherType::Ipv4 as u16);
    /// 0x86dd.
    pub const IPV6: u16 = u16::from_be(EtherType::Ipv6 as u16);
    /// 0x8100 and 0x88a8: VLAN tags (IEEE 802.1Q, 802.1ad) that are still within the frame.
    pub const VLAN: [u16; 2] = [u16::from_be(EtherType::Ieee8021q as u16), u16::from_be(EtherType::Ieee8021ad as u16)];
    /// 0x0806.
    pub const ARP: u16 = u16::from_be(EtherType::Arp as u16);
}

/// IANA protocol numbers.
pub mod protocol {
    use super::IpProto;
    /// ICMP.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// IPv4 in IP.
    pub const IPV4: u8 = IpProto::Ipv4 as u8;
    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// IPv6 in IP.
    pub const IPV6: u8 = IpProto::Ipv6 as u8;
    /// Generic routing encapsulation.
    pub const GRE: u8 = IpProto::Gre as u8;
    /// ICMPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Mobility header; it and the next are extension headers that hide the ports from us.
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol.
    pub const HIP: u8 = 139;
    /// Shim6.
    pub const SHIM6: u8 = 140;
}

/// TCP flag bits (low byte).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement.
    pub const ACK: u8 = 0x10;
}

/// Bytes before the IP header.
pub const L2_LEN: usize = EthHdr::LEN;
/// More extension headers than this are a reason to drop: no sender of ours needs them (RFC 8504 §5.3 allows a limit).
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// Bytes of a TCP header without options.
const TCP_HEADER: u16 = 20;
/// Within this many bytes of a fragmented datagram its extension and transport headers must end. What an honest sender cuts
/// off first is longer: an IPv6 link carries 1280 bytes.
pub(crate) const MAX_FRAGMENTED_HEADERS: u16 = 256;

/// The Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// EtherType, host order.
    pub ether_type: u16,
}

impl Ethernet {
    /// Reads the header.
    ///
    /// # Errors
    /// `Truncated`.
    #[inline(always)]
    pub fn parse<P: PacketBytes + ?Sized>(packet: &P) -> Result<Self, Reason> {
        let [a, b, c, d, e, f, kind] = packet.load::<[u16; 7]>(0).ok_or(Reason::Truncated)?;
        Ok(Self { destination: Mac([a, b, c]), source: Mac([d, e, f]), ether_type: u16::from_be(kind) })
    }
}

/// Makes the compiler write what it knows of the header to memory and read it back from there.
///
/// verifier: it follows values in registers but not through map memory (see [`Workspace`]). Without this every path through
/// the parser would be followed to the end of the program with its own values: a million instructions, and a refusal.
#[inline(always)]
pub(crate) fn settle<A>(header: &mut Header<A>) -> &mut Header<A> {
    core::hint::black_box(header)
}

/// The same for all that was worked out.
#[inline(always)]
pub(crate) fn settle_all<A>(scratch: &mut Scratch<A>) -> &mut Scratch<A> {
    core::hint::black_box(scratch)
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later one: no ports, at this offset in bytes.
    Later(u16),
}

/// IP and transport header as far as the decision needs them, and how far it has come.
///
/// `repr(C)`, with fields of one byte in an order that keeps equal ones apart: see [`Header::renew`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification of the datagram, if it is fragmented; host order.
    pub fragment_id: u32,
    /// Identity that the peer was judged as; `IDENTITY_NONE` if it was not.
    pub judged_identity: u32,
    /// Policy id that denied; `POLICY_NOT_ISOLATED` if none did.
    pub judged_policy: u16,
    /// Slot of the sender whose egress policy is being applied for it; `SLOT_NONE` if it is the pod's own turn.
    pub on_behalf: u16,
    /// Slot of the local pod that a masquerade hides behind the source; `SLOT_NONE` if the source is who sent it.
    pub origin: u16,
    /// Where parsing has got to in options.
    pub cursor: u16,
    /// Offset of the transport header from the start of the frame.
    pub l4: u16,
    /// Source port; ICMP echo request: its identifier; else 0.
    pub source_port: u16,
    /// Destination port; ICMP echo reply: its identifier; else 0.
    pub destination_port: u16,
    /// Whole packet or which fragment.
    pub part: Part,
    /// Transport protocol (behind extension headers).
    pub protocol: u8,
    /// The frame carries the pod's own MAC address (it was not flooded).
    pub for_pod: bool,
    /// Protocol number that all fragments of the datagram carry. IPv6: what follows the fragment header, which may be a
    /// further extension header.
    pub fragment_protocol: u8,
    /// The node's own stack sent it, from one of its own addresses.
    pub from_own_node: bool,
    /// The pod's own packet, come back through a service.
    pub to_self: bool,
    /// Hop limit or time to live.
    pub hop_limit: u8,
    /// IPv4 source route option, or IPv6 routing header with segments left.
    pub source_routed: bool,
    /// TCP flags, low byte.
    pub tcp_flags: u8,
    /// What the stages so far come to.
    pub reason: Reason,
    /// ICMP type.
    pub icmp_type: u8,
    /// The node's own stack sent it.
    pub from_node_stack: bool,
    /// ICMP code.
    pub icmp_code: u8,
}

/// What an ICMP error quotes, as far as it names a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// As in [`Header`].
    pub source_port: u16,
    /// As in [`Header`].
    pub destination_port: u16,
    /// Transport protocol.
    pub protocol: u8,
}

impl<A: Address> Header<A> {
    /// The least offset of a later fragment of this datagram: one before it could rewrite what was judged (RFC 1858, RFC
    /// 3128). Where extension headers may be cut off with the payload, the transport's lies behind them, but never this far.
    #[inline(always)]
    pub(crate) const fn first_later_offset(&self) -> u16 {
        match self.fragment_protocol {
            protocol::TCP => TCP_HEADER,
            number if v6::is_extension(number) && A::ICMP == protocol::ICMPV6 => MAX_FRAGMENTED_HEADERS,
            _ => 0,
        }
    }

    /// Forgets the packet before.
    #[inline(always)]
    pub(crate) fn renew(&mut self) -> &mut Self {
        // A zero that the compiler does not know for one: it would have it all set by `memset`, which on the BPF target is a
        // loop over bytes.
        let zero = core::hint::black_box(0_u32);
        self.source = A::repeated(zero);
        self.destination = A::repeated(zero);
        self.fragment_id = zero;
        self.judged_identity = zero;
        let half = low_half(zero);
        self.judged_policy = half;
        self.on_behalf = half;
        self.origin = half;
        self.cursor = half;
        self.l4 = half;
        self.source_port = half;
        self.destination_port = half;
        self.part = Part::Whole;
        let byte = low_byte(zero);
        self.protocol = byte;
        self.for_pod = false;
        self.fragment_protocol = byte;
        self.from_own_node = false;
        self.to_self = false;
        self.hop_limit = byte;
        self.source_routed = false;
        self.tcp_flags = byte;
        self.reason = Reason::default();
        self.icmp_type = byte;
        self.from_node_stack = false;
        self.icmp_code = byte;
        self
    }
}

/// Room for the headers of both families, outside the stack of a program: the verifier does not follow values through map
/// memory, so paths that differ only in what was parsed become one (followed through the stack, they are a million).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// IPv4.
    pub v4: Scratch<V4>,
    /// IPv6.
    pub v6: Scratch<V6>,
}

/// What is worked out of one packet, in map memory for the stack's sake too: it has 512 bytes for a chain of calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch<A> {
    /// What was parsed.
    pub header: Header<A>,
    /// The flow as the pod sees it.
    pub key: FlowKey<A>,
    /// The same with a service's backend as the peer.
    pub at_backend: FlowKey<A>,
    /// The entry that the packet opens, if `opens`.
    pub opened: Flow,
    /// The packet opens a flow.
    pub opens: u32,
    /// Always zero.
    pub pad: u32,
}

/// What an ICMP message is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Asks; opens a flow.
    EchoRequest,
    /// Answers; belongs to a flow.
    EchoReply,
    /// Quotes the packet that it is about.
    Error,
    /// Neighbour discovery within the link (hop limit 255 was not checked yet).
    Neighbour,
    /// Router advertisement or redirect: a router's word.
    Router,
    /// Multicast listener discovery.
    Listener,
    /// Anything else.
    Other,
}

/// An address family: how its packets are parsed and its addresses told apart. [`V4`] or [`V6`].
pub trait Address: Copy + Eq + Default + core::fmt::Debug {
    /// The family's ICMP.
    const ICMP: u8;
    /// EtherType, host order.
    const ETHER_TYPE: u16;
    /// Words of an address.
    const WORDS: usize;

    /// Fills `header` from the packet.
    ///
    /// # Errors
    /// The reason why it cannot be parsed; `header` then holds what was read so far.
    fn parse<P: PacketBytes + ?Sized>(packet: &P, header: &mut Header<Self>) -> Result<(), Reason>;
    /// Parses the packet quoted in an ICMP error at `offset`: addresses, protocol and ports only, no options or
    /// extension headers. None if it is not whole enough.
    fn parse_quoted<P: PacketBytes + ?Sized>(packet: &P, offset: usize) -> Option<Quoted<Self>>;
    /// The address of this family that the endpoint has.
    fn of_endpoint(endpoint: &Endpoint) -> Option<Self>;
    /// A copy, word by word: one of the whole is a call of `memcpy`, which on the BPF target is a loop over bytes.
    fn by_words(&self) -> Self;
    /// The address made of this word alone.
    fn repeated(word: u32) -> Self;
    /// True for a group (IPv4: limited broadcast too).
    fn is_group(self) -> bool;
    /// True for the limited broadcast; IPv6 has none.
    fn is_broadcast(self) -> bool;
    /// True for 0.0.0.0 or `::`.
    fn is_unspecified(self) -> bool;
    /// True if this is the link-local address that `mac` forms (RFC 4291 appendix A); IPv4 has none.
    fn is_link_local_of(self, mac: Mac) -> bool;
    /// What an ICMP message of this type is.
    fn icmp(icmp_type: u8) -> Icmp;
    /// Sixteen bytes for events; IPv4 in the first four.
    fn widen(self) -> [u32; 4];
    /// What [`Self::widen`] made wide.
    fn narrow(words: [u32; 4]) -> Self;
}

/// Reads ports, flags and ICMP fields at `header.l4`; a fragment must hold them whole.
#[inline(always)]
fn parse_transport<A: Address, P: PacketBytes + ?Sized>(packet: &P, header: &mut Header<A>) -> Result<(), Reason> {
    if let Part::Later(_) = header.part {
        return Ok(());
    }
    let missing = if header.part == Part::First { Reason::FragmentTooSmall } else { Reason::Truncated };
    let l4 = usize::from(header.l4);
    match header.protocol {
        protocol::TCP => {
            let words = packet.load::<[u32; TcpHdr::LEN / 4]>(l4).ok_or(missing)?;
            set_ports(header, words[0]);
            header.tcp_flags = low_byte(u32::from_be(words[3]) >> 16);
        }
        protocol::UDP => {
            let words = packet.load::<[u32; UdpHdr::LEN / 4]>(l4).ok_or(missing)?;
            set_ports(header, words[0]);
        }
        protocol::SCTP => {
            let words = packet.load::<[u32; SctpHdr::LEN / 4]>(l4).ok_or(missing)?;
            set_ports(header, words[0]);
        }
        icmp if icmp == A::ICMP => {
            let words = packet.load::<[u32; Icmpv4Hdr::LEN / 4]>(l4).ok_or(missing)?;
            let first = u32::from_be(words[0]);
            header.icmp_type = low_byte(first >> 24);
            header.icmp_code = low_byte(first >> 16);
            let identifier = high_half(words[1]);
            match A::icmp(header.icmp_type) {
                Icmp::EchoRequest => header.source_port = identifier,
                Icmp::EchoReply => header.destination_port = identifier,
                Icmp::Error | Icmp::Neighbour | Icmp::Router | Icmp::Listener | Icmp::Other => {}
            }
        }
        _ => {}
    }
    Ok(())
}

/// Ports (or echo identifier) of a quoted packet, source first: RFC 792 promises only its first eight bytes.
#[inline(always)]
fn parse_quoted_ports<A: Address, P: PacketBytes + ?Sized>(packet: &P, protocol: u8, l4: usize) -> Option<(u16, u16)> {
    let words = packet.load::<[u32; 2]>(l4)?;
    if matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return Some((high_half(words[0]), low_half(words[0])));
    }
    if protocol != A::ICMP {
        return Some((0, 0));
    }
    match A::icmp(low_byte(u32::from_be(words[0]) >> 24)) {
        Icmp::EchoRequest => Some((high_half(words[1]), 0)),
        Icmp::EchoReply => Some((0, high_half(words[1]))),
        Icmp::Error | Icmp::Neighbour | Icmp::Router | Icmp::Listener | Icmp::Other => None,
    }
}

#[inline(always)]
fn set_ports<A>(header: &mut Header<A>, word: u32) {
    header.source_port = high_half(word);
    header.destination_port = low_half(word);
}

/// The first two network-order bytes of a word as loaded.
#[inline(always)]
const fn high_half(word: u32) -> u16 {
    (u32::from_be(word) >> 16) as u16
}

/// The last two network-order bytes of a word as loaded.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes 16 of 32 bits on purpose")]
const fn low_half(word: u32) -> u16 {
    u32::from_be(word) as u16
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes 8 of 32 bits on purpose")]
const fn low_byte(value: u32) -> u8 {
    value as u8
}

/// The part of a datagram, from a byte offset and the more-fragments bit.
#[inline(always)]
const fn part(offset: u16, more: bool) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        (offset, _) => Part::Later(offset),
    }
}

/// Length of a packet behind its Ethernet (and fixed IPv6) header, from the header's field and from what the frame holds.
///
/// kernel: only a GSO packet beyond 64 KiB (big TCP) carries 0 (include/net/ip.h, iph_totlen); in any other the field is
/// what the receiver goes by, and all behind it is padding.
#[inline(always)]
const fn datagram_len(field: u16, held: usize) -> usize {
    if field == 0 && held > u16::MAX as usize { held } else { field as usize }
}

mod v4;
mod v6;

const _: () = assert!(Ipv4Hdr::LEN == 20 && Ipv6Hdr::LEN == 40 && L2_LEN == 14);
