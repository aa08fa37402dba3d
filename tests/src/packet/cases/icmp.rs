//! ICMP: echo has flows, errors belong to the flow that they quote, and nothing else is an answer.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use netpol_common::abi::{AllowValue, Direction, EndpointFlags, Reason};

use super::case;
use crate::frame::datagram::flag::{PSH_ACK, SYN, SYN_ACK};
use crate::frame::datagram::{Datagram, Transport};
use crate::packet::Case;
use crate::packet::cast::{DNS, Family, INGRESS_POLICY, Isolation, SHUT, WEB};
use crate::packet::play::{Play, Talk};

pub(super) const CASES: &[Case] = &[
    case!(echo_is_judged_by_the_rule_of_other_protocols),
    case!(an_echo_reply_answers_its_request_and_no_other),
    case!(an_echo_reply_that_nobody_asked_for_opens_nothing),
    case!(identifier_zero_is_no_wildcard),
    case!(only_echo_has_flows),
    case!(an_error_about_a_live_flow_reaches_its_sender),
    case!(an_error_of_the_pod_about_what_it_got_may_leave),
    case!(an_error_about_an_unknown_flow_is_judged_by_policy),
    case!(an_error_that_does_not_go_to_the_quoted_source_is_unrelated),
    case!(a_pod_may_not_speak_of_somebody_elses_flow),
    case!(an_error_about_a_dead_or_revoked_flow_is_unrelated),
    case!(an_error_whose_quote_is_cut_or_odd_is_unrelated),
    case!(an_error_in_fragments_is_unrelated),
    case!(an_error_about_an_echo_is_related),
    case!(an_error_about_another_pods_packet_is_unrelated),
    case!(a_redirect_is_no_error, only(&Family::ONLY_V4)),
];

