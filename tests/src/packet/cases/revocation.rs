//! A policy change under open flows: what is no longer allowed stops with its next packet, whoever sends it, and what is
//! allowed notices nothing.

use anyhow::{Result, ensure};
use netpol_common::abi::{Direction, FlowState, FlowWord, Reason};

use super::case;
use crate::frame::datagram::flag::{ACK, PSH_ACK, RST, SYN, SYN_ACK};
use crate::packet::Case;
use crate::packet::cast::{DNS, Isolation, SHUT, WEB};
use crate::packet::kernel::flows::Place;
use crate::packet::play::{Play, Talk};

pub(super) const CASES: &[Case] = &[
    case!(an_allowed_flow_survives_every_new_revision),
    case!(the_client_is_quiet_while_its_server_pushes),
    case!(a_udp_server_that_pushes_is_stopped_too),
    case!(a_server_with_free_egress_does_not_become_the_opener),
    case!(a_revoked_flow_stays_closed_under_later_revisions),
    case!(a_newer_revision_that_allows_again_resumes_the_flow),
    case!(an_unanswered_flow_is_revoked_and_resumed_as_unanswered),
    case!(only_a_fresh_syn_that_policy_allows_opens_a_revoked_flow),
    case!(a_flow_out_is_judged_again_by_packets_in),
    case!(a_pod_that_becomes_isolated_keeps_only_what_is_allowed),
    case!(a_pod_that_is_freed_resumes_its_revoked_flows),
    case!(a_flow_of_the_node_is_never_judged_again),
    case!(a_picked_up_flow_is_revoked_like_any_other),
    case!(a_reset_of_a_revoked_flow_does_not_pass),
];

fn web_from_client(play: &mut Play<'_>) -> Result<Talk> {
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    play.gets(&talk.back(ACK), Reason::Established)?;
    Ok(talk)
}

fn an_allowed_flow_survives_every_new_revision(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = web_from_client(play)?;
    for _ in 0..3 {
        play.revise();
        play.sends(&talk.out(PSH_ACK), Reason::Reply)?;
        ensure!(play.flow()?.0.word.revision() == play.policy.revision());
        play.revise();
        play.gets(&talk.back(PSH_ACK), Reason::Established)?;
        ensure!(play.flow()?.0.word.revision() == play.policy.revision());
    }
    Ok(())
}

fn the_client_is_quiet_while_its_server_pushes(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = web_from_client(play)?;
    play.forbid_client(Direction::Ingress)?;
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.gets(&talk.back(ACK), Reason::FlowRevoked)
}

fn a_udp_server_that_pushes_is_stopped_too(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Ingress);
    let talk = play.udp_in(play.cast.client, DNS);
    play.gets(&talk.back(0), Reason::AllowedByPolicy)?;
    play.sends(&talk.out(0), Reason::Reply)?;
    play.forbid_client(Direction::Ingress)?;
    // Egress is free, and yet: it is the client's flow.
    play.sends(&talk.out(0), Reason::FlowRevoked)?;
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.sends(&talk.out(0), Reason::FlowRevoked)
}

fn a_server_with_free_egress_does_not_become_the_opener(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Ingress);
    let talk = web_from_client(play)?;
    play.forbid_client(Direction::Ingress)?;
    // Were the entry removed, this packet in mid-stream would open it anew with the roles swapped, and the next one pass.
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.gets(&talk.back(PSH_ACK), Reason::FlowRevoked)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.opener() == Direction::Ingress && flow.word.state() == FlowState::Revoked, "{flow:?}");
    Ok(())
}

fn a_revoked_flow_stays_closed_under_later_revisions(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Ingress);
    let talk = web_from_client(play)?;
    play.forbid_client(Direction::Ingress)?;
    for _ in 0..3 {
        play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
        play.revise();
        play.gets(&talk.back(ACK), Reason::FlowRevoked)?;
        play.revise();
    }
    Ok(())
}

fn a_newer_revision_that_allows_again_resumes_the_flow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = web_from_client(play)?;
    play.forbid_client(Direction::Ingress)?;
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.permit_client(Direction::Ingress)?;
    play.sends(&talk.out(PSH_ACK), Reason::Reply)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Established && place == Place::Answered, "{flow:?} {place:?}");
    play.gets(&talk.back(ACK), Reason::Established)
}

