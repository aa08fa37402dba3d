//! How long an idle flow is a licence: expiry is seen at the look-up, by protocol and state.

use anyhow::{Result, ensure};
use netpol_common::abi::{Direction, Reason};

use super::case;
use crate::frame::datagram::flag::{ACK, PSH_ACK, RST, SYN, SYN_ACK};
use crate::packet::Case;
use crate::packet::cast::{DNS, Isolation, SIP, WEB};
use crate::packet::play::{Play, is_live};

pub(super) const CASES: &[Case] = &[
    case!(an_unanswered_syn_is_forgotten_after_two_minutes),
    case!(an_established_tcp_flow_lives_for_days),
    case!(a_closing_tcp_flow_lives_for_a_minute),
    case!(udp_lives_for_half_a_minute_unanswered_and_three_minutes_answered),
    case!(sctp_outlives_its_heartbeats),
    case!(packets_of_either_side_keep_a_flow_alive),
    case!(an_expired_entry_is_written_over_in_place),
    case!(a_revoked_flow_is_kept_as_long_as_a_live_one),
    case!(a_flow_survives_the_wrap_of_the_clock, host_only("nobody moves the kernel's clock")),
];

fn an_unanswered_syn_is_forgotten_after_two_minutes(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
    play.seconds_pass(110)?;
    ensure!(is_live(&play.host, 6, &play.flow()?.0));
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    let late = play.talk(play.cast.client, 6, 40_001, WEB);
    play.sends(&late.out(SYN), Reason::AllowedByPolicy)?;
    play.seconds_pass(130)?;
    play.gets(&late.back(SYN_ACK), Reason::PolicyDenied)
}

fn an_established_tcp_flow_lives_for_days(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.seconds_pass(431_000)?;
    play.gets(&talk.back(PSH_ACK), Reason::Reply)?;
    play.seconds_pass(433_000)?;
    play.gets(&talk.back(PSH_ACK), Reason::PolicyDenied)
}

fn a_closing_tcp_flow_lives_for_a_minute(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.sends(&talk.out(RST), Reason::Established)?;
    play.seconds_pass(50)?;
    play.gets(&talk.back(ACK), Reason::Reply)?;
    play.seconds_pass(70)?;
    play.gets(&talk.back(ACK), Reason::PolicyDenied)
}

fn udp_lives_for_half_a_minute_unanswered_and_three_minutes_answered(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.seconds_pass(40)?;
    play.gets(&talk.back(0), Reason::PolicyDenied)?;
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.seconds_pass(20)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.seconds_pass(170)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.seconds_pass(190)?;
    play.gets(&talk.back(0), Reason::PolicyDenied)
}

fn sctp_outlives_its_heartbeats(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.talk(play.cast.client, 132, 40_000, SIP);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.seconds_pass(200)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.seconds_pass(220)?;
    play.gets(&talk.back(0), Reason::PolicyDenied)
}

fn packets_of_either_side_keep_a_flow_alive(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    for _ in 0..3 {
        play.seconds_pass(150)?;
        play.gets(&talk.back(0), Reason::Reply)?;
        play.seconds_pass(150)?;
        play.sends(&talk.out(0), Reason::Established)?;
    }
    Ok(())
}

fn an_expired_entry_is_written_over_in_place(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    // Opened by the pod; long after, the client opens the same tuple.
    let talk = play.talk(play.cast.client, 17, DNS, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.seconds_pass(200)?;
    play.gets(&talk.back(0), Reason::AllowedByPolicy)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.opener() == Direction::Ingress, "{flow:?}");
    play.sends(&talk.out(0), Reason::Reply)
}

fn a_revoked_flow_is_kept_as_long_as_a_live_one(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Egress);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.forbid_client(Direction::Egress)?;
    for _ in 0..3 {
        // Each refused packet keeps it closed for as long again.
        play.gets(&talk.back(0), Reason::FlowRevoked)?;
        play.seconds_pass(170)?;
    }
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.seconds_pass(190)?;
    // Ingress is free: after the timeout it is the peer who opens.
    play.gets(&talk.back(0), Reason::NotIsolated)
}

fn a_flow_survives_the_wrap_of_the_clock(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.host.now.set(u32::MAX - 5);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::AllowedByPolicy)?;
    play.host.now.set(5);
    play.gets(&talk.back(0), Reason::Reply)?;
    play.host.now.set(5 + 200 * play.host.config.hz);
    play.gets(&talk.back(0), Reason::PolicyDenied)
}
