//! Fragmented datagrams: later fragments go the way of the first, and none may rewrite what was judged.

use anyhow::Result;
use netpol_common::abi::{Direction, Reason};

use super::case;
use crate::frame::datagram::flag::SYN;
use crate::frame::datagram::{Datagram, Transport};
use crate::packet::Case;
use crate::packet::cast::{self, DNS, Family, Isolation, SHUT, SIP, WEB};
use crate::packet::play::Play;

pub(super) const CASES: &[Case] = &[
    case!(later_fragments_go_the_way_of_the_first),
    case!(fragments_of_a_reply_pass),
    case!(a_later_fragment_without_its_first_is_dropped_unless_nothing_isolates_the_pod),
    case!(a_later_fragment_may_come_first_where_its_peer_may_use_the_protocol),
    case!(a_later_fragment_of_another_datagram_is_no_part_of_it),
    case!(a_first_fragment_is_forgotten),
    case!(a_first_fragment_without_its_ports_is_dropped),
    case!(a_fragment_inside_the_tcp_header_is_dropped),
    case!(fragments_of_a_spoofed_source_are_dropped),
    case!(a_fragment_that_is_the_whole_datagram_is_judged_as_such),
    case!(destination_options_may_follow_the_fragment_header, only(&Family::ONLY_V6)),
    case!(a_fragment_where_destination_options_hide_the_tcp_header_is_dropped, only(&Family::ONLY_V6)),
    case!(the_revision_may_move_between_fragments),
];

/// The rest of a datagram whose first fragment was `first`.
pub(super) fn later(first: &Datagram, id: u32, offset: u16) -> Datagram {
    let protocol = first.transport.number(first.source.is_ipv4());
    let transport = Transport::Raw { protocol, bytes: vec![0xee; 24] };
    Datagram { transport, ..first.clone() }.fragment(id, offset, false)
}

fn cut(datagram: &Datagram, bytes: usize) -> Datagram {
    let is_v4 = datagram.source.is_ipv4();
    let all = datagram.transport.bytes(is_v4);
    let protocol = datagram.transport.number(is_v4);
    Datagram {
        transport: Transport::Raw { protocol, bytes: all.into_iter().take(bytes).collect() },
        ..datagram.clone()
    }
}

fn later_fragments_go_the_way_of_the_first(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let client = play.cast.client;
    for (id, (protocol, port)) in (1..).zip([(6, WEB), (17, DNS), (132, SIP), (1, 0), (58, 0), (50, 0)]) {
        let out = play.talk(client, protocol, 40_000, port).out(SYN);
        play.sends(&out.clone().fragment(id, 0, true), Reason::AllowedByPolicy)?;
        play.sends(&later(&out, id, 24), Reason::FragmentOfAllowed)?;
        play.sends(&later(&out, id, 1480), Reason::FragmentOfAllowed)?;
    }
    for (id, protocol) in (11..).zip([6, 17, 132]) {
        let back = play.talk(client, protocol, SHUT, 40_000).back(SYN);
        play.gets(&back.clone().fragment(id, 0, true), Reason::PolicyDenied)?;
        play.gets(&later(&back, id, 24), Reason::FragmentOfDenied)?;
    }
    let echo = Datagram::new(client, play.cast.pod, Transport::Echo { reply: false, id: 7 });
    play.gets(&echo.clone().fragment(20, 0, true), Reason::AllowedByPolicy)?;
    play.gets(&later(&echo, 20, 16), Reason::FragmentOfAllowed)
}

fn fragments_of_a_reply_pass(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0).fragment(5, 0, true), Reason::Reply)?;
    play.gets(&later(&talk.back(0), 5, 1480), Reason::FragmentOfAllowed)
}

fn a_later_fragment_without_its_first_is_dropped_unless_nothing_isolates_the_pod(play: &mut Play<'_>) -> Result<()> {
    let out = play.udp_out(play.cast.client, DNS).out(0);
    let back = play.udp_in(play.cast.client, DNS).back(0);
    play.sends(&later(&out, 1, 8), Reason::NotIsolated)?;
    play.gets(&later(&back, 1, 8), Reason::NotIsolated)?;
    play.isolate(Isolation::DenyAll);
    play.sends(&later(&out, 1, 8), Reason::FragmentWithoutFirst)?;
    play.gets(&later(&back, 1, 8), Reason::FragmentWithoutFirst)?;
    let (out, back) = (play.udp_out(play.cast.stranger, DNS).out(0), play.udp_in(play.cast.stranger, DNS).back(0));
    let ahead = |isolated| if isolated { Reason::FragmentWithoutFirst } else { Reason::FragmentAhead };
    for (isolation, egress, ingress) in
        [(Isolation::Ingress, false, true), (Isolation::Egress, true, false), (Isolation::Both, true, true)]
    {
        play.isolate(isolation);
        play.sends(&later(&out, 1, 8), ahead(egress))?;
        play.gets(&later(&back, 1, 8), ahead(ingress))?;
    }
    play.has_no_flow()
}