fn an_unanswered_flow_is_revoked_and_resumed_as_unanswered(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_in(play.cast.client, DNS);
    play.gets(&talk.back(0), Reason::AllowedByPolicy)?;
    play.forbid_client(Direction::Ingress)?;
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.sends(&talk.out(0), Reason::FlowRevoked)?;
    let (flow, place) = play.flow()?;
    ensure!(flow.word.state() == FlowState::Revoked && !flow.word.has(FlowWord::ANSWERED), "{flow:?}");
    ensure!(place == Place::Unanswered);
    play.permit_client(Direction::Ingress)?;
    play.gets(&talk.back(0), Reason::Established)?;
    ensure!(play.flow()?.0.word.state() == FlowState::Opening);
    play.sends(&talk.out(0), Reason::Reply)?;
    ensure!(play.flow()?.1 == Place::Answered);
    Ok(())
}

fn only_a_fresh_syn_that_policy_allows_opens_a_revoked_flow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Ingress);
    let talk = web_from_client(play)?;
    play.forbid_client(Direction::Ingress)?;
    play.gets(&talk.back(PSH_ACK), Reason::FlowRevoked)?;
    play.gets(&talk.back(SYN), Reason::PolicyDenied)?;
    play.gets(&talk.back(SYN_ACK), Reason::FlowRevoked)?;
    play.sends(&talk.out(SYN_ACK), Reason::FlowRevoked)?;
    // The server may open what is free to it: that is its own connection, with its own SYN.
    play.sends(&talk.out(SYN), Reason::NotIsolated)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.opener() == Direction::Egress, "{flow:?}");
    Ok(())
}

fn a_flow_out_is_judged_again_by_packets_in(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Egress);
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.forbid_client(Direction::Egress)?;
    // Ingress is free, and the peer sends first.
    play.gets(&talk.back(PSH_ACK), Reason::FlowRevoked)?;
    play.sends(&talk.out(ACK), Reason::FlowRevoked)
}

fn a_pod_that_becomes_isolated_keeps_only_what_is_allowed(play: &mut Play<'_>) -> Result<()> {
    let (good, bad) = (play.tcp_in(play.cast.client, WEB), play.tcp_in(play.cast.client, SHUT));
    let out = play.tcp_out(play.cast.stranger, SHUT);
    for talk in [good, bad] {
        play.gets(&talk.back(SYN), Reason::NotIsolated)?;
        play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    }
    play.sends(&out.out(SYN), Reason::NotIsolated)?;
    play.gets(&out.back(SYN_ACK), Reason::Reply)?;
    play.isolate(Isolation::Ingress);
    play.gets(&good.back(ACK), Reason::Established)?;
    play.gets(&bad.back(ACK), Reason::FlowRevoked)?;
    play.gets(&out.back(PSH_ACK), Reason::Reply)?;
    play.isolate(Isolation::Both);
    play.gets(&out.back(PSH_ACK), Reason::FlowRevoked)?;
    play.sends(&good.out(PSH_ACK), Reason::Reply)?;
    play.isolate(Isolation::DenyAll);
    play.sends(&good.out(PSH_ACK), Reason::FlowRevoked)
}

fn a_pod_that_is_freed_resumes_its_revoked_flows(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = web_from_client(play)?;
    play.isolate(Isolation::DenyAll);
    play.gets(&talk.back(PSH_ACK), Reason::FlowRevoked)?;
    play.isolate(Isolation::Free);
    play.gets(&talk.back(PSH_ACK), Reason::Established)?;
    // As answered as it was, though nobody answers now: it must not time out as a half-open one.
    ensure!(play.flow()?.0.word.state() == FlowState::Established);
    play.sends(&talk.out(PSH_ACK), Reason::Reply)
}

fn a_flow_of_the_node_is_never_judged_again(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Ingress);
    let probe = play.tcp_in(play.cast.node, SHUT);
    play.from_node_stack();
    play.gets(&probe.back(SYN), Reason::FromOwnNode)?;
    play.frame.from_host_stack = false;
    play.sends(&probe.out(SYN_ACK), Reason::Reply)?;
    play.isolate(Isolation::DenyAll);
    play.sends(&probe.out(PSH_ACK), Reason::Reply)?;
    play.from_node_stack();
    play.revise();
    play.gets(&probe.back(ACK), Reason::Established)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.has(FlowWord::EXEMPT) && flow.word.revision() == play.policy.revision(), "{flow:?}");
    Ok(())
}

fn a_picked_up_flow_is_revoked_like_any_other(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(PSH_ACK), Reason::PickedUp)?;
    play.forbid_client(Direction::Ingress)?;
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.gets(&talk.back(PSH_ACK), Reason::FlowRevoked)
}

fn a_reset_of_a_revoked_flow_does_not_pass(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = web_from_client(play)?;
    play.forbid_client(Direction::Ingress)?;
    play.gets(&talk.back(RST), Reason::FlowRevoked)?;
    play.sends(&talk.out(RST), Reason::FlowRevoked)?;
    ensure!(play.flow()?.0.word.state() == FlowState::Revoked);
    Ok(())
}
