//! Headers that hide, shift or forge the ports: options, extension headers, padding, lengths, bytes that are not there.

use anyhow::{Context as _, Result, ensure};
use netpol_common::abi::{Config, EndpointFlags, Hook, Reason};

use super::case;
use crate::frame::datagram::flag::{ACK, SYN};
use crate::frame::datagram::{Datagram, Transport};
use crate::packet::Case;
use crate::packet::cast::{BRIDGE_MAC, DNS, Family, Isolation, POD_MAC, SHUT, WEB};
use crate::packet::play::Play;

pub(super) const CASES: &[Case] = &[
    case!(ipv4_options_do_not_shift_the_ports, only(&Family::ONLY_V4)),
    case!(every_option_up_to_the_last_is_looked_at, only(&Family::ONLY_V4)),
    case!(a_source_route_of_the_pod_is_dropped, only(&Family::ONLY_V4)),
    case!(an_option_without_a_length_is_malformed, only(&Family::ONLY_V4)),
    case!(a_header_that_contradicts_itself_is_malformed),
    case!(extension_headers_do_not_hide_the_ports, only(&Family::ONLY_V6)),
    case!(a_header_that_is_not_understood_is_dropped, only(&Family::ONLY_V6)),
    case!(six_extension_headers_are_enough, only(&Family::ONLY_V6)),
    case!(a_routing_header_with_segments_left_is_dropped, only(&Family::ONLY_V6)),
    case!(a_source_route_is_allowed_where_any_source_is, flags(Config::ANY_SOURCE)),
    case!(no_next_header_is_a_protocol_without_ports, only(&Family::ONLY_V6)),
    case!(padding_behind_the_datagram_does_not_pose_as_ports),
    case!(lengths_beyond_the_frame_are_truncated),
    case!(the_other_familys_icmp_is_any_protocol),
    case!(a_packet_cut_anywhere_is_dropped),
    case!(a_cut_chain_of_extension_headers_is_dropped, only(&Family::ONLY_V6)),
    case!(a_tcp_header_without_its_flags_is_truncated),
];

/// The Ethernet header of a frame to the pod.
fn ethernet(play: &Play<'_>) -> Vec<u8> {
    [&POD_MAC[..], &BRIDGE_MAC, &play.cast.family.ether_type().to_be_bytes()].concat()
}

fn frame_to_pod(datagram: &Datagram) -> Result<Vec<u8>> {
    datagram.frame(BRIDGE_MAC, POD_MAC).context("no such packet")
}

fn patch(frame: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    frame.get_mut(at..at + bytes.len()).context("a patch outside the frame")?.copy_from_slice(bytes);
    Ok(())
}

fn ipv4_options_do_not_shift_the_ports(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    for words in 1..=10 {
        // An unknown option that holds, again and again, what the ports would be if options were ignored.
        let mut options = vec![0x5e, words * 4, 0, 0];
        for _ in 1..words {
            options.extend(DNS.to_be_bytes());
            options.extend(DNS.to_be_bytes());
        }
        let good = play.talk(play.cast.client, 17, DNS, 40_000 + u16::from(words)).back(0);
        let bad = play.udp_in(play.cast.client, SHUT).back(0);
        play.gets(&good.options(&options), Reason::AllowedByPolicy)?;
        play.gets(&bad.options(&options), Reason::PolicyDenied)?;
    }
    Ok(())
}

fn every_option_up_to_the_last_is_looked_at(play: &mut Play<'_>) -> Result<()> {
    let udp = play.udp_out(play.cast.client, DNS).out(0);
    // 37 times "no operation", then a loose source route of three bytes.
    let options = [&[1; 37][..], &[131, 3, 4]].concat();
    play.sends(&udp.clone().options(&options), Reason::SourceRouted)?;
    // Behind the end of the list nobody looks.
    let options = [&[1; 35][..], &[0, 131, 3, 4, 0]].concat();
    play.sends(&udp.clone().options(&options), Reason::NotIsolated)?;
    // Nor inside another option.
    play.sends(&udp.clone().options(&[0x5e, 8, 131, 3, 4, 137, 3, 4]), Reason::Established)?;
    play.sends(&udp.options(&[1; 40]), Reason::Established)
}

