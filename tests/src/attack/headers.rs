//! Headers that hide the ports: options, extension headers, lengths and versions that lie, routes chosen by the sender.

use super::cast::{Cast, FAMILIES, JAILED, MALLORY, OPEN, SHUT, VICTIM, named};
use super::{Attack, Intent};
use crate::frame::datagram::Datagram;

/// Destination options, hop-by-hop options, routing header.
const DESTINATION_OPTIONS: u8 = 60;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;

/// All of them.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    let mut attacks = options(cast);
    attacks.extend(source_routes(cast));
    attacks.extend(extensions(cast));
    attacks.extend(routing_headers(cast));
    attacks.extend(unknown_extensions(cast));
    attacks.extend(FAMILIES.iter().flat_map(|&ipv6| lies(cast, ipv6)));
    attacks
}

/// An attack on a port that nobody may reach, once from the pod that may not send there and once from one that may.
fn on_a_shut_port(what: &str, cast: &Cast, ipv6: bool, form: impl Fn(Datagram, u16) -> Datagram) -> [Attack; 2] {
    [JAILED, MALLORY].map(|from| {
        let attack = Attack::new(&named(&format!("{what}, from {from}"), ipv6), from, VICTIM, |intent| {
            // The posing port is the other one: what must not pass looks allowed, what must looks denied.
            let (real, posing) = intent.choose((SHUT, OPEN), (OPEN, SHUT));
            let plain =
                [cast.syn((from, VICTIM), ipv6, real, intent), cast.datagram((from, VICTIM), ipv6, real, intent)];
            plain.map(|packet| cast.frame(from, VICTIM, &form(packet, posing))).to_vec()
        });
        if from == JAILED {
            attack.refused_at_sender("policy-denied")
        } else {
            attack.refused_at(VICTIM, "policy-denied")
        }
    })
}

/// IPv4 options whose bytes lie where ports usually are, and look like allowed ones.
fn options(cast: &Cast) -> Vec<Attack> {
    [4, 16, 40]
        .into_iter()
        .flat_map(|length| {
            on_a_shut_port(&format!("{length} bytes of options posing as ports"), cast, false, |packet, posing| {
                let [high, low] = posing.to_be_bytes();
                let mut bytes = vec![1, 1, high, low];
                bytes.resize(length, 0);
                packet.options(&bytes)
            })
        })
        .collect()
}

fn source_routes(cast: &Cast) -> Vec<Attack> {
    let route = |kind: u8| [kind, 7, 4, 10, 244, 1, 1, 1];
    let cases = [("loose source route", 131), ("strict source route", 137)];
    let plain = cases.map(|(what, kind)| {
        Attack::new(what, MALLORY, VICTIM, |intent| {
            // Record route has the same form and routes nothing.
            let packet = cast.syn((MALLORY, VICTIM), false, OPEN, intent).options(&route(intent.choose(kind, 7)));
            vec![cast.frame(MALLORY, VICTIM, &packet)]
        })
        .refused_at_sender("source-routed")
    });
    let behind = Attack::new("source route behind other options", MALLORY, VICTIM, |intent| {
        let options = [&[1, 1, 1, 148, 4, 0, 0][..], &route(intent.choose(131, 7)), &[1]].concat();
        vec![cast.frame(MALLORY, VICTIM, &cast.syn((MALLORY, VICTIM), false, OPEN, intent).options(&options))]
    });
    let mut attacks = plain.to_vec();
    attacks.push(behind.refused_at_sender("source-routed"));
    attacks
}

