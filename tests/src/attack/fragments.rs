//! Fragments: too small, overlapping, of nothing, of what was denied; and the flood that lost its sender.

use super::cast::{Cast, FAMILIES, GUARDED, JAILED, MALLORY, OPEN, SEALED, SHUT, VICTIM, framed, named, tcp, udp};
use super::{Attack, Intent};
use crate::frame::datagram::{Datagram, Transport};

/// A later fragment of this datagram's, with the intent's mark in it: 24 bytes.
#[must_use]
pub fn later(first: &Datagram, intent: Intent) -> Datagram {
    let protocol = first.transport.number(first.source.is_ipv4());
    let bytes = [intent.mark(), &[0xaa; 8][..], &[0xbb; 8]].concat();
    Datagram { transport: Transport::Raw { protocol, bytes }, ..first.clone() }
}

/// The same packet with only the first bytes of what it carries, which take no mark.
fn first_bytes(packet: &Datagram, bytes: usize) -> Datagram {
    let is_v4 = packet.source.is_ipv4();
    let all = packet.transport.bytes(is_v4);
    let protocol = packet.transport.number(is_v4);
    Datagram { transport: Transport::Raw { protocol, bytes: all.into_iter().take(bytes).collect() }, ..packet.clone() }
}

/// What is refused where it is sent, whether or not the node puts fragments together.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    let mut serial = 1000;
    let mut attacks = Vec::new();
    for ipv6 in FAMILIES {
        attacks.extend(small(cast, ipv6, serial));
        attacks.extend(overlapping(cast, ipv6, serial + 100));
        attacks.extend(of_nothing(cast, ipv6, serial + 200));
        attacks.extend(of_denied(cast, ipv6, serial + 300));
        attacks.extend(flooded(cast, ipv6, serial + 400));
        serial += 1000;
    }
    attacks
}

/// What the receiver's side refuses when fragments travel as they were sent.
#[must_use]
pub fn attacks_on_receiver(cast: &Cast) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (ipv6, id) in FAMILIES.into_iter().zip([5000, 6000]) {
        let unknown =
            Attack::new(&named("a later fragment of nothing, to the victim", ipv6), MALLORY, VICTIM, |intent| {
                // Of a protocol that the victim lets nobody use.
                let mut frames = fragmented(cast, (MALLORY, VICTIM, ipv6), (OPEN, id), intent, intent == Intent::Legal);
                if intent == Intent::Evil {
                    let sctp = Transport::Raw { protocol: 132, bytes: Vec::new() };
                    let rest = later(&cast.packet(MALLORY, VICTIM, ipv6, sctp), intent).fragment(id, 16, false);
                    frames = vec![cast.frame(MALLORY, VICTIM, &rest)];
                }
                frames
            });
        attacks.push(unknown.dropped(VICTIM, "ingress", "fragment-without-first", 1));
        let denied = Attack::new(&named("fragments to a shut port, to the victim", ipv6), MALLORY, VICTIM, |intent| {
            fragmented(cast, (MALLORY, VICTIM, ipv6), (intent.choose(SHUT, OPEN), id + 2), intent, true)
        });
        let denied = denied.dropped(VICTIM, "ingress", "policy-denied", 1);
        attacks.push(denied.dropped(VICTIM, "ingress", "fragment-of-denied", 1));
    }
    attacks
}

/// What the receiver's side refuses when the node put the fragments together.
#[must_use]
pub fn attacks_on_receiver_reassembled(cast: &Cast) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (ipv6, id) in FAMILIES.into_iter().zip([7000, 8000]) {
        let denied = Attack::new(&named("fragments to a shut port, put together", ipv6), MALLORY, VICTIM, |intent| {
            fragmented(cast, (MALLORY, VICTIM, ipv6), (intent.choose(SHUT, OPEN), id), intent, true)
        });
        attacks.push(denied);
        let backwards = Attack::new(&named("the same, last fragment first", ipv6), MALLORY, VICTIM, |intent| {
            let port = intent.choose(SHUT, OPEN);
            let mut frames = fragmented(cast, (MALLORY, VICTIM, ipv6), (port, id + 2), intent, true);
            frames.reverse();
            frames
        });
        attacks.push(backwards);
    }
    attacks
}