/// Types of the errors that quote a packet.
pub(super) fn error_types(play: &Play<'_>) -> &'static [u8] {
    if play.is_v4() { &[3, 11, 12] } else { &[1, 2, 3, 4] }
}

fn echo(source: IpAddr, destination: IpAddr, reply: bool, id: u16) -> Datagram {
    Datagram::new(source, destination, Transport::Echo { reply, id })
}

/// An error of `kind` that quotes the first bytes of `quoted`.
pub(super) fn error(
    source: IpAddr,
    destination: IpAddr,
    kind: u8,
    quoted: &Datagram,
    bytes: usize,
) -> Result<Datagram> {
    let mut body = vec![0; 4];
    body.extend(quoted.bytes().context("no such packet")?.iter().take(bytes));
    Ok(Datagram::new(source, destination, Transport::Icmp { kind, code: 1, body }))
}

fn other_is_denied_in(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.allow(INGRESS_POLICY, Some(AllowValue { tcp: 1, udp: 1, sctp: 1, other: 0 }))
}

fn echo_is_judged_by_the_rule_of_other_protocols(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let (pod, client, stranger) = (play.cast.pod, play.cast.client, play.cast.stranger);
    play.gets(&echo(client, pod, false, 7), Reason::AllowedByPolicy)?;
    play.sends(&echo(pod, client, true, 7), Reason::Reply)?;
    play.sends(&echo(pod, client, false, 8), Reason::AllowedByPolicy)?;
    play.gets(&echo(client, pod, true, 8), Reason::Reply)?;
    play.gets(&echo(stranger, pod, false, 7), Reason::PolicyDenied)?;
    play.sends(&echo(pod, stranger, false, 7), Reason::PolicyDenied)?;
    play.gets(&echo(play.cast.block, pod, false, 7), Reason::PolicyDenied)
}

fn an_echo_reply_answers_its_request_and_no_other(play: &mut Play<'_>) -> Result<()> {
    other_is_denied_in(play)?;
    let (pod, client) = (play.cast.pod, play.cast.client);
    play.sends(&echo(pod, client, false, 7), Reason::AllowedByPolicy)?;
    play.sends(&echo(pod, client, false, 7), Reason::Established)?;
    play.gets(&echo(client, pod, true, 8), Reason::PolicyDenied)?;
    play.gets(&echo(play.cast.stranger, pod, true, 7), Reason::PolicyDenied)?;
    play.gets(&echo(client, pod, false, 7), Reason::PolicyDenied)?;
    play.gets(&echo(client, pod, true, 7), Reason::Reply)?;
    play.seconds_pass(190)?;
    play.gets(&echo(client, pod, true, 7), Reason::PolicyDenied)
}

fn an_echo_reply_that_nobody_asked_for_opens_nothing(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let (pod, client) = (play.cast.pod, play.cast.client);
    play.gets(&echo(client, pod, true, 7), Reason::AllowedByPolicy)?;
    play.sends(&echo(pod, client, true, 7), Reason::AllowedByPolicy)?;
    play.has_no_flow()?;
    play.gets(&echo(play.cast.stranger, pod, true, 7), Reason::PolicyDenied)
}

fn identifier_zero_is_no_wildcard(play: &mut Play<'_>) -> Result<()> {
    other_is_denied_in(play)?;
    let (pod, client) = (play.cast.pod, play.cast.client);
    play.sends(&echo(pod, client, false, 0), Reason::AllowedByPolicy)?;
    play.gets(&echo(client, pod, false, 0), Reason::PolicyDenied)?;
    for kind in [3, 5, 9, 13, 1, 4, 137, 144] {
        // Types that mean different things to the families; none of them answers an echo.
        let message = Transport::Icmp { kind, code: 0, body: vec![0; 20] };
        play.gets(&Datagram::new(client, pod, message), Reason::PolicyDenied)?;
    }
    play.gets(&echo(client, pod, true, 0), Reason::Reply)?;
    // The asker's own reply is not its request.
    play.sends(&echo(pod, client, true, 0), Reason::AllowedByPolicy)?;
    play.sends(&echo(pod, client, false, 0), Reason::Established)
}

fn only_echo_has_flows(play: &mut Play<'_>) -> Result<()> {
    other_is_denied_in(play)?;
    let (pod, client) = (play.cast.pod, play.cast.client);
    let (ask, answer) = if play.is_v4() { (13, 14) } else { (139, 140) };
    let message = |kind| Transport::Icmp { kind, code: 0, body: vec![0; 16] };
    play.sends(&Datagram::new(pod, client, message(ask)), Reason::AllowedByPolicy)?;
    play.has_no_flow()?;
    play.gets(&Datagram::new(client, pod, message(answer)), Reason::PolicyDenied)
}

fn an_error_about_a_live_flow_reaches_its_sender(play: &mut Play<'_>) -> Result<()> {
    other_is_denied_in(play)?;
    let (pod, router) = (play.cast.pod, play.cast.stranger);
    let opened = play.udp_out(play.cast.client, DNS);
    play.sends(&opened.out(0), Reason::AllowedByPolicy)?;
    let served = play.tcp_in(play.cast.client, WEB);
    play.gets(&served.back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&served.out(SYN_ACK), Reason::Reply)?;
    for &kind in error_types(play) {
        play.gets(&error(router, pod, kind, &opened.out(0), 1000)?, Reason::RelatedIcmp)?;
        // Eight bytes behind the IP header are all that is promised.
        let shortest = if play.is_v4() { 28 } else { 48 };
        play.gets(&error(router, pod, kind, &served.out(PSH_ACK), shortest)?, Reason::RelatedIcmp)?;
        play.gets(&error(play.cast.client, pod, kind, &opened.out(0), 1000)?, Reason::RelatedIcmp)?;
    }
    Ok(())
}

fn an_error_of_the_pod_about_what_it_got_may_leave(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.forbid_client(Direction::Egress)?;
    let talk = play.udp_in(play.cast.client, DNS);
    play.gets(&talk.back(0), Reason::AllowedByPolicy)?;
    for &kind in error_types(play) {
        play.sends(&error(play.cast.pod, play.cast.client, kind, &talk.back(0), 1000)?, Reason::RelatedIcmp)?;
        play.sends(&error(play.cast.pod, play.cast.stranger, kind, &talk.back(0), 1000)?, Reason::PolicyDenied)?;
    }
    Ok(())
}

fn an_error_about_an_unknown_flow_is_judged_by_policy(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let known = play.udp_out(play.cast.client, DNS);
    play.sends(&known.out(0), Reason::AllowedByPolicy)?;
    let unknown = play.talk(play.cast.client, 17, 40_001, DNS);
    for &kind in error_types(play) {
        play.gets(&error(play.cast.stranger, play.cast.pod, kind, &unknown.out(0), 1000)?, Reason::PolicyDenied)?;
        // The client may send anything that has no ports, so also this; it opens nothing.
        play.gets(&error(play.cast.client, play.cast.pod, kind, &unknown.out(0), 1000)?, Reason::AllowedByPolicy)?;
    }
    // The flow that is there, as if it had gone the other way.
    let kind = error_types(play).first().copied().context("a type")?;
    play.gets(&error(play.cast.stranger, play.cast.pod, kind, &known.back(0), 1000)?, Reason::PolicyDenied)?;
    play.flow().map(drop)
}

fn an_error_that_does_not_go_to_the_quoted_source_is_unrelated(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    let kind = error_types(play).first().copied().context("a type")?;
    // The pod sends errors about its own packets to whom it likes: to itself, or to a stranger.
    play.sends(&error(play.cast.pod, play.cast.stranger, kind, &talk.out(0), 1000)?, Reason::PolicyDenied)?;
    play.sends(&error(play.cast.pod, play.cast.stranger, kind, &talk.back(0), 1000)?, Reason::PolicyDenied)?;
    let mut forged = talk;
    forged.pod = play.cast.other_pod;
    play.gets(&error(play.cast.stranger, play.cast.pod, kind, &forged.out(0), 1000)?, Reason::PolicyDenied)
}

fn an_error_about_a_dead_or_revoked_flow_is_unrelated(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    let kind = error_types(play).first().copied().context("a type")?;
    let late = error(play.cast.stranger, play.cast.pod, kind, &talk.out(0), 1000)?;
    play.seconds_pass(20)?;
    play.gets(&late, Reason::RelatedIcmp)?;
    // An error keeps nothing alive.
    play.seconds_pass(20)?;
    play.gets(&late, Reason::PolicyDenied)?;
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&late, Reason::RelatedIcmp)?;
    play.forbid_client(Direction::Egress)?;
    // Judged again although no packet of the flow has come since.
    play.gets(&late, Reason::PolicyDenied)?;
    play.sends(&talk.out(0), Reason::FlowRevoked)?;
    play.gets(&late, Reason::PolicyDenied)
}