fn a_source_route_of_the_pod_is_dropped(play: &mut Play<'_>) -> Result<()> {
    for kind in [131, 137] {
        let talk = play.udp_out(play.cast.client, DNS);
        let options = [kind, 7, 4, 10, 244, 2, 6, 0];
        play.sends(&talk.out(0).options(&options), Reason::SourceRouted)?;
        // Record route, security, timestamp, router alert: none of them routes.
        for other in [7, 130, 68, 148] {
            let mut harmless = options;
            harmless[0] = other;
            play.sends(
                &talk.out(0).options(&harmless),
                if other == 7 && kind == 131 { Reason::NotIsolated } else { Reason::Established },
            )?;
        }
        // Towards the pod it is judged like anything: the pod is the last hop.
        play.isolate(Isolation::Ingress);
        play.gets(&play.udp_in(play.cast.stranger, DNS).back(0).options(&options), Reason::PolicyDenied)?;
        play.isolate(Isolation::Free);
    }
    Ok(())
}

fn an_option_without_a_length_is_malformed(play: &mut Play<'_>) -> Result<()> {
    for length in [0, 1] {
        let options = [0x5e, length, 0, 0];
        play.sends(&play.udp_out(play.cast.client, DNS).out(0).options(&options), Reason::Malformed)?;
        play.gets(&play.udp_in(play.cast.client, DNS).back(0).options(&options), Reason::Malformed)?;
    }
    play.has_no_flow()
}

fn a_header_that_contradicts_itself_is_malformed(play: &mut Play<'_>) -> Result<()> {
    let whole = frame_to_pod(&play.udp_in(play.cast.client, DNS).back(0))?;
    let versions: &[u8] = if play.is_v4() { &[0x05, 0x55, 0x65, 0x44, 0x40, 0x4f] } else { &[0x00, 0x40, 0x50, 0x70] };
    for &version in versions {
        let mut frame = whole.clone();
        patch(&mut frame, 14, &[version])?;
        // 0x4f: options that would reach beyond the datagram.
        let reason = if version == 0x4f { Reason::Truncated } else { Reason::Malformed };
        play.passes(Hook::ToPod, &frame, reason)?;
    }
    play.has_no_flow()
}

fn extension_headers_do_not_hide_the_ports(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let chains: [&[(u8, &[u8])]; 9] = [
        &[(0, &[0, 1, 4, 0, 0, 0, 0])],
        &[(60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
        &[(43, &[0, 0, 0, 0, 0, 0, 0])],
        // Authentication: length in words, minus two; 24 bytes here.
        &[(51, &[4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])],
        // The shortest one: 12 bytes, which is not a multiple of eight.
        &[(51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])],
        &[(0, &[0, 1, 4, 0, 0, 0, 0]), (60, &[0, 1, 4, 0, 0, 0, 0])],
        &[(0, &[0, 1, 4, 0, 0, 0, 0]), (43, &[0, 0, 0, 0, 0, 0, 0]), (60, &[0, 1, 4, 0, 0, 0, 0])],
        &[(60, &[0; 7]), (60, &[0; 7]), (60, &[0; 7]), (60, &[0; 7])],
        &[(0, &[0; 7]), (51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]), (60, &[0; 7])],
    ];
    for (source_port, chain) in (41_000..).zip(chains) {
        for (port, reason) in [(WEB, Reason::AllowedByPolicy), (SHUT, Reason::PolicyDenied)] {
            let mut datagram = play.talk(play.cast.client, 6, port, source_port).back(SYN);
            for (number, rest) in chain {
                datagram = datagram.extension(*number, rest);
            }
            play.gets(&datagram, reason)?;
        }
    }
    Ok(())
}

