//! Who is a reply: one look-up for both directions, near misses, a SYN against the opener, tables and promotion.

use anyhow::{Result, ensure};
use netpol_common::abi::{Direction, FlowState, FlowWord, Reason};

use super::case;
use crate::frame::datagram::flag::{ACK, FIN_ACK, PSH_ACK, RST, SYN, SYN_ACK};
use crate::packet::Case;
use crate::packet::cast::{self, DNS, Isolation, SHUT, SIP, WEB};
use crate::packet::kernel::flows::Place;
use crate::packet::play::{Play, Talk};

pub(super) const CASES: &[Case] = &[
    case!(one_entry_serves_both_directions),
    case!(a_reply_is_let_in_although_nothing_else_is),
    case!(a_near_miss_is_no_reply),
    case!(another_slot_is_no_licence),
    case!(a_tcp_flow_is_settled_when_its_opener_goes_on),
    case!(a_scan_settles_nothing),
    case!(any_other_flow_is_settled_by_its_first_reply),
    case!(a_syn_against_the_opener_is_a_new_flow),
    case!(a_port_is_used_again_on_a_closing_flow),
    case!(fins_of_both_sides_close_a_flow_and_one_does_not),
    case!(a_repeated_syn_of_the_opener_belongs_to_its_flow),
];

fn one_entry_serves_both_directions(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    for talk in [play.tcp_in(play.cast.client, WEB), play.talk(play.cast.client, 6, 40_000, WEB)] {
        let pod_opens = talk.peer_port == WEB;
        let (opening, answer) =
            if pod_opens { (talk.out(SYN), talk.back(SYN_ACK)) } else { (talk.back(SYN), talk.out(SYN_ACK)) };
        let (forth, back) =
            if pod_opens { (talk.out(PSH_ACK), talk.back(PSH_ACK)) } else { (talk.back(PSH_ACK), talk.out(PSH_ACK)) };
        if pod_opens {
            play.sends(&opening, Reason::AllowedByPolicy)?;
            play.gets(&answer, Reason::Reply)?;
            play.sends(&forth, Reason::Established)?;
            play.gets(&back, Reason::Reply)?;
        } else {
            play.gets(&opening, Reason::AllowedByPolicy)?;
            play.sends(&answer, Reason::Reply)?;
            play.gets(&forth, Reason::Established)?;
            play.sends(&back, Reason::Reply)?;
            let (flow, _) = play.flow()?;
            ensure!(
                flow.word.state() == FlowState::Established && flow.word.opener() == Direction::Ingress,
                "{flow:?}"
            );
        }
    }
    Ok(())
}

fn a_reply_is_let_in_although_nothing_else_is(play: &mut Play<'_>) -> Result<()> {
    // Ingress allows the client a few ports only; the pod's own port 40000 is none of them.
    play.isolate(Isolation::Both);
    for (protocol, port) in [(6, WEB), (17, DNS), (132, SIP), (50, 0)] {
        let talk = play.talk(play.cast.client, protocol, if port == 0 { 0 } else { 40_000 }, port);
        play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
        play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
        play.gets(&talk.back(PSH_ACK), Reason::Reply)?;
    }
    Ok(())
}

fn a_near_miss_is_no_reply(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    for miss in [
        Talk { peer_port: DNS + 1, ..talk },
        Talk { pod_port: talk.pod_port + 1, ..talk },
        Talk { peer: play.cast.stranger, ..talk },
        Talk { protocol: 6, ..talk },
        Talk { protocol: 132, ..talk },
        Talk { pod_port: DNS + 1, peer_port: talk.pod_port, ..talk },
    ] {
        play.gets(&miss.back(PSH_ACK), Reason::PolicyDenied)?;
    }
    play.gets(&talk.back(0), Reason::Reply)
}

fn another_slot_is_no_licence(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
    // The address has moved to another interface, whose pod never asked.
    let mut moved = cast::endpoint();
    moved.slot = cast::OTHER_SLOT;
    let (first, policy) = play.turn_to(moved, play.policy);
    play.gets(&talk.back(SYN_ACK), Reason::PolicyDenied)?;
    play.sends(&talk.out(ACK), Reason::PickedUp)?;
    play.turn_to(first, policy);
    play.gets(&talk.back(SYN_ACK), Reason::Reply)
}