fn a_later_fragment_may_come_first_where_its_peer_may_use_the_protocol(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let (client, block) = (play.cast.client, play.cast.block);
    for protocol in [6, 17, 132] {
        play.sends(&later(&play.talk(client, protocol, 40_000, WEB).out(SYN), 1, 24), Reason::FragmentAhead)?;
        play.gets(&later(&play.talk(client, protocol, WEB, 40_000).back(SYN), 1, 24), Reason::FragmentAhead)?;
    }
    // The block may use TCP alone, and nobody may have the TCP header rewritten.
    play.sends(&later(&play.tcp_out(block, SHUT).out(SYN), 1, 24), Reason::FragmentAhead)?;
    play.sends(&later(&play.udp_out(block, DNS).out(0), 1, 24), Reason::FragmentWithoutFirst)?;
    play.sends(&later(&play.tcp_out(block, SHUT).out(SYN), 1, 16), Reason::FragmentTooSmall)?;
    // Its first one is judged as ever, and what comes after that goes its way.
    let shut = play.udp_out(client, SHUT).out(0);
    play.sends(&later(&shut, 9, 16), Reason::FragmentAhead)?;
    play.sends(&shut.clone().fragment(9, 0, true), Reason::PolicyDenied)?;
    play.sends(&later(&shut, 9, 24), Reason::FragmentOfDenied)?;
    // To the node and to services as whole datagrams.
    play.sends(&later(&play.udp_out(play.cast.node, DNS).out(0), 2, 24), Reason::ToOwnNode)?;
    play.sends(&later(&play.udp_out(play.cast.in_service_range, DNS).out(0), 2, 24), Reason::Deferred)
}

fn a_later_fragment_of_another_datagram_is_no_part_of_it(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let first = play.udp_in(play.cast.client, DNS).back(0);
    play.gets(&first.clone().fragment(1, 0, true), Reason::AllowedByPolicy)?;
    play.gets(&later(&first, 2, 16), Reason::FragmentAhead)?;
    let other_source = Datagram { source: play.cast.stranger, ..first.clone() };
    play.gets(&later(&other_source, 1, 16), Reason::FragmentWithoutFirst)?;
    let other_protocol = play.tcp_in(play.cast.client, WEB).back(SYN);
    play.gets(&later(&other_protocol, 1, 24), Reason::FragmentAhead)?;
    // The same datagram, as the other end would have it.
    let reversed = Datagram { source: first.destination, destination: first.source, ..first.clone() };
    play.sends(&later(&reversed, 1, 16), Reason::FragmentAhead)?;
    let mut moved = cast::endpoint();
    moved.slot = cast::OTHER_SLOT;
    let (pod, policy) = play.turn_to(moved, play.policy);
    play.gets(&later(&first, 1, 16), Reason::FragmentAhead)?;
    play.turn_to(pod, policy);
    play.gets(&later(&first, 1, 16), Reason::FragmentOfAllowed)
}

fn a_first_fragment_is_forgotten(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let first = play.udp_in(play.cast.client, DNS).back(0);
    play.gets(&first.clone().fragment(1, 0, true), Reason::AllowedByPolicy)?;
    play.seconds_pass(20)?;
    play.gets(&later(&first, 1, 16), Reason::FragmentOfAllowed)?;
    play.seconds_pass(20)?;
    play.gets(&later(&first, 1, 16), Reason::FragmentAhead)?;
    // The last word on a datagram counts.
    play.gets(&first.clone().fragment(1, 0, true), Reason::AllowedByPolicy)?;
    let denied = play.udp_in(play.cast.client, SHUT).back(0);
    play.gets(&denied.fragment(1, 0, true), Reason::PolicyDenied)?;
    play.gets(&later(&first, 1, 16), Reason::FragmentOfDenied)
}

fn a_first_fragment_without_its_ports_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let client = play.cast.client;
    let echo = Datagram::new(client, play.cast.pod, Transport::Echo { reply: false, id: 7 });
    let whole = [
        (play.talk(client, 6, WEB, 40_000).back(SYN), 20),
        (play.talk(client, 17, DNS, 40_000).back(0), 8),
        (play.talk(client, 132, SIP, 40_000).back(0), 12),
        (echo, 8),
    ];
    for isolation in [Isolation::Free, Isolation::Both] {
        play.isolate(isolation);
        for (id, (datagram, needed)) in (1..).zip(&whole) {
            for bytes in [0, 1, 4, needed - 1] {
                play.gets(&cut(datagram, bytes).fragment(id, 0, true), Reason::FragmentTooSmall)?;
            }
        }
    }
    play.has_no_flow()
}

