//! Pretending to be somebody else: addresses, MAC addresses, ARP and neighbour advertisements.

use std::net::IpAddr;

use super::cast::{
    BROADCAST, BYSTANDER, Cast, FAMILIES, FRIEND, GUARDED, MALLORY, OPEN, VICTIM, framed, icmp, named, unspecified,
};
use super::{Attack, Intent};
use crate::frame::datagram::Datagram;
use crate::node::{NODE, OUTSIDE};

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

/// All of them.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    let mut attacks: Vec<Attack> = FAMILIES.iter().flat_map(|&ipv6| addresses(cast, ipv6)).collect();
    attacks.extend(FAMILIES.iter().flat_map(|&ipv6| frames(cast, ipv6)));
    attacks.extend(arp(cast));
    attacks.extend(advertisements(cast));
    attacks
}

/// Another's source address in a frame of one's own.
fn addresses(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let mut sources = vec![
        ("a friend's source address", cast.address(FRIEND, ipv6)),
        ("the node's source address", cast.address(NODE, ipv6)),
        ("the uplink's source address", cast.address("uplink", ipv6)),
        ("an outside source address", cast.address(OUTSIDE, ipv6)),
        ("the victim's own source address", cast.address(VICTIM, ipv6)),
        ("no source address", unspecified(ipv6)),
    ];
    if ipv6 {
        sources.push(("a friend's link-local source address", cast.link_local(FRIEND)));
    }
    let mut attacks = Vec::new();
    for (what, source) in sources {
        for is_tcp in [true, false] {
            let transport = if is_tcp { "TCP" } else { "UDP" };
            let attack = Attack::new(&named(&format!("{what}, {transport}"), ipv6), MALLORY, VICTIM, |intent| {
                let port = intent.choose(GUARDED, OPEN);
                let ends = (MALLORY, VICTIM);
                let own =
                    if is_tcp { cast.syn(ends, ipv6, port, intent) } else { cast.datagram(ends, ipv6, port, intent) };
                let source = intent.choose(source, own.source);
                vec![cast.frame(MALLORY, VICTIM, &Datagram { source, ..own })]
            });
            attacks.push(attack.refused_at_sender("spoofed-address"));
        }
    }
    let fragments = Attack::new(&named("fragments with a friend's source address", ipv6), MALLORY, VICTIM, |intent| {
        let own = cast.datagram((MALLORY, VICTIM), ipv6, intent.choose(GUARDED, OPEN), intent);
        let source = intent.choose(cast.address(FRIEND, ipv6), own.source);
        let own = Datagram { source, ..own };
        let later = super::fragments::later(&own, intent);
        [own.fragment(77, 0, true), later.fragment(77, 16, false)]
            .iter()
            .map(|packet| cast.frame(MALLORY, VICTIM, packet))
            .collect()
    });
    attacks.push(fragments.refused_at_sender("spoofed-address"));
    attacks
}

/// Another's MAC address; a packet for one pod in a frame for all.
fn frames(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (what, own_address) in [("a friend's MAC address", true), ("a friend's MAC and source address", false)] {
        let attack = Attack::new(&named(what, ipv6), MALLORY, VICTIM, |intent| {
            let own = cast.syn((MALLORY, VICTIM), ipv6, intent.choose(GUARDED, OPEN), intent);
            let stolen = intent == Intent::Evil && !own_address;
            let source = if stolen { cast.address(FRIEND, ipv6) } else { own.source };
            let mac = cast.mac(intent.choose(FRIEND, MALLORY));
            vec![framed(&Datagram { source, ..own }, mac, cast.mac(VICTIM))]
        });
        attacks.push(attack.refused_at_sender("spoofed-mac"));
    }
    let multicast = if ipv6 { [0x33, 0x33, 0, 0, 0, 1] } else { [0x01, 0x00, 0x5e, 0, 0, 1] };
    for (what, to) in [("a broadcast frame", BROADCAST), ("a multicast frame", multicast)] {
        for port in [OPEN, GUARDED] {
            let what = named(&format!("a packet for port {port} of one pod in {what}"), ipv6);
            let attack = Attack::new(&what, MALLORY, VICTIM, |intent| {
                let packet = cast.syn((MALLORY, VICTIM), ipv6, intent.choose(port, OPEN), intent);
                vec![framed(&packet, cast.mac(MALLORY), intent.choose(to, cast.mac(VICTIM)))]
            });
            attacks.push(attack.refused_at_sender("unicast-in-multicast-frame"));
        }
    }
    attacks
}