fn a_tcp_flow_is_settled_when_its_opener_goes_on(play: &mut Play<'_>) -> Result<()> {
    // An answer costs a flood of SYNs nothing: it must not push out flows that are settled.
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    let (flow, place) = play.flow()?;
    let answered = flow.word.state() == FlowState::Established && flow.word.has(FlowWord::ANSWERED);
    ensure!(answered && place == Place::Unanswered, "{flow:?} {place:?}");
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    ensure!(play.flow()?.1 == Place::Unanswered);
    play.gets(&talk.back(ACK), Reason::Established)?;
    ensure!(play.flow()?.1 == Place::Answered);
    Ok(())
}

fn a_scan_settles_nothing(play: &mut Play<'_>) -> Result<()> {
    let talk = play.tcp_out(play.cast.stranger, SHUT);
    play.sends(&talk.out(SYN), Reason::NotIsolated)?;
    play.gets(&talk.back(RST | ACK), Reason::Reply)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Closing && place == Place::Unanswered, "{flow:?} {place:?}");
    // An open port, and the scanner hangs up.
    play.sends(&talk.out(SYN), Reason::NotIsolated)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.sends(&talk.out(RST), Reason::Established)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Closing && place == Place::Unanswered, "{flow:?} {place:?}");
    Ok(())
}

fn any_other_flow_is_settled_by_its_first_reply(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_in(play.cast.client, DNS);
    play.gets(&talk.back(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0), Reason::Established)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Opening && place == Place::Unanswered, "{flow:?} {place:?}");
    play.sends(&talk.out(0), Reason::Reply)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Established && place == Place::Answered, "{flow:?} {place:?}");
    Ok(())
}

fn a_syn_against_the_opener_is_a_new_flow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    // The pod's port is one that the client may not open, so a flow out must not let the client's SYN in.
    let talk = play.talk(play.cast.client, 6, SHUT, WEB);
    play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(SYN), Reason::PolicyDenied)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.gets(&talk.back(SYN), Reason::PolicyDenied)?;
    play.sends(&talk.out(ACK), Reason::Established)?;
    // Where both may open, the later one is the opener.
    let both = play.talk(play.cast.client, 6, WEB, WEB);
    play.sends(&both.out(SYN), Reason::AllowedByPolicy)?;
    play.gets(&both.back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&both.out(SYN_ACK), Reason::Reply)
}

fn a_port_is_used_again_on_a_closing_flow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    play.gets(&talk.back(ACK), Reason::Established)?;
    play.gets(&talk.back(RST), Reason::Established)?;
    ensure!(play.flow()?.0.word.state() == FlowState::Closing);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Opening && place == Place::Answered, "{flow:?} {place:?}");
    // And policy is asked: it no longer allows the port.
    play.gets(&talk.back(RST), Reason::Established)?;
    play.forbid_client(Direction::Ingress)?;
    play.gets(&talk.back(SYN), Reason::PolicyDenied)
}

fn fins_of_both_sides_close_a_flow_and_one_does_not(play: &mut Play<'_>) -> Result<()> {
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::NotIsolated)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.sends(&talk.out(FIN_ACK), Reason::Established)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Established && flow.word.has(FlowWord::FIN_OPENER), "{flow:?}");
    play.sends(&talk.out(FIN_ACK), Reason::Established)?;
    ensure!(play.flow()?.0.word.state() == FlowState::Established);
    play.gets(&talk.back(PSH_ACK), Reason::Reply)?;
    play.gets(&talk.back(FIN_ACK), Reason::Reply)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Closing && flow.word.has(FlowWord::FIN_BOTH), "{flow:?}");
    play.sends(&talk.out(ACK), Reason::Established)
}

fn a_repeated_syn_of_the_opener_belongs_to_its_flow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(SYN), Reason::Established)?;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    play.gets(&talk.back(SYN), Reason::Established)?;
    ensure!(play.flow()?.0.word.state() == FlowState::Established);
    Ok(())
}
