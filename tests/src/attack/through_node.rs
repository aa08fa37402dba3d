//! Reaching a pod that policy denies by way of the node, or of another pod's address.

use std::net::IpAddr;

use super::cast::{BROADCAST, BYSTANDER, Cast, FAMILIES, GATEWAY_MAC, JAILED, MALLORY, SEALED, SHUT, framed, named};
use super::{Attack, Intent};
use crate::frame::datagram::Datagram;

/// All of them.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    FAMILIES.iter().flat_map(|&ipv6| [directly(cast, ipv6), sideways(cast, ipv6)].concat()).collect()
}

/// To the denied pod's address: its MAC address, the gateway's, with few hops left.
fn directly(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (what, through_gateway, hops) in [
        ("to the denied pod's MAC address", false, 64),
        ("to the gateway, which forwards", true, 64),
        ("to the gateway, with one hop to go", true, 2),
        ("to the denied pod's MAC address, with no hop to go", false, 1),
    ] {
        for from in [JAILED, MALLORY] {
            let what = named(&format!("{what}, from {from}"), ipv6);
            let attack = Attack::new(&what, from, BYSTANDER, |intent| {
                // Nothing may leave the jailed pod: its legal twin is a pod that nothing isolates.
                let from = intent.choose(from, MALLORY);
                let to = intent.choose(SEALED, BYSTANDER);
                let mac = if through_gateway { GATEWAY_MAC } else { cast.mac(to) };
                let syn = cast.syn((from, to), ipv6, SHUT, intent).hops(hops);
                let datagram = cast.datagram((from, to), ipv6, SHUT, intent).hops(hops);
                [syn, datagram].iter().map(|packet| framed(packet, cast.mac(from), mac)).collect()
            });
            // The node that forwards does get it.
            let attack = attack.legal_from(MALLORY).aims_at(SEALED);
            attacks.push(if from == JAILED {
                attack.refused_at_sender("policy-denied")
            } else {
                attack.refused_at(SEALED, "policy-denied")
            });
        }
    }
    attacks
}

/// In a frame for the denied pod, but to an address that is not its own; or in a frame for all.
fn sideways(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let group = if ipv6 { IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]) } else { IpAddr::from([224, 0, 0, 251]) };
    let group_mac = if ipv6 { [0x33, 0x33, 0, 0, 0, 0xfb] } else { [0x01, 0x00, 0x5e, 0, 0, 0xfb] };
    let to_group = |intent: Intent, mac: [u8; 6]| {
        let packet = cast.datagram((MALLORY, BYSTANDER), ipv6, SHUT, intent);
        vec![framed(&Datagram { destination: group, ..packet }, cast.mac(MALLORY), mac)]
    };
    let mut attacks = vec![
        Attack::new(
            &named("another pod's address in a frame for the denied pod", ipv6),
            MALLORY,
            BYSTANDER,
            |intent| {
                let packet = cast.datagram((MALLORY, BYSTANDER), ipv6, SHUT, intent);
                vec![cast.frame(MALLORY, intent.choose(SEALED, BYSTANDER), &packet)]
            },
        )
        .refused_at(SEALED, "unknown-destination"),
        Attack::new(&named("a group's address in a frame for the denied pod", ipv6), MALLORY, BYSTANDER, |intent| {
            to_group(intent, cast.mac(intent.choose(SEALED, BYSTANDER)))
        })
        .refused_at(SEALED, "policy-denied"),
        Attack::new(&named("a group's frame, to the denied pod too", ipv6), MALLORY, BYSTANDER, |intent| {
            to_group(intent, group_mac)
        })
        .aims_at(SEALED)
        .dropped(SEALED, "ingress", "policy-denied", 2),
    ];
    if !ipv6 {
        let attack = Attack::new("a broadcast, to the denied pod too", MALLORY, BYSTANDER, |intent| {
            let packet = cast.datagram((MALLORY, BYSTANDER), false, SHUT, intent);
            let packet = Datagram { destination: IpAddr::from([0xff; 4]), ..packet };
            vec![framed(&packet, cast.mac(MALLORY), BROADCAST)]
        });
        attacks.push(attack.aims_at(SEALED).dropped(SEALED, "ingress", "policy-denied", 2));
    }
    attacks
}