fn a_fragment_inside_the_tcp_header_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let opening = [(Isolation::Free, 40_000, Reason::NotIsolated), (Isolation::Both, 40_001, Reason::AllowedByPolicy)];
    for (isolation, port, reason) in opening {
        play.isolate(isolation);
        let first = play.talk(play.cast.client, 6, WEB, port).back(SYN);
        play.gets(&first.clone().fragment(1, 0, true), reason)?;
        play.gets(&later(&first, 1, 8), Reason::FragmentTooSmall)?;
        play.gets(&later(&first, 1, 16), Reason::FragmentTooSmall)?;
        play.gets(&later(&first, 1, 24), Reason::FragmentOfAllowed)?;
    }
    Ok(())
}

fn fragments_of_a_spoofed_source_are_dropped(play: &mut Play<'_>) -> Result<()> {
    let mut talk = play.udp_out(play.cast.client, DNS);
    talk.pod = play.cast.other_pod;
    play.sends(&talk.out(0).fragment(1, 0, true), Reason::SpoofedAddress)?;
    play.sends(&later(&talk.out(0), 1, 16), Reason::SpoofedAddress)
}

fn a_fragment_that_is_the_whole_datagram_is_judged_as_such(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.gets(&play.udp_in(play.cast.client, DNS).back(0).fragment(1, 0, false), Reason::AllowedByPolicy)?;
    play.gets(&play.udp_in(play.cast.client, SHUT).back(0).fragment(2, 0, false), Reason::PolicyDenied)?;
    let first = play.udp_in(play.cast.client, DNS).back(0);
    play.gets(&later(&first, 1, 16), Reason::FragmentAhead)
}

fn destination_options_may_follow_the_fragment_header(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    for (id, port, reason, rest) in [
        (1, DNS, Reason::AllowedByPolicy, Reason::FragmentOfAllowed),
        (2, SHUT, Reason::PolicyDenied, Reason::FragmentOfDenied),
    ] {
        let udp = play.udp_in(play.cast.client, port).back(0);
        let bytes = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp.transport.bytes(false)].concat();
        let options = Datagram { transport: Transport::Raw { protocol: 60, bytes }, ..udp };
        play.gets(&options.clone().fragment(id, 0, true), reason)?;
        play.gets(&later(&options, id, 1224), rest)?;
    }
    Ok(())
}

/// As in a fragment inside the TCP header, when that lies behind headers which are cut off with it.
fn a_fragment_where_destination_options_hide_the_tcp_header_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let syn = play.talk(play.cast.client, 6, WEB, 40_000).back(SYN);
    let behind = |length: u8| {
        let mut bytes = vec![6, length];
        bytes.extend(vec![0; 6 + 8 * usize::from(length)]);
        bytes.extend(syn.transport.bytes(false));
        Datagram { transport: Transport::Raw { protocol: 60, bytes }, ..syn.clone() }
    };
    for isolation in [Isolation::Free, Isolation::Both] {
        play.isolate(isolation);
        // Eight bytes of options, then 236, at most.
        for (id, length) in [(1, 0), (2, 28)] {
            play.gets(
                &behind(length).fragment(id, 0, true),
                match (isolation, id) {
                    (Isolation::Free, 1) => Reason::NotIsolated,
                    _ => Reason::Established,
                },
            )?;
            for offset in [8, 24, 248] {
                play.gets(&later(&behind(length), id, offset), Reason::FragmentTooSmall)?;
            }
            play.gets(&later(&behind(length), id, 256), Reason::FragmentOfAllowed)?;
        }
        play.gets(&behind(29).fragment(3, 0, true), Reason::UnknownExtensionHeader)?;
    }
    Ok(())
}

fn the_revision_may_move_between_fragments(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let first = play.udp_in(play.cast.client, DNS).back(0);
    play.gets(&first.clone().fragment(1, 0, true), Reason::AllowedByPolicy)?;
    play.forbid_client(Direction::Ingress)?;
    play.gets(&later(&first, 1, 16), Reason::FragmentOfAllowed)?;
    play.gets(&first.clone().fragment(2, 0, true), Reason::FlowRevoked)?;
    play.gets(&later(&first, 2, 16), Reason::FragmentOfDenied)
}
