//! Services: deferred where the pod sends, judged on the backend where the packet leaves, and let back in by what was let
//! out.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netpol_common::abi::{AddressRole, Backend, Config, Direction, Endpoint, FlowWord, Hook, Reason, V4, V6};
use netpol_common::packet::Address as _;

use super::case;
use super::fragments::later;
use super::icmp::{error, error_types};
use crate::frame::datagram::flag::{ACK, PSH_ACK, SYN, SYN_ACK};
use crate::packet::Case;
use crate::packet::cast::{self, BRIDGE_MAC, DNS, INGRESS_POLICY, Isolation, OTHER_SLOT, SHUT, SLOT, WEB};
use crate::packet::play::{Play, Talk};

pub(super) const CASES: &[Case] = &[
    case!(egress_to_a_service_is_not_judged_by_its_address),
    case!(the_service_range_is_deferred_without_knowing_its_services),
    case!(a_reply_needs_a_backend_that_policy_allows),
    case!(a_backend_may_not_push_through_a_refused_connection),
    case!(a_revision_judges_the_backend_again),
    case!(a_pod_that_is_free_needs_no_backend),
    case!(the_nodes_own_stack_answers_for_a_service),
    case!(an_error_about_a_service_needs_a_backend_too),
    case!(fragments_meet_both_pods_policies),
    case!(both_pods_policies_judge_a_deferred_packet),
    case!(a_masquerade_does_not_hide_a_local_pod),
    case!(a_pod_reaches_itself_through_its_service),
    case!(a_node_port_is_deferred_where_own_node_traffic_is_judged, flags(Config::ENFORCE_OWN_NODE)),
    case!(a_flooded_copy_is_not_judged_for_its_sender),
];

/// An address of a service in the family.
pub(super) fn service(play: &mut Play<'_>) -> Result<IpAddr> {
    let address = play.cast.service;
    play.set_role(address, AddressRole::SERVICE)?;
    Ok(address)
}

/// Where a service led a flow.
pub(super) fn backend(address: IpAddr, protocol: u8, port: u16) -> Backend {
    let address = match address {
        IpAddr::V4(v4) => V4::from(v4).widen(),
        IpAddr::V6(v6) => V6::from(v6).widen(),
    };
    Backend { address, port, protocol, pad: 0 }
}

fn egress_to_a_service_is_not_judged_by_its_address(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    for isolation in [Isolation::DenyAll, Isolation::Both, Isolation::Free] {
        play.isolate(isolation);
        for talk in [play.tcp_out(service, SHUT), play.udp_out(service, SHUT), play.talk(service, 132, 1, SHUT)] {
            play.sends(&talk.out(SYN), Reason::Deferred)?;
            play.sends(&talk.out(PSH_ACK), Reason::Deferred)?;
        }
        // No flow, and judged where it leaves all the same.
        play.sends(&play.talk(service, 50, 0, 0).out(0), Reason::Deferred)?;
        play.sends(&play.tcp_out(service, 1).out(SYN_ACK), Reason::Deferred)?;
    }
    Ok(())
}

fn the_service_range_is_deferred_without_knowing_its_services(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    play.sends(&play.tcp_out(play.cast.in_service_range, WEB).out(SYN), Reason::Deferred)?;
    play.sends(&play.tcp_out(play.cast.service, WEB).out(SYN), Reason::PolicyDenied)
}

fn a_reply_needs_a_backend_that_policy_allows(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::Both);
    let (client, stranger) = (play.cast.client, play.cast.stranger);
    let talk = play.tcp_out(service, 80);
    play.sends(&talk.out(SYN), Reason::Deferred)?;
    play.gets(&talk.back(SYN_ACK), Reason::UnconfirmedReply)?;
    for (backend, expected) in [
        (backend(stranger, 6, WEB), Reason::UnconfirmedReply),
        (backend(client, 6, SHUT), Reason::UnconfirmedReply),
        (backend(client, 17, WEB), Reason::UnconfirmedReply),
        (backend(client, 6, WEB), Reason::Reply),
    ] {
        play.led_to(backend)?;
        play.gets(&talk.back(SYN_ACK), expected)?;
    }
    let (flow, _) = play.flow()?;
    ensure!(flow.word.has(FlowWord::DEFERRED | FlowWord::CONFIRMED | FlowWord::ANSWERED), "{flow:?}");
    play.sends(&talk.out(ACK), Reason::Deferred)?;
    // A near miss is no reply.
    play.gets(&Talk { peer_port: 81, ..talk }.back(PSH_ACK), Reason::PolicyDenied)?;
    play.gets(&Talk { peer: client, ..talk }.back(PSH_ACK), Reason::PolicyDenied)
}