fn a_header_that_is_not_understood_is_dropped(play: &mut Play<'_>) -> Result<()> {
    for isolation in [Isolation::Free, Isolation::Both] {
        play.isolate(isolation);
        for number in [135, 139, 140, 253, 254] {
            let datagram = play.udp_out(play.cast.client, DNS).out(0).extension(number, &[0; 7]);
            play.sends(&datagram, Reason::UnknownExtensionHeader)?;
            let behind = play.udp_in(play.cast.client, DNS).back(0).extension(0, &[0; 7]).extension(number, &[0; 7]);
            play.gets(&behind, Reason::UnknownExtensionHeader)?;
        }
    }
    play.has_no_flow()
}

fn six_extension_headers_are_enough(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let mut datagram = play.udp_in(play.cast.client, DNS).back(0);
    for _ in 0..6 {
        datagram = datagram.extension(60, &[0; 7]);
    }
    play.gets(&datagram, Reason::AllowedByPolicy)?;
    play.gets(&datagram.extension(60, &[0; 7]), Reason::UnknownExtensionHeader)
}

fn a_routing_header_with_segments_left_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let udp = play.udp_out(play.cast.client, DNS).out(0);
    for kind in [0, 2, 3, 4] {
        let mut rest = vec![2, kind, 1, 0, 0, 0, 0];
        rest.extend([0xfd; 16]);
        play.sends(&udp.clone().extension(43, &rest), Reason::SourceRouted)?;
        play.sends(&udp.clone().extension(60, &[0; 7]).extension(43, &rest), Reason::SourceRouted)?;
    }
    play.sends(&udp.extension(43, &[0, 4, 0, 0, 0, 0, 0]), Reason::NotIsolated)
}

fn a_source_route_is_allowed_where_any_source_is(play: &mut Play<'_>) -> Result<()> {
    let udp = play.udp_out(play.cast.client, DNS).out(0);
    let routed = if play.is_v4() { udp.options(&[131, 3, 4, 0]) } else { udp.extension(43, &[0, 0, 1, 0, 0, 0, 0]) };
    play.sends(&routed, Reason::NotIsolated)?;
    play.flag(EndpointFlags::ANY_SOURCE, true);
    play.sends(&routed, Reason::Established)
}

fn no_next_header_is_a_protocol_without_ports(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let nothing = |source| Datagram::new(source, play.cast.pod, Transport::Raw { protocol: 59, bytes: Vec::new() });
    let (client, stranger) = (nothing(play.cast.client), nothing(play.cast.stranger));
    play.gets(&client, Reason::AllowedByPolicy)?;
    play.gets(&stranger, Reason::PolicyDenied)?;
    play.gets(&stranger.extension(0, &[0; 7]), Reason::PolicyDenied)
}

fn padding_behind_the_datagram_does_not_pose_as_ports(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    for (protocol, port, needed) in [(6, WEB, 20), (17, DNS, 8), (132, 5060, 12)] {
        for bytes in [0, 2, 4, needed - 1] {
            let whole = play.talk(play.cast.client, protocol, port, 40_000).back(SYN);
            let transport = whole.transport.bytes(play.is_v4());
            let (short, padding) = transport.split_at_checked(bytes).context("a cut outside the transport")?;
            let transport = Transport::Raw { protocol, bytes: short.to_vec() };
            let mut frame = frame_to_pod(&Datagram { transport, ..whole })?;
            frame.extend(padding);
            play.passes(Hook::ToPod, &frame, Reason::Truncated)?;
        }
    }
    // Padding that is none of its business does not hurt.
    let mut frame = frame_to_pod(&play.udp_in(play.cast.client, DNS).back(0))?;
    frame.extend([0xff; 18]);
    play.passes(Hook::ToPod, &frame, Reason::AllowedByPolicy)
}

fn lengths_beyond_the_frame_are_truncated(play: &mut Play<'_>) -> Result<()> {
    let whole = frame_to_pod(&play.udp_in(play.cast.client, DNS).back(0))?;
    let at = if play.is_v4() { 16 } else { 18 };
    let length = u16::try_from(whole.len() - if play.is_v4() { 14 } else { 54 })?;
    for wrong in [length + 1, length + 100, u16::MAX] {
        let mut frame = whole.clone();
        patch(&mut frame, at, &wrong.to_be_bytes())?;
        play.passes(Hook::ToPod, &frame, Reason::Truncated)?;
    }
    if play.is_v4() {
        for wrong in [1, 19] {
            let mut frame = whole.clone();
            patch(&mut frame, at, &u16::to_be_bytes(wrong))?;
            play.passes(Hook::ToPod, &frame, Reason::Truncated)?;
        }
    }
    play.has_no_flow()
}

