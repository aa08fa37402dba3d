//! Below and beside IP: tags, other protocols, a family that the pod does not have, and a router's words.

use std::net::IpAddr;

use super::cast::{
    BROADCAST, BYSTANDER, Cast, FRIEND, JAILED, LEGACY, MALLORY, OPEN, VICTIM, framed, icmp, named, udp,
};
use super::{Attack, Intent};
use crate::frame::datagram::Datagram;

/// All of them.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    [tags(cast), other_protocols(cast), ipv6_without_an_address(cast), routers(cast)].concat()
}

/// VLAN tags that hide an IP packet, allowed or not.
fn tags(cast: &Cast) -> Vec<Attack> {
    let cases: [(&str, &[u8]); 4] = [
        ("a VLAN tag", &[0x81, 0x00, 0, 5]),
        ("a priority tag", &[0x81, 0x00, 0, 0]),
        ("a service tag", &[0x88, 0xa8, 0, 5]),
        ("two tags", &[0x88, 0xa8, 0, 5, 0x81, 0x00, 0, 6]),
    ];
    let mut attacks = Vec::new();
    for from in [JAILED, MALLORY] {
        for (what, tag) in cases {
            for ipv6 in super::cast::FAMILIES {
                let what = named(&format!("{what}, from {from}"), ipv6);
                let attack = Attack::new(&what, from, VICTIM, |intent| {
                    let mut frame = cast.frame(from, VICTIM, &cast.datagram((from, VICTIM), ipv6, OPEN, intent));
                    if intent == Intent::Evil {
                        frame.splice(12..12, tag.iter().copied());
                    }
                    vec![frame]
                });
                attacks.push(attack.refused_at_sender("vlan-tagged"));
            }
        }
    }
    attacks
}

/// Frames that are neither IP nor ARP: from the isolated pod to anybody, from anybody to an isolated pod.
fn other_protocols(cast: &Cast) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (what, ether_type) in [
        ("an LLC frame", 40_u16),
        ("an Ethernet loopback frame", 0x9000),
        ("an MPLS frame", 0x8847),
        ("a PPPoE frame", 0x8864),
        ("an LLDP frame", 0x88cc),
        ("a frame of a local experiment", 0x88b5),
    ] {
        let frame = |from: &str, to: [u8; 6], intent: Intent| {
            // LLC: SNAP with an IPv4 packet in it, as some systems would take apart.
            let packet = cast.datagram((from, VICTIM), false, OPEN, intent).bytes().unwrap_or_default();
            let snap: &[u8] = if ether_type < 1536 { &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0] } else { &[] };
            vec![[&to[..], &cast.mac(from), &ether_type.to_be_bytes(), snap, &packet].concat()]
        };
        for to in [cast.mac(BYSTANDER), BROADCAST] {
            let name = format!("{what} from an isolated pod{}", if to == BROADCAST { ", to all" } else { "" });
            let attack =
                Attack::new(&name, JAILED, BYSTANDER, |intent| frame(intent.choose(JAILED, MALLORY), to, intent));
            attacks.push(attack.legal_from(MALLORY).refused_at_sender("unsupported-ethertype"));
        }
        let attack = Attack::new(&format!("{what} to an isolated pod"), MALLORY, BYSTANDER, |intent| {
            frame(MALLORY, cast.mac(intent.choose(VICTIM, BYSTANDER)), intent)
        });
        attacks.push(attack.refused_at(VICTIM, "unsupported-ethertype"));
    }
    attacks
}

/// IPv6 from a pod without an IPv6 address: only its link-local one is its own.
fn ipv6_without_an_address(cast: &Cast) -> Vec<Attack> {
    let invented = IpAddr::from([0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x99]);
    let sources = [
        ("an invented IPv6 address", invented),
        ("a friend's IPv6 address", cast.address(FRIEND, true)),
        ("a friend's link-local address", cast.link_local(FRIEND)),
    ];
    let attack = |(what, source): (&str, IpAddr)| {
        Attack::new(&format!("{what} from a pod that has IPv4 only"), LEGACY, VICTIM, |intent| {
            let source = intent.choose(source, cast.link_local(LEGACY));
            let packet = Datagram::new(source, cast.address(VICTIM, true), udp([40_000, OPEN], intent.mark()));
            vec![cast.frame(LEGACY, VICTIM, &packet)]
        })
        .refused_at_sender("spoofed-address")
    };
    sources.into_iter().map(attack).collect()
}

/// Router advertisements and redirects. Of the same form: a router solicitation, an echo request.
fn routers(cast: &Cast) -> Vec<Attack> {
    let mut attacks = Vec::new();
    let all = (IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]), [0x33, 0x33, 0, 0, 0, 1]);
    let one = (cast.address(BYSTANDER, true), cast.mac(BYSTANDER));
    for (what, kind, hops) in [
        ("a router advertisement", 134, 255),
        ("a redirect", 137, 255),
        ("a router advertisement that was forwarded", 134, 64),
    ] {
        for (whom, to) in [("to all", all), ("to one", one)] {
            for extension in [false, true] {
                let behind = if extension { ", behind destination options" } else { "" };
                let attack = Attack::new(&format!("{what} {whom}{behind}"), MALLORY, BYSTANDER, |intent| {
                    let body = [&[64, 0, 7, 8][..], &[0; 8], intent.mark()].concat();
                    let message = icmp(intent.choose(kind, 133), 0, &body);
                    let hops = intent.choose(hops, 255);
                    let mut packet = Datagram::new(cast.link_local(MALLORY), to.0, message).hops(hops);
                    if extension {
                        packet = packet.extension(60, &[0, 1, 4, 0, 0, 0, 0]);
                    }
                    vec![framed(&packet, cast.mac(MALLORY), to.1)]
                });
                attacks.push(attack.refused_at_sender("router-message"));
            }
        }
    }
    for (what, kind) in [("a redirect (IPv4)", 5), ("a router advertisement (IPv4)", 9)] {
        let attack = Attack::new(what, MALLORY, BYSTANDER, |intent| {
            let body = [&[10, 244, 1, 11][..], &[0; 8], intent.mark()].concat();
            let packet = cast.packet(MALLORY, BYSTANDER, false, icmp(intent.choose(kind, 8), 0, &body));
            vec![cast.frame(MALLORY, BYSTANDER, &packet)]
        });
        attacks.push(attack.refused_at_sender("router-message"));
    }
    attacks
}