fn a_backend_may_not_push_through_a_refused_connection(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::Both);
    let talk = play.udp_out(service, DNS);
    // Nothing is recorded, as the exit refused it; conntrack has the connection, and translates what the backend sends.
    play.sends(&talk.out(0), Reason::Deferred)?;
    for _ in 0..3 {
        play.gets(&talk.back(0), Reason::UnconfirmedReply)?;
    }
    // The pod's own packets are still led to whoever may have them.
    play.sends(&talk.out(0), Reason::Deferred)
}

fn a_revision_judges_the_backend_again(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::Both);
    let talk = play.udp_out(service, 1053);
    play.sends(&talk.out(0), Reason::Deferred)?;
    play.led_to(backend(play.cast.client, 17, DNS))?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.revise();
    play.gets(&talk.back(0), Reason::Reply)?;
    play.forbid_client(Direction::Egress)?;
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.sends(&talk.out(0), Reason::Deferred)?;
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.permit_client(Direction::Egress)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    // Led elsewhere within a revision: what was confirmed stays so until policy moves, as before the translation changed.
    play.led_to(backend(play.cast.stranger, 17, DNS))?;
    play.revise();
    play.gets(&talk.back(0), Reason::FlowRevoked)
}

fn a_pod_that_is_free_needs_no_backend(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::Ingress);
    let talk = play.udp_out(service, DNS);
    play.sends(&talk.out(0), Reason::Deferred)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    // Isolated later: nothing tells where it led, until the pod sends again.
    play.isolate(Isolation::Both);
    play.gets(&talk.back(0), Reason::FlowRevoked)?;
    play.led_to(backend(play.cast.client, 17, DNS))?;
    play.gets(&talk.back(0), Reason::Reply)
}

fn the_nodes_own_stack_answers_for_a_service(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::DenyAll);
    let talk = play.tcp_out(service, 443);
    play.sends(&talk.out(SYN), Reason::Deferred)?;
    play.from_node_stack();
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    // It opens nothing under that address, and a pod that pretends to be it carries a mark.
    play.gets(&play.tcp_in(service, WEB).back(SYN), Reason::PolicyDenied)?;
    play.deferred_by(OTHER_SLOT);
    play.gets(&talk.back(PSH_ACK), Reason::UnconfirmedReply)
}

fn an_error_about_a_service_needs_a_backend_too(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::DenyAll);
    let (pod, stranger) = (play.cast.pod, play.cast.stranger);
    let talk = play.udp_out(service, DNS);
    play.sends(&talk.out(0), Reason::Deferred)?;
    for kind in error_types(play) {
        // The pod would reach a backend that it may not with what it quotes.
        play.sends(&error(pod, service, *kind, &talk.back(0), 64)?, Reason::Deferred)?;
        play.gets(&error(stranger, pod, *kind, &talk.out(0), 64)?, Reason::PolicyDenied)?;
    }
    play.isolate(Isolation::Both);
    play.sends(&talk.out(0), Reason::Deferred)?;
    play.led_to(backend(play.cast.client, 17, DNS))?;
    for kind in error_types(play) {
        play.gets(&error(stranger, pod, *kind, &talk.out(0), 64)?, Reason::RelatedIcmp)?;
        play.sends(&error(pod, service, *kind, &talk.back(0), 64)?, Reason::RelatedIcmp)?;
    }
    Ok(())
}

/// A local pod of another slot that the policies let in like the client, under its own policy.
fn other_sends(play: &mut Play<'_>, policy: Isolation) -> Result<Endpoint> {
    play.set_identity(play.cast.other_pod, cast::CLIENT_IDENTITY)?;
    play.set_identity(play.cast.pod, cast::CLIENT_IDENTITY)?;
    let other = cast::other_endpoint();
    play.set_sender(other, policy.word(77))?;
    play.deferred_by(OTHER_SLOT);
    Ok(other)
}

fn both_pods_policies_judge_a_deferred_packet(play: &mut Play<'_>) -> Result<()> {
    let other = play.cast.other_pod;
    other_sends(play, Isolation::Egress)?;
    play.isolate(Isolation::Ingress);
    play.gets(&play.tcp_in(other, WEB).back(SYN), Reason::AllowedByPolicy)?;
    ensure!(play.counted == [(OTHER_SLOT, Reason::AllowedAfterTranslation)], "not counted for its sender");
    play.gets(&play.tcp_in(other, WEB).back(PSH_ACK), Reason::Established)?;
    play.gets(&play.tcp_in(other, SHUT).back(SYN), Reason::DeniedAfterTranslation)?;
    let report = play.reports.last().context("a report")?;
    ensure!(report.slot == OTHER_SLOT && report.revision == 77 && report.direction == Direction::Egress, "{report:?}");
    // The sender may not any more: its next packet stops, though the receiver's flow lives.
    play.set_sender(cast::other_endpoint(), Isolation::DenyAll.word(78))?;
    play.gets(&play.tcp_in(other, WEB).back(PSH_ACK), Reason::DeniedAfterTranslation)?;
    // The receiver's own policy has its say as well.
    play.set_sender(cast::other_endpoint(), Isolation::Free.word(79))?;
    play.gets(&play.tcp_in(other, SHUT).back(SYN), Reason::PolicyDenied)?;
    let report = play.reports.last().context("a report")?;
    ensure!(report.slot == SLOT && report.policy == INGRESS_POLICY, "{report:?}");
    Ok(())
}