/// A UDP datagram in two fragments, the second alone if `whole` is false. Evil and legal ones have their own number.
fn fragmented(
    cast: &Cast,
    (from, to, ipv6): (&str, &str, bool),
    (port, id): (u16, u32),
    intent: Intent,
    whole: bool,
) -> Vec<Vec<u8>> {
    let id = id + intent.choose(0, 1);
    // Eight bytes of header, the mark, and what the later fragment brings.
    let payload = [&intent.mark()[..], &[0; 24]].concat();
    let first = first_bytes(&cast.packet(from, to, ipv6, udp([40_000, port], &payload)), 16);
    let rest = later(&first, intent).fragment(id, 16, false);
    let first = first.fragment(id, 0, true);
    let packets = if whole { vec![first, rest] } else { vec![rest] };
    packets.iter().map(|packet| cast.frame(from, to, packet)).collect()
}

/// First fragments that do not hold their ports, or not the flags behind them.
fn small(cast: &Cast, ipv6: bool, id: u32) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (number, bytes) in (0..).zip([8_u16, 16]) {
        let what = named(&format!("a first fragment with {bytes} bytes of TCP"), ipv6);
        let attack = Attack::new(&what, MALLORY, VICTIM, |intent| {
            let syn = cast.packet(MALLORY, VICTIM, ipv6, tcp([40_000, OPEN], 2, intent.mark()));
            let bytes = intent.choose(bytes, 24);
            let id = id + 10 * number + intent.choose(0, 1);
            let first = first_bytes(&syn, usize::from(bytes)).fragment(id, 0, true);
            let rest = later(&syn, intent).fragment(id, bytes, false);
            vec![cast.frame(MALLORY, VICTIM, &first), cast.frame(MALLORY, VICTIM, &rest)]
        });
        attacks.push(attack.refused_at_sender("fragment-too-small"));
    }
    attacks
}

/// Fragments that would rewrite what was judged.
fn overlapping(cast: &Cast, ipv6: bool, id: u32) -> Vec<Attack> {
    let first = |id: u32| cast.packet(MALLORY, VICTIM, ipv6, tcp([40_000, OPEN], 2, &[0; 4])).fragment(id, 0, true);
    let mut attacks = Vec::new();
    for (number, offset) in (0..).zip([8, 16]) {
        let what = named(&format!("a fragment at {offset} that rewrites the TCP header"), ipv6);
        let attack = Attack::new(&what, MALLORY, VICTIM, |intent| {
            let id = id + 10 * number + intent.choose(0, 1);
            let rest = later(&first(id), intent).fragment(id, intent.choose(offset, 24), false);
            vec![cast.frame(MALLORY, VICTIM, &first(id)), cast.frame(MALLORY, VICTIM, &rest)]
        });
        attacks.push(attack.dropped(MALLORY, "egress", "fragment-too-small", 1));
    }
    if ipv6 {
        attacks.extend(hidden(cast, id + 30));
    }
    let again = Attack::new(&named("a second first fragment with another port", ipv6), JAILED, VICTIM, |intent| {
        let id = id + 50 + intent.choose(0, 1);
        let ends = (JAILED, VICTIM);
        let allowed = cast.packet(ends.0, ends.1, ipv6, udp([40_000, OPEN], &[0; 8])).fragment(id, 0, true);
        let other = cast.datagram(ends, ipv6, intent.choose(SHUT, OPEN), intent).fragment(id, 0, true);
        let rest = later(&allowed, intent).fragment(id, 16, false);
        let packets = intent.choose(vec![&allowed, &other, &rest], vec![&allowed, &rest]);
        packets.into_iter().map(|packet| cast.frame(ends.0, ends.1, packet)).collect()
    });
    let again = again.dropped(JAILED, "egress", "policy-denied", 1);
    attacks.push(again.dropped(JAILED, "egress", "fragment-of-denied", 1));
    attacks
}