fn an_error_whose_quote_is_cut_or_odd_is_unrelated(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    let (router, pod) = (play.cast.stranger, play.cast.pod);
    let kind = error_types(play).first().copied().context("a type")?;
    let shortest = if play.is_v4() { 28 } else { 48 };
    for bytes in [0, 1, shortest / 2, shortest - 1] {
        play.gets(&error(router, pod, kind, &talk.out(0), bytes)?, Reason::PolicyDenied)?;
    }
    let later =
        Datagram { transport: Transport::Raw { protocol: 17, bytes: vec![0; 8] }, ..talk.out(0) }.fragment(1, 8, false);
    play.gets(&error(router, pod, kind, &later, 1000)?, Reason::PolicyDenied)?;
    let odd = if play.is_v4() { talk.out(0).options(&[1; 4]) } else { talk.out(0).extension(60, &[0; 7]) };
    play.gets(&error(router, pod, kind, &odd, 1000)?, Reason::PolicyDenied)?;
    // Zero bytes: no version that anybody speaks.
    let body = vec![0; 60];
    play.gets(&Datagram::new(router, pod, Transport::Icmp { kind, code: 0, body }), Reason::PolicyDenied)
}

fn an_error_in_fragments_is_unrelated(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    let kind = error_types(play).first().copied().context("a type")?;
    let whole = error(play.cast.stranger, play.cast.pod, kind, &talk.out(0), 1000)?;
    play.gets(&whole, Reason::RelatedIcmp)?;
    play.gets(&whole.fragment(9, 0, true), Reason::PolicyDenied)
}

