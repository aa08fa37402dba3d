//! What opens a flow, and what policy says to it: identities, ports, protocols, directions.

use anyhow::{Result, ensure};
use netpol_common::abi::{AllowValue, Config, Direction, FlowState, FlowWord, POLICY_DENY, PortRule, Reason};

use super::case;
use crate::frame::datagram::flag::{ACK, FIN_ACK, PSH_ACK, RST, SYN, SYN_ACK};
use crate::packet::Case;
use crate::packet::cast::{Cast, DNS, INGRESS_POLICY, Isolation, SHUT, SIP, WEB};
use crate::packet::kernel::flows::Place;
use crate::packet::play::Play;

pub(super) const CASES: &[Case] = &[
    case!(a_pod_that_nothing_isolates_may_everything_and_its_flows_are_known),
    case!(a_syn_that_policy_allows_opens_an_unanswered_flow),
    case!(a_syn_that_policy_does_not_allow_leaves_nothing),
    case!(each_protocol_has_its_own_ports),
    case!(ports_at_both_ends_of_the_range_have_their_bits),
    case!(a_missing_port_set_allows_nothing),
    case!(egress_is_judged_by_the_peers_port),
    case!(a_block_is_asked_when_no_address_matches_and_the_narrowest_prefix_wins),
    case!(isolation_in_one_direction_leaves_the_other_free),
    case!(deny_all_denies_what_policies_would_allow),
    case!(other_protocols_have_no_ports_and_their_own_rule),
    case!(a_syn_ack_or_reset_opens_nothing_even_where_policy_allows),
    case!(a_packet_in_mid_stream_is_picked_up_where_policy_allows),
    case!(strict_mode_refuses_mid_stream, flags(Config::STRICT_TCP)),
    case!(new_flows_are_told_of_if_that_is_asked_for, flags(Config::TELL_ALLOWED | Config::TELL_UNPOLICED)),
    case!(a_full_table_cuts_nothing_that_policy_allows, host_only("an LRU makes room; it is never full")),
    case!(a_group_that_the_pod_listens_to_opens_no_flow),
];

fn a_pod_that_nothing_isolates_may_everything_and_its_flows_are_known(play: &mut Play<'_>) -> Result<()> {
    let talk = play.tcp_in(play.cast.stranger, SHUT);
    play.gets(&talk.back(SYN), Reason::NotIsolated)?;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    play.gets(&talk.back(ACK), Reason::Established)?;
    play.sends(&play.udp_out(play.cast.stranger, SHUT).out(0), Reason::NotIsolated)
}

fn a_syn_that_policy_allows_opens_an_unanswered_flow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    let (flow, place) = play.flow()?;
    let word = FlowWord::new(FlowState::Opening, Direction::Ingress, 0, play.policy.revision());
    ensure!(flow.word == word && place == Place::Unanswered, "{flow:?} {place:?}");
    play.gets(&talk.back(SYN), Reason::Established)
}

fn new_flows_are_told_of_if_that_is_asked_for(play: &mut Play<'_>) -> Result<()> {
    let talk = play.tcp_in(play.cast.stranger, SHUT);
    play.gets(&talk.back(SYN), Reason::NotIsolated)?;
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    play.gets(&talk.back(ACK), Reason::Established)?;
    play.gets(&play.tcp_in(play.cast.stranger, WEB).back(SYN), Reason::PolicyDenied)?;
    let told: Vec<(Reason, u16)> = play.reports.iter().map(|report| (report.reason, report.policy)).collect();
    let expected =
        [(Reason::NotIsolated, 0), (Reason::AllowedByPolicy, INGRESS_POLICY), (Reason::PolicyDenied, INGRESS_POLICY)];
    ensure!(told == expected, "{told:?}");
    Ok(())
}

fn a_syn_that_policy_does_not_allow_leaves_nothing(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.gets(&play.tcp_in(play.cast.client, SHUT).back(SYN), Reason::PolicyDenied)?;
    play.gets(&play.tcp_in(play.cast.stranger, WEB).back(SYN), Reason::PolicyDenied)?;
    play.sends(&play.tcp_out(play.cast.stranger, WEB).out(SYN), Reason::PolicyDenied)?;
    play.has_no_flow()
}