/// The same where destination options are cut off with the TCP header, so that no later fragment says that it is TCP.
fn hidden(cast: &Cast, id: u32) -> Vec<Attack> {
    let first = |id: u32| {
        let segment = tcp([40_000, OPEN], 2, &[0; 228]).bytes(false);
        let bytes = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &segment].concat();
        cast.packet(MALLORY, VICTIM, true, Transport::Raw { protocol: 60, bytes }).fragment(id, 0, true)
    };
    [8, 16, 24]
        .into_iter()
        .zip((id..).step_by(2))
        .map(|(offset, id)| {
            let what = format!("a fragment at {offset} that rewrites the TCP header behind destination options");
            let attack = Attack::new(&what, MALLORY, VICTIM, |intent| {
                let id = id + intent.choose(0, 1);
                let rest = later(&first(id), intent).fragment(id, intent.choose(offset, 256), false);
                vec![cast.frame(MALLORY, VICTIM, &first(id)), cast.frame(MALLORY, VICTIM, &rest)]
            });
            attack.dropped(MALLORY, "egress", "fragment-too-small", 1)
        })
        .collect()
}

/// Later fragments whose first was never seen, or was that of another datagram.
fn of_nothing(cast: &Cast, ipv6: bool, id: u32) -> Vec<Attack> {
    let elsewhere = Attack::new(&named("a later fragment of what went elsewhere", ipv6), JAILED, VICTIM, |intent| {
        let id = id + 10 + intent.choose(0, 1);
        let first = cast.packet(JAILED, VICTIM, ipv6, udp([40_000, OPEN], &[0; 8]));
        let to = intent.choose(SEALED, VICTIM);
        let rest = Datagram { destination: cast.address(to, ipv6), ..later(&first, intent) };
        vec![
            cast.frame(JAILED, VICTIM, &first.fragment(id, 0, true)),
            cast.frame(JAILED, to, &rest.fragment(id, 16, false)),
        ]
    });
    let other_protocol = Attack::new(&named("a later fragment of another protocol", ipv6), JAILED, VICTIM, |intent| {
        let id = id + 20 + intent.choose(0, 1);
        let first = cast.packet(JAILED, VICTIM, ipv6, udp([40_000, OPEN], &[0; 8]));
        let other = cast.packet(JAILED, VICTIM, ipv6, Transport::Raw { protocol: 132, bytes: Vec::new() });
        let rest = later(intent.choose(&other, &first), intent);
        vec![
            cast.frame(JAILED, VICTIM, &first.fragment(id, 0, true)),
            cast.frame(JAILED, VICTIM, &rest.fragment(id, 16, false)),
        ]
    });
    [elsewhere, other_protocol].map(|attack| attack.dropped(JAILED, "egress", "fragment-without-first", 1)).to_vec()
}

fn of_denied(cast: &Cast, ipv6: bool, id: u32) -> Vec<Attack> {
    let attack = Attack::new(&named("fragments to a shut port", ipv6), JAILED, VICTIM, |intent| {
        fragmented(cast, (JAILED, VICTIM, ipv6), (intent.choose(SHUT, OPEN), id), intent, true)
    });
    let attack = attack.dropped(JAILED, "egress", "policy-denied", 1);
    vec![attack.dropped(JAILED, "egress", "fragment-of-denied", 1)]
}

/// Fragments for one pod in a frame for many: flooded, put together and cut again by the bridge's netfilter, they had lost
/// the interface they came from, and passed for the node's own.
fn flooded(cast: &Cast, ipv6: bool, id: u32) -> Vec<Attack> {
    let group = if ipv6 { [0x33, 0x33, 0, 0, 0, 1] } else { [0x01, 0x00, 0x5e, 0, 0, 1] };
    let mut attacks = Vec::new();
    for (number, port) in (0..).zip([GUARDED, SHUT, OPEN]) {
        let what = named(&format!("fragments for port {port} in a multicast frame"), ipv6);
        let attack = Attack::new(&what, MALLORY, VICTIM, |intent| {
            let port = intent.choose(port, OPEN);
            // Large enough to be cut again.
            let payload = [&intent.mark()[..], &[0; 1592]].concat();
            let whole = cast.packet(MALLORY, VICTIM, ipv6, udp([40_000, port], &payload));
            let id = id + 10 * number + intent.choose(0, 1);
            let bytes = whole.transport.bytes(!ipv6).split_off(1200);
            let rest = Datagram { transport: Transport::Raw { protocol: 17, bytes }, ..whole.clone() };
            let to = intent.choose(group, cast.mac(VICTIM));
            [first_bytes(&whole, 1200).fragment(id, 0, true), rest.fragment(id, 1200, false)]
                .iter()
                .map(|packet| framed(packet, cast.mac(MALLORY), to))
                .collect()
        });
        attacks.push(attack.refused_at_sender("unicast-in-multicast-frame"));
    }
    attacks
}
