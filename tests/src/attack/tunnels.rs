//! Packets within packets: what a node would take apart and send on as somebody else's.

use std::net::IpAddr;

use super::cast::{Cast, FRIEND, GATEWAY_MAC, GUARDED, MALLORY, OPEN, VICTIM, framed, named, tcp, udp};
use super::{Attack, Intent};
use crate::frame::datagram::{Datagram, Transport};
use crate::node::{NODE, OUTSIDE};

/// The VXLAN device's MAC address on the node, see `arena`.
const DEVICE_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
/// Flannel's port of VXLAN.
const VXLAN: u16 = 8472;

/// All of them.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    let mut attacks = vxlan(cast);
    for ipv6 in super::cast::FAMILIES {
        for destination in [NODE, "uplink"] {
            attacks.extend(ports(cast, ipv6, destination));
            attacks.extend(protocols(cast, ipv6, destination));
        }
    }
    attacks
}

/// A friend's packet to the guarded port (or another node's pod's to the open one), with the VXLAN header before it.
fn encapsulated(cast: &Cast, intent: Intent) -> Vec<u8> {
    let source = intent.choose(cast.address(FRIEND, false), IpAddr::from([10, 244, 2, 5]));
    let segment = tcp([40_000, intent.choose(GUARDED, OPEN)], 2, intent.mark());
    let inner = Datagram::new(source, cast.address(VICTIM, false), segment);
    // Flags: the network identifier is valid; it is 1.
    [&[8, 0, 0, 0, 0, 0, 1, 0][..], &framed(&inner, [0x0a, 0, 0, 0, 0, 2], DEVICE_MAC)].concat()
}

/// The real thing: a node with Flannel's device. What another node sends through it arrives, so the tunnel works.
fn vxlan(cast: &Cast) -> Vec<Attack> {
    let cases = [
        ("the node's address on the uplink", cast.address("uplink", false)),
        ("the node's address on the bridge", cast.address(NODE, false)),
        ("Flannel's own address", IpAddr::from([10, 244, 1, 0])),
    ];
    let mut attacks: Vec<Attack> = cases
        .into_iter()
        .map(|(what, to)| {
            Attack::new(&format!("VXLAN in a friend's name, to {what}"), MALLORY, VICTIM, |intent| {
                let outer = udp([40_000, VXLAN], &encapsulated(cast, intent));
                vec![match intent {
                    Intent::Evil => {
                        framed(&Datagram::new(cast.address(MALLORY, false), to, outer), cast.mac(MALLORY), GATEWAY_MAC)
                    }
                    Intent::Legal => {
                        let packet = cast.packet(OUTSIDE, "uplink", false, outer);
                        framed(&packet, cast.mac(OUTSIDE), cast.uplink())
                    }
                }]
            })
            .legal_from(OUTSIDE)
            .refused_at_sender("tunnel-from-pod")
        })
        .collect();
    let fragmented = Attack::new("VXLAN in a friend's name, in fragments", MALLORY, VICTIM, |intent| {
        let outer = udp([40_000, VXLAN], &encapsulated(cast, intent)).bytes(true);
        let part = |from: usize, to: usize| Transport::Raw {
            protocol: 17,
            bytes: outer.iter().skip(from).take(to - from).copied().collect(),
        };
        let ends = intent.choose((MALLORY, "uplink"), (OUTSIDE, "uplink"));
        let macs = intent.choose((cast.mac(MALLORY), GATEWAY_MAC), (cast.mac(OUTSIDE), cast.uplink()));
        let packet = |part: Transport| cast.packet(ends.0, ends.1, false, part);
        [packet(part(0, 40)).fragment(900, 0, true), packet(part(40, outer.len())).fragment(900, 40, false)]
            .iter()
            .map(|packet| framed(packet, macs.0, macs.1))
            .collect()
    });
    // The later fragment passes, as nothing isolates the pod, and comes to nothing.
    let fragmented = fragmented.legal_from(OUTSIDE).aims_at(VICTIM);
    attacks.push(fragmented.dropped(MALLORY, "egress", "tunnel-from-pod", 1));
    attacks
}

/// Other tunnels over UDP. Of the same form: a datagram to a port that nobody takes for a tunnel.
fn ports(cast: &Cast, ipv6: bool, destination: &'static str) -> Vec<Attack> {
    [VXLAN, 4789, 8285]
        .into_iter()
        .map(|port| {
            let what = named(&format!("UDP {port} to {destination}"), ipv6);
            Attack::new(&what, MALLORY, NODE, |intent| {
                let payload = encapsulated(cast, intent);
                let packet =
                    cast.packet(MALLORY, destination, ipv6, udp([40_000, intent.choose(port, 9999)], &payload));
                vec![framed(&packet, cast.mac(MALLORY), GATEWAY_MAC)]
            })
            .refused_at_sender("tunnel-from-pod")
        })
        .collect()
}

/// IP in IP and GRE.
fn protocols(cast: &Cast, ipv6: bool, destination: &'static str) -> Vec<Attack> {
    [4, 41, 47]
        .into_iter()
        .map(|protocol| {
            let what = named(&format!("protocol {protocol} to {destination}"), ipv6);
            Attack::new(&what, MALLORY, NODE, |intent| {
                let inner = cast.syn((FRIEND, VICTIM), protocol == 41, GUARDED, intent).bytes().unwrap_or_default();
                let transport = match intent {
                    Intent::Evil if protocol == 47 => {
                        Transport::Raw { protocol, bytes: [&[0, 0, 8, 0][..], &inner].concat() }
                    }
                    Intent::Evil => Transport::Raw { protocol, bytes: inner },
                    Intent::Legal => udp([40_000, 9999], &inner),
                };
                vec![framed(&cast.packet(MALLORY, destination, ipv6, transport), cast.mac(MALLORY), GATEWAY_MAC)]
            })
            .refused_at_sender("tunnel-from-pod")
        })
        .collect()
}