fn each_protocol_has_its_own_ports(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let client = play.cast.client;
    for (protocol, port) in [(6, WEB), (17, DNS), (132, SIP)] {
        for wanted in [WEB, DNS, SIP] {
            let reason = if wanted == port { Reason::AllowedByPolicy } else { Reason::PolicyDenied };
            play.gets(&play.talk(client, protocol, wanted, 50_000).back(SYN), reason)?;
            play.sends(&play.talk(client, protocol, 50_001, wanted).out(SYN), reason)?;
        }
    }
    Ok(())
}

fn ports_at_both_ends_of_the_range_have_their_bits(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.gets(&play.tcp_in(play.cast.client, u16::MAX).back(SYN), Reason::AllowedByPolicy)?;
    play.gets(&play.tcp_in(play.cast.client, u16::MAX - 1).back(SYN), Reason::PolicyDenied)?;
    play.gets(&play.tcp_in(play.cast.client, 0).back(SYN), Reason::PolicyDenied)?;
    play.gets(&play.tcp_in(play.cast.client, 9001).back(SYN), Reason::AllowedByPolicy)?;
    play.gets(&play.tcp_in(play.cast.client, 9002).back(SYN), Reason::PolicyDenied)
}

fn a_missing_port_set_allows_nothing(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    for set in [5, u16::MAX] {
        play.allow(INGRESS_POLICY, Some(AllowValue { tcp: PortRule::Set(set).encode(), ..AllowValue::default() }))?;
        play.gets(&play.tcp_in(play.cast.client, WEB).back(SYN), Reason::PolicyDenied)?;
    }
    Ok(())
}

fn egress_is_judged_by_the_peers_port(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.sends(&play.talk(play.cast.client, 6, WEB, SHUT).out(SYN), Reason::PolicyDenied)?;
    play.gets(&play.talk(play.cast.client, 6, SHUT, WEB).back(SYN), Reason::PolicyDenied)?;
    play.sends(&play.talk(play.cast.client, 6, SHUT, WEB).out(SYN), Reason::AllowedByPolicy)
}

fn a_block_is_asked_when_no_address_matches_and_the_narrowest_prefix_wins(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let Cast { block, excepted, .. } = play.cast;
    play.gets(&play.tcp_in(block, SHUT).back(SYN), Reason::AllowedByPolicy)?;
    play.sends(&play.tcp_out(block, SHUT).out(SYN), Reason::AllowedByPolicy)?;
    play.sends(&play.udp_out(block, DNS).out(0), Reason::PolicyDenied)?;
    play.gets(&play.tcp_in(excepted, SHUT).back(SYN), Reason::PolicyDenied)?;
    play.sends(&play.tcp_out(excepted, WEB).out(SYN), Reason::PolicyDenied)
}

fn isolation_in_one_direction_leaves_the_other_free(play: &mut Play<'_>) -> Result<()> {
    let stranger = play.cast.stranger;
    play.isolate(Isolation::Ingress);
    play.gets(&play.tcp_in(stranger, WEB).back(SYN), Reason::PolicyDenied)?;
    let out = play.tcp_out(stranger, SHUT);
    play.sends(&out.out(SYN), Reason::NotIsolated)?;
    play.gets(&out.back(SYN_ACK), Reason::Reply)?;
    play.isolate(Isolation::Egress);
    play.sends(&play.tcp_out(stranger, WEB).out(SYN), Reason::PolicyDenied)?;
    let back = play.tcp_in(stranger, SHUT);
    play.gets(&back.back(SYN), Reason::NotIsolated)?;
    play.sends(&back.out(SYN_ACK), Reason::Reply)
}

fn deny_all_denies_what_policies_would_allow(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    // No entry can be about this policy id.
    play.allow(POLICY_DENY, Some(AllowValue { tcp: 1, udp: 1, sctp: 1, other: 1 }))?;
    for protocol in [1, 2, 6, 17, 47, 58, 132] {
        play.gets(&play.talk(play.cast.client, protocol, WEB, 50_000).back(SYN), Reason::PolicyDenied)?;
        play.sends(&play.talk(play.cast.client, protocol, 50_000, WEB).out(SYN), Reason::PolicyDenied)?;
    }
    play.has_no_flow()
}

