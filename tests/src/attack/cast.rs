//! Who takes part in attacks, and packets of theirs as bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Intent;
use crate::frame::checksum;
use crate::frame::datagram::{Datagram, Transport};
use crate::node::{GATEWAYS, NODE, NODE_ADDRESSES, OUTSIDE, OUTSIDE_ADDRESSES};

/// Attacker that no policy isolates.
pub const MALLORY: &str = "mallory";
/// Attacker that may send to the victim's open port and nothing else.
pub const JAILED: &str = "jailed";
/// Open on [`OPEN`], and on [`GUARDED`] to [`FRIEND`].
pub const VICTIM: &str = "victim";
/// Whom the victim trusts.
pub const FRIEND: &str = "friend";
/// May receive nothing.
pub const SEALED: &str = "sealed";
/// A pod that no policy isolates.
pub const BYSTANDER: &str = "bystander";
/// A pod without IPv6 address.
pub const LEGACY: &str = "legacy";
/// Every pod.
pub const PODS: [&str; 7] = [MALLORY, JAILED, VICTIM, FRIEND, SEALED, BYSTANDER, LEGACY];

/// The victim's port for everybody.
pub const OPEN: u16 = 9000;
/// The victim's port for its friend.
pub const GUARDED: u16 = 8080;
/// A port of the victim for nobody.
pub const SHUT: u16 = 7777;
/// Every broadcast goes there.
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// The MAC address of cni0, the pods' gateway.
pub const GATEWAY_MAC: [u8; 6] = [0x0a, 0x58, 10, 244, 1, 1];

/// Both families, as the last argument of most calls here.
pub const FAMILIES: [bool; 2] = [false, true];

/// Addresses of a pod.
#[must_use]
pub fn pod_addresses(pod: &str) -> Vec<IpAddr> {
    let host = PODS.iter().position(|it| *it == pod).and_then(|at| u8::try_from(at).ok()).unwrap_or_default() + 11;
    let v4 = IpAddr::from([10, 244, 1, host]);
    if pod == LEGACY {
        return vec![v4];
    }
    vec![v4, IpAddr::from([0xfd00, 0x10, 0x244, 1, 0, 0, 0, u16::from(host)])]
}

/// A name for a report: the words, and the family.
#[must_use]
pub fn named(what: &str, ipv6: bool) -> String {
    format!("{what} (IPv{})", if ipv6 { 6 } else { 4 })
}

/// A TCP segment with a payload.
#[must_use]
pub fn tcp(ports: [u16; 2], flags: u8, payload: &[u8]) -> Transport {
    let header = Transport::Tcp { ports, flags }.bytes(true);
    Transport::Raw { protocol: 6, bytes: [&header, payload].concat() }
}

/// A UDP datagram with a payload.
#[must_use]
pub fn udp(ports: [u16; 2], payload: &[u8]) -> Transport {
    let [from, to] = ports.map(u16::to_be_bytes);
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    Transport::Raw { protocol: 17, bytes: [&from[..], &to, &length, &[0, 0], payload].concat() }
}

/// An ICMP message of the family with a body behind type, code and checksum.
#[must_use]
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Transport {
    Transport::Icmp { kind, code, body: body.to_vec() }
}

/// Who is there, by name.
#[derive(Clone, Debug)]
pub struct Cast {
    macs: BTreeMap<&'static str, [u8; 6]>,
    uplink: [u8; 6],
}

impl Cast {
    /// The participants with their MAC addresses, and that of the node's uplink.
    #[must_use]
    pub const fn new(macs: BTreeMap<&'static str, [u8; 6]>, uplink: [u8; 6]) -> Self {
        Self { macs, uplink }
    }

    /// MAC address of a place: a pod's interface, the node's bridge, the outside host's uplink.
    #[must_use]
    pub fn mac(&self, place: &str) -> [u8; 6] {
        self.macs.get(place).copied().unwrap_or_default()
    }

    /// MAC address of the node's uplink.
    #[must_use]
    pub const fn uplink(&self) -> [u8; 6] {
        self.uplink
    }

    /// Address of a place; the unspecified one of the family if it has none.
    #[must_use]
    pub fn address(&self, place: &str, ipv6: bool) -> IpAddr {
        let all = match place {
            NODE => GATEWAYS.to_vec(),
            "uplink" => NODE_ADDRESSES.to_vec(),
            OUTSIDE => OUTSIDE_ADDRESSES.to_vec(),
            pod => pod_addresses(pod),
        };
        all.into_iter().find(|it| it.is_ipv6() == ipv6).unwrap_or_else(|| unspecified(ipv6))
    }

    /// The link-local address that a pod's MAC address forms.
    #[must_use]
    pub fn link_local(&self, pod: &str) -> IpAddr {
        let [a, b, c, d, e, f] = self.mac(pod);
        IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// A packet between two places.
    #[must_use]
    pub fn packet(&self, from: &str, to: &str, ipv6: bool, transport: Transport) -> Datagram {
        Datagram::new(self.address(from, ipv6), self.address(to, ipv6), transport)
    }

    /// A packet as a frame between two places of one bridge, whatever its addresses.
    #[must_use]
    pub fn frame(&self, from: &str, to: &str, packet: &Datagram) -> Vec<u8> {
        framed(packet, self.mac(from), self.mac(to))
    }

    /// A UDP datagram with the intent's mark, from port 40000.
    #[must_use]
    pub fn datagram(&self, ends: (&str, &str), ipv6: bool, port: u16, intent: Intent) -> Datagram {
        self.packet(ends.0, ends.1, ipv6, udp([40_000, port], intent.mark()))
    }

    /// A TCP SYN with the intent's mark, from port 40000.
    #[must_use]
    pub fn syn(&self, ends: (&str, &str), ipv6: bool, port: u16, intent: Intent) -> Datagram {
        self.packet(ends.0, ends.1, ipv6, tcp([40_000, port], 2, intent.mark()))
    }
}

/// The unspecified address of a family.
#[must_use]
pub fn unspecified(ipv6: bool) -> IpAddr {
    if ipv6 { IpAddr::from([0_u16; 8]) } else { IpAddr::from([0_u8; 4]) }
}

/// A packet in a frame.
///
/// # Panics
/// If its addresses are of two families, or a length does not fit: a mistake in an attack.
#[must_use]
#[expect(clippy::expect_used, reason = "attacks are tables; one that is no packet must stop the test")]
pub fn framed(packet: &Datagram, source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
    packet.frame(source, destination).expect("an attack is a packet")
}

/// An echo request of the family, with a checksum that a receiver takes.
#[must_use]
pub fn echo_request(from: IpAddr, to: IpAddr, payload: &[u8]) -> Datagram {
    let message =
        |sum: [u8; 2]| [&[if from.is_ipv6() { 128 } else { 8 }, 0][..], &sum, &[0, 7, 0, 1], payload].concat();
    let unsummed = message([0, 0]);
    let pseudo = match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u32::try_from(unsummed.len()).unwrap_or_default().to_be_bytes();
            [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, 58]].concat()
        }
        _ => Vec::new(),
    };
    let sum = checksum(&[pseudo, unsummed].concat()).to_be_bytes();
    let protocol = if from.is_ipv6() { 58 } else { 1 };
    Datagram::new(from, to, Transport::Raw { protocol, bytes: message(sum) })
}