fn an_error_about_an_echo_is_related(play: &mut Play<'_>) -> Result<()> {
    other_is_denied_in(play)?;
    let (pod, client, router) = (play.cast.pod, play.cast.client, play.cast.stranger);
    play.sends(&echo(pod, client, false, 7), Reason::AllowedByPolicy)?;
    let kind = error_types(play).first().copied().context("a type")?;
    play.gets(&error(router, pod, kind, &echo(pod, client, false, 7), 1000)?, Reason::RelatedIcmp)?;
    play.gets(&error(router, pod, kind, &echo(pod, client, false, 8), 1000)?, Reason::PolicyDenied)?;
    play.gets(&error(router, pod, kind, &echo(pod, client, true, 7), 1000)?, Reason::PolicyDenied)?;
    // An error about an error answers nothing.
    let about_error = error(pod, client, kind, &echo(pod, client, false, 7), 1000)?;
    play.gets(&error(router, pod, kind, &about_error, 1000)?, Reason::PolicyDenied)
}

fn an_error_about_another_pods_packet_is_unrelated(play: &mut Play<'_>) -> Result<()> {
    let kind = error_types(play).first().copied().context("a type")?;
    let talk = play.udp_out(play.cast.other_pod, SHUT);
    play.sends(&talk.out(0), Reason::NotIsolated)?;
    play.isolate(Isolation::Both);
    play.allow(crate::packet::cast::EGRESS_POLICY, None)?;
    let mut forged = talk;
    (forged.pod, forged.peer) = (talk.peer, talk.pod);
    play.gets(&error(play.cast.other_pod, play.cast.pod, kind, &forged.out(0), 1000)?, Reason::PolicyDenied)
}

fn a_redirect_is_no_error(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    for kind in [4, 5, 9, 10] {
        play.gets(&error(play.cast.stranger, play.cast.pod, kind, &talk.out(0), 1000)?, Reason::PolicyDenied)?;
    }
    Ok(())
}

fn a_pod_may_not_speak_of_somebody_elses_flow(play: &mut Play<'_>) -> Result<()> {
    let (pod, client, stranger) = (play.cast.pod, play.cast.client, play.cast.stranger);
    for isolation in [Isolation::Free, Isolation::Both] {
        play.isolate(isolation);
        for kind in error_types(play) {
            // The client has a flow with the stranger, and would take this for news of it.
            let theirs = Talk { pod: stranger, ..play.udp_in(client, DNS) }.back(0);
            play.sends(&error(pod, client, *kind, &theirs, 64)?, Reason::ForgedError)?;
        }
    }
    // What the pod was sent itself is its to complain of: related if it was let in, else judged.
    play.isolate(Isolation::Free);
    let own = play.udp_in(client, DNS).back(0);
    for kind in error_types(play) {
        play.sends(&error(pod, client, *kind, &own, 64)?, Reason::NotIsolated)?;
    }
    play.flag(EndpointFlags::ANY_SOURCE, true);
    let theirs = Talk { pod: stranger, ..play.udp_in(client, DNS) }.back(0);
    for kind in error_types(play) {
        play.sends(&error(pod, client, *kind, &theirs, 64)?, Reason::NotIsolated)?;
    }
    Ok(())
}
