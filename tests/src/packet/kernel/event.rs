//! Events as the ring buffer has them, and as a report of the host says they must be.

use netpol_common::abi::{Event, V6};
use netpol_common::host::HostReport;

use super::{LOOPBACK, Observed};

/// Takes values off the front of some bytes.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*value)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn half(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }
}

/// Reads an event in the order of its fields. None if the size is not an event's.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Event> {
    let mut bytes = Bytes(bytes);
    let event = Event {
        time: u64::from_ne_bytes(bytes.take()?),
        source: bytes.take()?,
        destination: bytes.take()?,
        identity: bytes.word()?,
        ifindex: bytes.word()?,
        length: bytes.word()?,
        suppressed: bytes.word()?,
        revision: bytes.word()?,
        slot: bytes.half()?,
        policy: bytes.half()?,
        source_port: bytes.half()?,
        destination_port: bytes.half()?,
        ether_type: bytes.half()?,
        direction: bytes.byte()?,
        reason: bytes.byte()?,
        protocol: bytes.byte()?,
        tcp_flags: bytes.byte()?,
        icmp_type: bytes.byte()?,
        icmp_code: bytes.byte()?,
        source_mac: bytes.take()?,
        destination_mac: bytes.take()?,
        pad: bytes.take()?,
    };
    bytes.0.is_empty().then_some(event)
}

/// The event of a packet that the host reported so, with time 0.
#[must_use]
pub fn expected(packet: &Observed<'_>, report: &HostReport) -> Event {
    let [source, destination] = report.addresses.map(V6::octets);
    let [source_port, destination_port] = report.ports;
    let mac = |at: usize| packet.bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    Event {
        time: 0,
        source,
        destination,
        identity: report.identity,
        ifindex: LOOPBACK,
        length: u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX),
        suppressed: 0,
        revision: report.revision,
        slot: report.slot,
        policy: report.policy,
        source_port,
        destination_port,
        ether_type: report.ether_type,
        direction: report.direction as u8,
        reason: report.reason as u8,
        protocol: report.protocol,
        tcp_flags: report.tcp_flags,
        icmp_type: report.icmp_type,
        icmp_code: report.icmp_code,
        source_mac: mac(6),
        destination_mac: mac(0),
        pad: [0; 8],
    }
}