/// IPv6 headers before the transport's, whose bytes look like allowed ports.
fn extensions(cast: &Cast) -> Vec<Attack> {
    let padding = |posing: u16| {
        let [high, low] = posing.to_be_bytes();
        [0, 1, 4, high, low, high, low]
    };
    let mut attacks = Vec::new();
    attacks.extend(on_a_shut_port("hop-by-hop options posing as ports", cast, true, |packet, posing| {
        packet.extension(HOP_BY_HOP, &padding(posing))
    }));
    attacks.extend(on_a_shut_port("destination options posing as ports", cast, true, |packet, posing| {
        packet.extension(DESTINATION_OPTIONS, &padding(posing))
    }));
    attacks.extend(on_a_shut_port("destination options in place of ports", cast, true, |packet, posing| {
        let [high, low] = posing.to_be_bytes();
        packet.extension(DESTINATION_OPTIONS, &[0, high, low, 0, 0, 0, 0])
    }));
    attacks.extend(on_a_shut_port("an authentication header", cast, true, |packet, posing| {
        let [high, low] = posing.to_be_bytes();
        // Length 4 (in words, less two): 24 bytes.
        let mut rest = vec![4, 0, 0];
        rest.extend([high, low].repeat(10));
        packet.extension(51, &rest)
    }));
    attacks.extend(on_a_shut_port("six extension headers", cast, true, |packet, posing| {
        let first = packet.extension(HOP_BY_HOP, &padding(posing));
        (0..5).fold(first, |packet, _| packet.extension(DESTINATION_OPTIONS, &padding(posing)))
    }));
    attacks
}

fn routing_headers(cast: &Cast) -> Vec<Attack> {
    // Type 0 and SRv6's 4, with one address in them.
    [0_u8, 2, 3, 4]
        .into_iter()
        .map(|kind| {
            Attack::new(&format!("routing header of type {kind} with segments left"), MALLORY, VICTIM, |intent| {
                let rest = [&[2, kind, intent.choose(1, 0), 0, 0, 0, 0][..], &[0xfd; 16]].concat();
                let packet = cast.syn((MALLORY, VICTIM), true, OPEN, intent).extension(ROUTING, &rest);
                vec![cast.frame(MALLORY, VICTIM, &packet)]
            })
            .refused_at_sender("source-routed")
        })
        .collect()
}

fn unknown_extensions(cast: &Cast) -> Vec<Attack> {
    let padding = [0, 1, 4, 0, 0, 0, 0];
    let mut attacks = Vec::new();
    for number in [135, 139, 140, 253, 254] {
        let what = format!("extension header {number}, which hides the ports");
        let attack = Attack::new(&what, MALLORY, VICTIM, |intent| {
            let number = intent.choose(number, DESTINATION_OPTIONS);
            let packet = cast.syn((MALLORY, VICTIM), true, OPEN, intent).extension(number, &padding);
            vec![cast.frame(MALLORY, VICTIM, &packet)]
        });
        attacks.push(attack.refused_at_sender("unknown-extension-header"));
    }
    let many = Attack::new("more extension headers than are followed", MALLORY, VICTIM, |intent| {
        let packet = cast.syn((MALLORY, VICTIM), true, OPEN, intent);
        let headers = intent.choose(7, 6);
        let packet = (0..headers).fold(packet, |packet, _| packet.extension(DESTINATION_OPTIONS, &padding));
        vec![cast.frame(MALLORY, VICTIM, &packet)]
    });
    attacks.push(many.refused_at_sender("unknown-extension-header"));
    attacks
}

/// Fields that contradict what is there.
fn lies(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let honest = |intent: Intent| cast.frame(MALLORY, VICTIM, &cast.syn((MALLORY, VICTIM), ipv6, OPEN, intent));
    let cut = |length: u16| {
        move |intent: Intent, mut frame: Vec<u8>| {
            let at = if ipv6 { 18 } else { 16 };
            if intent == Intent::Evil {
                frame.splice(at..at + 2, length.to_be_bytes());
            }
            vec![frame]
        }
    };
    let headers_only: u16 = if ipv6 { 0 } else { 20 };
    let (into_ports, too_long) = (headers_only + 8, headers_only + 400);
    let mut attacks = Vec::new();
    for (what, length) in [
        ("ports in the padding behind the packet", headers_only),
        ("half a TCP header in the padding", into_ports),
        ("a packet longer than its frame", too_long),
    ] {
        let attack = Attack::new(&named(what, ipv6), MALLORY, VICTIM, |intent| cut(length)(intent, honest(intent)));
        attacks.push(attack.refused_at_sender("truncated"));
    }
    let version = Attack::new(&named("the other family's version number", ipv6), MALLORY, VICTIM, |intent| {
        let mut frame = honest(intent);
        if intent == Intent::Evil {
            frame.splice(14..15, [if ipv6 { 0x45 } else { 0x65 }]);
        }
        vec![frame]
    });
    attacks.push(version.refused_at_sender("malformed"));
    attacks
}