/// The rest of a datagram goes the way of its first part at each of the two judges.
fn fragments_meet_both_pods_policies(play: &mut Play<'_>) -> Result<()> {
    other_sends(play, Isolation::Egress)?;
    play.isolate(Isolation::Ingress);
    let other = play.cast.other_pod;
    for (id, port, first, rest) in [
        (1, DNS, Reason::AllowedByPolicy, Reason::FragmentOfAllowed),
        (2, SHUT, Reason::DeniedAfterTranslation, Reason::FragmentOfDenied),
    ] {
        let sent = play.udp_in(other, port).back(0);
        play.gets(&sent.clone().fragment(id, 0, true), first)?;
        play.gets(&later(&sent, id, 1480), rest)?;
    }
    ensure!(play.reports.last().context("a report")?.slot == OTHER_SLOT);
    // Let go by its sender, and not let in: a drop of the receiver's, of the rest as of the first part.
    play.set_sender(cast::other_endpoint(), Isolation::Free.word(78))?;
    let sent = play.udp_in(other, SHUT).back(0);
    for (part, reason) in
        [(sent.clone().fragment(3, 0, true), Reason::PolicyDenied), (later(&sent, 3, 1480), Reason::FragmentOfDenied)]
    {
        play.gets(&part, reason)?;
        ensure!(play.counted == [(OTHER_SLOT, Reason::AllowedAfterTranslation)], "{:?}", play.counted);
        ensure!(play.reports.last().context("a report")?.slot == SLOT);
    }
    Ok(())
}

fn a_masquerade_does_not_hide_a_local_pod(play: &mut Play<'_>) -> Result<()> {
    let node = play.cast.node;
    other_sends(play, Isolation::Free)?;
    play.isolate(Isolation::Ingress);
    let talk = play.tcp_in(node, WEB);
    play.gets(&talk.back(SYN), Reason::AllowedByPolicy)?;
    ensure!(play.flow()?.0.origin == OTHER_SLOT);
    play.frame.mark = 0;
    play.sends(&talk.out(SYN_ACK), Reason::Reply)?;
    // The node itself may, and a packet from elsewhere with the node's address may not.
    play.gets(&play.udp_in(node, DNS).back(0), Reason::PolicyDenied)?;
    play.deferred_by(OTHER_SLOT);
    play.gets(&talk.back(ACK), Reason::Established)?;
    play.revise();
    play.gets(&talk.back(ACK), Reason::Established)?;
    play.forbid_client(Direction::Ingress)?;
    play.frame.mark = 0;
    play.sends(&talk.out(PSH_ACK), Reason::FlowRevoked)?;
    play.deferred_by(OTHER_SLOT);
    play.gets(&talk.back(ACK), Reason::FlowRevoked)
}

fn a_pod_reaches_itself_through_its_service(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::DenyAll);
    let asks = play.tcp_out(service, 80);
    play.sends(&asks.out(SYN), Reason::Deferred)?;
    // Back at its own door, from the bridge's address, on the translated port.
    let hears = play.talk(play.cast.node, 6, WEB, 61_000);
    play.deferred_by(SLOT);
    play.gets(&hears.back(SYN), Reason::ToSelf)?;
    play.frame.mark = 0;
    play.sends(&hears.out(SYN_ACK), Reason::Reply)?;
    play.led_to(backend(play.cast.pod, 6, WEB))?;
    play.gets(&asks.back(SYN_ACK), Reason::Reply)?;
    play.revise();
    play.deferred_by(SLOT);
    play.gets(&hears.back(ACK), Reason::Established)?;
    play.frame.mark = 0;
    play.sends(&hears.out(PSH_ACK), Reason::Reply)?;
    play.gets(&asks.back(PSH_ACK), Reason::Reply)
}

fn a_node_port_is_deferred_where_own_node_traffic_is_judged(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let node = play.cast.node;
    play.set_node_port(6, 30_080)?;
    play.sends(&play.tcp_out(node, 30_080).out(SYN), Reason::Deferred)?;
    play.sends(&play.udp_out(node, 30_080).out(0), Reason::PolicyDenied)?;
    play.sends(&play.tcp_out(node, 30_081).out(SYN), Reason::PolicyDenied)
}

fn a_flooded_copy_is_not_judged_for_its_sender(play: &mut Play<'_>) -> Result<()> {
    other_sends(play, Isolation::DenyAll)?;
    let frame = play.tcp_in(play.cast.stranger, WEB).back(SYN).frame(BRIDGE_MAC, cast::OTHER_POD_MAC);
    play.passes(Hook::ToPod, &frame.context("no such packet")?, Reason::NotForThisPod)
}