/// An ARP frame of Mallory's that speaks for `sender`, with the intent's mark behind it.
fn arp_frame(cast: &Cast, operation: u8, sender: ([u8; 6], IpAddr), to: [u8; 6], intent: Intent) -> Vec<u8> {
    let four = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let target = if to == BROADCAST { [0; 6] } else { to };
    [
        &to[..],
        &cast.mac(MALLORY),
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation],
        &sender.0,
        &four(sender.1),
        &target,
        &four(cast.address(VICTIM, false)),
        intent.mark(),
    ]
    .concat()
}

fn arp(cast: &Cast) -> Vec<Attack> {
    let (own_mac, own) = (cast.mac(MALLORY), cast.address(MALLORY, false));
    let (friend_mac, friend) = (cast.mac(FRIEND), cast.address(FRIEND, false));
    let cases = [
        ("ARP reply in a friend's name", ARP_REPLY, (own_mac, friend), cast.mac(VICTIM)),
        ("ARP reply to all in a friend's name", ARP_REPLY, (own_mac, friend), BROADCAST),
        ("ARP request in a friend's name", ARP_REQUEST, (own_mac, friend), BROADCAST),
        ("ARP reply in the gateway's name", ARP_REPLY, (own_mac, cast.address(NODE, false)), cast.mac(VICTIM)),
        ("ARP reply that gives a friend's MAC address", ARP_REPLY, (friend_mac, own), cast.mac(VICTIM)),
        ("ARP reply of a friend's, whole", ARP_REPLY, (friend_mac, friend), cast.mac(VICTIM)),
    ];
    let attack = |(what, operation, sender, to)| {
        Attack::new(what, MALLORY, VICTIM, |intent| {
            vec![arp_frame(cast, operation, intent.choose(sender, (own_mac, own)), to, intent)]
        })
        .refused_at_sender("spoofed-neighbour")
    };
    cases.into_iter().map(attack).collect()
}

/// A neighbour advertisement of Mallory's (override, solicited or not) for `target`.
fn advertisement(cast: &Cast, source: IpAddr, target: IpAddr, to: (IpAddr, [u8; 6]), intent: Intent) -> Vec<u8> {
    let IpAddr::V6(target) = target else { return Vec::new() };
    let body = [&[0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &cast.mac(MALLORY), intent.mark()].concat();
    framed(&Datagram::new(source, to.0, icmp(136, 0, &body)).hops(255), cast.mac(MALLORY), to.1)
}

fn advertisements(cast: &Cast) -> Vec<Attack> {
    let one = (cast.address(VICTIM, true), cast.mac(VICTIM));
    let all = (IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]), [0x33, 0x33, 0, 0, 0, 1]);
    let own = cast.address(MALLORY, true);
    let friend = cast.address(FRIEND, true);
    let cases = [
        ("neighbour advertisement for a friend's address", friend, one, "spoofed-neighbour"),
        ("neighbour advertisement for a friend's address, to all", friend, all, "spoofed-neighbour"),
        ("neighbour advertisement for the gateway", cast.address(NODE, true), one, "spoofed-neighbour"),
        ("neighbour advertisement for a friend's link-local", cast.link_local(FRIEND), one, "spoofed-neighbour"),
    ];
    let mut attacks: Vec<Attack> = cases
        .into_iter()
        .map(|(what, target, to, reason)| {
            Attack::new(what, MALLORY, VICTIM, |intent| {
                vec![advertisement(cast, own, intent.choose(target, own), to, intent)]
            })
            .refused_at_sender(reason)
        })
        .collect();
    let from_friend = Attack::new("neighbour advertisement from a friend's address", MALLORY, BYSTANDER, |intent| {
        let to = (cast.address(BYSTANDER, true), cast.mac(BYSTANDER));
        vec![advertisement(cast, intent.choose(friend, own), intent.choose(friend, own), to, intent)]
    });
    attacks.push(from_friend.refused_at_sender("spoofed-address"));
    attacks
}