fn the_other_familys_icmp_is_any_protocol(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let protocol = if play.is_v4() { 58 } else { 1 };
    // Neighbour discovery, echo, errors of the other family mean nothing here.
    for kind in [0, 3, 8, 128, 134, 135, 136] {
        let bytes = vec![kind; 40];
        let message = Transport::Raw { protocol, bytes };
        play.sends(&Datagram::new(play.cast.pod, play.cast.stranger, message.clone()).hops(255), Reason::PolicyDenied)?;
        play.gets(&Datagram::new(play.cast.stranger, play.cast.pod, message).hops(255), Reason::PolicyDenied)?;
    }
    Ok(())
}

fn a_packet_cut_anywhere_is_dropped(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let client = play.cast.client;
    let echo = Transport::Echo { reply: false, id: 7 };
    let mut sent = vec![
        play.tcp_out(client, WEB).out(SYN),
        play.udp_out(client, DNS).out(0),
        play.talk(client, 132, 40_000, 5060).out(0),
        Datagram::new(play.cast.pod, client, echo),
    ];
    let plain = sent.clone();
    sent.extend(plain.iter().cloned().map(|it| it.fragment(1, 0, true)));
    sent.extend(plain.into_iter().map(|it| match it.source.is_ipv4() {
        true => it.options(&[1, 1, 0x5e, 6, 0, 0, 0, 0]),
        false => it.extension(0, &[0; 7]).extension(60, &[0; 7]),
    }));
    for datagram in sent {
        let got = Datagram { source: datagram.destination, destination: datagram.source, ..datagram.clone() };
        for (hook, whole) in [
            (Hook::FromPod, datagram.frame(POD_MAC, BRIDGE_MAC).context("no such packet")?),
            (Hook::ToPod, frame_to_pod(&got)?),
        ] {
            for length in 0..whole.len() {
                let cut = whole.get(..length).context("a cut")?;
                let reason = play.meets(hook, cut)?;
                ensure!(reason.is_drop(), "{hook:?}: the first {length} bytes of {datagram:x?} pass as {reason}");
            }
        }
    }
    play.has_no_flow()
}

fn a_cut_chain_of_extension_headers_is_dropped(play: &mut Play<'_>) -> Result<()> {
    for number in [0, 43, 44, 51, 60] {
        // The header says that it is longer than the packet.
        let bytes = vec![17, 200, 0, 0, 0, 0, 0, 0];
        let datagram = Datagram::new(play.cast.client, play.cast.pod, Transport::Raw { protocol: number, bytes });
        let whole = frame_to_pod(&datagram)?;
        for cut in [0, 1, 3, 8] {
            let mut frame = whole.get(..54 + cut).context("a cut")?.to_vec();
            patch(&mut frame, 18, &u16::try_from(cut)?.to_be_bytes())?;
            // A fragment header is always eight bytes long, so that nothing lies behind it: no UDP header either.
            play.passes(Hook::ToPod, &frame, Reason::Truncated)?;
        }
    }
    play.has_no_flow()
}

fn a_tcp_header_without_its_flags_is_truncated(play: &mut Play<'_>) -> Result<()> {
    let whole = frame_to_pod(&play.tcp_in(play.cast.client, WEB).back(ACK))?;
    let at = if play.is_v4() { 16 } else { 18 };
    let header = if play.is_v4() { 20 } else { 0 };
    let mut frame = whole;
    patch(&mut frame, at, &u16::to_be_bytes(header + 13))?;
    play.passes(Hook::ToPod, &frame, Reason::Truncated)?;
    ensure!(frame.starts_with(&ethernet(play)));
    play.has_no_flow()
}
