//! What a program tells userspace of a packet that it dropped, or that opened a flow.

use super::assert_wire_layout;

/// Where a program runs. Host-veth ingress is the pod's egress: [`Hook::direction`] is the one place that converts.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// TC ingress of the pod's host veth: packets that the pod sends.
    FromPod = 0,
    /// TC egress of the pod's host veth: packets that the pod receives.
    ToPod = 1,
    /// TC egress of a device that leads away from the pods: packets that leave this node.
    ToUplink = 2,
}

impl Hook {
    /// The direction of the packets seen here, as the pod sees it.
    #[must_use]
    #[inline(always)]
    pub const fn direction(self) -> super::Direction {
        match self {
            Self::FromPod | Self::ToUplink => super::Direction::Egress,
            Self::ToPod => super::Direction::Ingress,
        }
    }
}

/// One packet. Numbers that userspace does not know are counted, never guessed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Source address, network order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Identity that the peer was judged as, `IDENTITY_NONE` if it was not looked up.
    pub identity: u32,
    /// Interface the hook sits on.
    pub ifindex: u32,
    /// Bytes of the packet, Ethernet header included.
    pub length: u32,
    /// Drops of the same flow and reason since its last event.
    pub suppressed: u32,
    /// The slot's revision when the packet was judged.
    pub revision: u32,
    /// The pod's slot.
    pub slot: u16,
    /// Policy id that denied, `POLICY_NOT_ISOLATED` if policy was not the reason.
    pub policy: u16,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// EtherType, host order.
    pub ether_type: u16,
    /// A `Direction` as number.
    pub direction: u8,
    /// A `Reason` as number.
    pub reason: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP flags, low byte.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Ethernet source.
    pub source_mac: [u8; 6],
    /// Ethernet destination.
    pub destination_mac: [u8; 6],
    /// Always zero.
    pub pad: [u8; Event::PAD],
}
assert_wire_layout!(Event, size = 88 + Event::PAD, align = 8, {
    time: u64, source: [u8; 16], destination: [u8; 16], identity: u32, ifindex: u32, length: u32, suppressed: u32,
    revision: u32, slot: u16, policy: u16, source_port: u16, destination_port: u16, ether_type: u16, direction: u8,
    reason: u8, protocol: u8, tcp_flags: u8, icmp_type: u8, icmp_code: u8, source_mac: [u8; 6],
    destination_mac: [u8; 6], pad: [u8; Event::PAD]
});

impl Event {
    /// Bytes to the end that mean nothing.
    pub const PAD: usize = if cfg!(feature = "next-abi") { 24 } else { 8 };
}