fn other_protocols_have_no_ports_and_their_own_rule(play: &mut Play<'_>) -> Result<()> {
    const ESP: u8 = 50;
    play.isolate(Isolation::Both);
    let talk = play.talk(play.cast.client, ESP, 0, 0);
    play.gets(&talk.back(0), Reason::AllowedByPolicy)?;
    play.sends(&talk.out(0), Reason::Reply)?;
    let value = AllowValue { tcp: 1, udp: 1, sctp: 1, other: 0 };
    play.allow(INGRESS_POLICY, Some(value))?;
    play.revise();
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.gets(&play.talk(play.cast.client, ESP + 2, 0, 0).back(0), Reason::PolicyDenied)?;
    play.gets(&play.talk(play.cast.client, 132, SHUT, 1).back(0), Reason::AllowedByPolicy)
}

fn a_syn_ack_or_reset_opens_nothing_even_where_policy_allows(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    for flags in [SYN_ACK, RST, RST | ACK, SYN_ACK | RST] {
        play.gets(&talk.back(flags), Reason::AllowedByPolicy)?;
    }
    play.has_no_flow()?;
    let denied = play.tcp_out(play.cast.stranger, SHUT);
    for flags in [SYN_ACK, RST, ACK, FIN_ACK] {
        play.gets(&denied.back(flags), Reason::PolicyDenied)?;
        play.sends(&denied.out(flags), Reason::PolicyDenied)?;
    }
    play.has_no_flow()
}

fn a_packet_in_mid_stream_is_picked_up_where_policy_allows(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(PSH_ACK), Reason::PickedUp)?;
    let (flow, _) = play.flow()?;
    ensure!(flow.word.has(FlowWord::PICKED_UP) && flow.word.opener() == Direction::Ingress, "{flow:?}");
    play.sends(&talk.out(ACK), Reason::Reply)?;
    play.gets(&talk.back(PSH_ACK), Reason::Established)?;
    // No flags at all is no opening either.
    play.gets(&play.talk(play.cast.client, 6, WEB, 40_001).back(0), Reason::PickedUp)?;
    play.gets(&play.tcp_in(play.cast.stranger, WEB).back(PSH_ACK), Reason::PolicyDenied)
}

fn strict_mode_refuses_mid_stream(play: &mut Play<'_>) -> Result<()> {
    let talk = play.tcp_in(play.cast.client, WEB);
    play.gets(&talk.back(PSH_ACK), Reason::PickedUp)?;
    play.isolate(Isolation::Ingress);
    play.gets(&talk.back(PSH_ACK), Reason::Established)?;
    let other = play.talk(play.cast.client, 6, WEB, 40_001);
    play.gets(&other.back(PSH_ACK), Reason::MidStream)?;
    // The free direction too: that is where roles would be swapped.
    play.sends(&other.out(PSH_ACK), Reason::MidStream)?;
    play.gets(&other.back(SYN), Reason::AllowedByPolicy)?;
    play.gets(&other.back(PSH_ACK), Reason::Established)
}

fn a_full_table_cuts_nothing_that_policy_allows(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    let known = play.tcp_in(play.cast.client, WEB);
    play.gets(&known.back(SYN), Reason::AllowedByPolicy)?;
    play.host.flows_full.set(true);
    play.gets(&play.talk(play.cast.client, 6, WEB, 40_001).back(SYN), Reason::FlowNotRecorded)?;
    play.gets(&play.tcp_in(play.cast.stranger, WEB).back(SYN), Reason::PolicyDenied)?;
    // Nor can it be promoted; it stays where it is and works.
    play.sends(&known.out(SYN_ACK), Reason::Reply)?;
    play.gets(&known.back(ACK), Reason::Established)?;
    let (flow, place) = play.flow()?;
    ensure!(place == Place::Unanswered && flow.word.has(FlowWord::ANSWERED), "{flow:?} {place:?}");
    play.host.flows_full.set(false);
    play.gets(&known.back(ACK), Reason::Established)?;
    ensure!(play.flow()?.1 == Place::Answered);
    Ok(())
}

fn a_group_that_the_pod_listens_to_opens_no_flow(play: &mut Play<'_>) -> Result<()> {
    let mut talk = play.talk(play.cast.stranger, 17, 5353, 5353);
    talk.pod = play.cast.group;
    play.gets(&talk.back(0), Reason::NotIsolated)?;
    play.has_no_flow()?;
    play.isolate(Isolation::Ingress);
    play.gets(&talk.back(0), Reason::PolicyDenied)
}
