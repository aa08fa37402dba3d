//! Ring-buffer bytes to [`RawEvent`]: field by field, safely. What this version does not know is an error that is counted.

use bytes::{Buf, Bytes};
use netpol_common::abi::{Direction, Event, Reason};

/// An event with its numbers understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Source address bytes; IPv4 in the first four.
    pub source: [u8; 16],
    /// Destination address bytes.
    pub destination: [u8; 16],
    /// Identity of the peer.
    pub identity: u32,
    /// Interface of the hook.
    pub ifindex: u32,
    /// Bytes of the packet.
    pub length: u32,
    /// Drops since the flow's last event.
    pub suppressed: u32,
    /// The slot's revision.
    pub revision: u32,
    /// The pod's slot.
    pub slot: u16,
    /// Policy id that denied.
    pub policy: u16,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// EtherType, host order.
    pub ether_type: u16,
    /// Direction as the pod sees it.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Ethernet source.
    pub source_mac: [u8; 6],
    /// Ethernet destination.
    pub destination_mac: [u8; 6],
}

/// A record that is no event of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another size than an event has.
    #[error("a record of {found} bytes where an event has {expected}", expected = size_of::<Event>())]
    Size {
        /// Bytes found.
        found: usize,
    },
    /// A reason that this version does not know.
    #[error("unknown drop reason {0}")]
    Reason(u8),
    /// A direction that this version does not know.
    #[error("unknown direction {0}")]
    Direction(u8),
}

/// Understands one record.
///
/// # Errors
/// If it has another size or names a number that this version does not know.
pub fn decode(mut record: Bytes) -> Result<RawEvent, DecodeError> {
    if record.len() != size_of::<Event>() {
        return Err(DecodeError::Size { found: record.len() });
    }
    // abi: the fields of `Event`, in their order and in the machine's byte order.
    let time = record.get_u64_ne();
    let mut source = [0; 16];
    record.copy_to_slice(&mut source);
    let mut destination = [0; 16];
    record.copy_to_slice(&mut destination);
    let mut event = RawEvent {
        time,
        source,
        destination,
        identity: record.get_u32_ne(),
        ifindex: record.get_u32_ne(),
        length: record.get_u32_ne(),
        suppressed: record.get_u32_ne(),
        revision: record.get_u32_ne(),
        slot: record.get_u16_ne(),
        policy: record.get_u16_ne(),
        source_port: record.get_u16_ne(),
        destination_port: record.get_u16_ne(),
        ether_type: record.get_u16_ne(),
        direction: match record.get_u8() {
            0 => Direction::Ingress,
            1 => Direction::Egress,
            other => return Err(DecodeError::Direction(other)),
        },
        reason: Reason::try_from(record.get_u8()).map_err(|unknown| DecodeError::Reason(unknown.0))?,
        protocol: record.get_u8(),
        tcp_flags: record.get_u8(),
        icmp_type: record.get_u8(),
        icmp_code: record.get_u8(),
        source_mac: [0; 6],
        destination_mac: [0; 6],
    };
    record.copy_to_slice(&mut event.source_mac);
    record.copy_to_slice(&mut event.destination_mac);
    Ok(event)
}
