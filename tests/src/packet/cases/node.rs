//! The node and its pods: probes, the node's own services, tunnels, and interfaces of which nobody has said whose they are.

use anyhow::{Result, ensure};
use netpol_common::abi::{AddressRole, Config, Endpoint, EndpointFlags, Hook, Reason};

use super::case;
use crate::frame::datagram::flag::{ACK, PSH_ACK, RST, SYN, SYN_ACK};
use crate::frame::datagram::{Datagram, Transport};
use crate::packet::Case;
use crate::packet::cast::{BRIDGE_MAC, DNS, Isolation, POD_MAC, SHUT, SLOT, WEB};
use crate::packet::play::{FOREIGN_MARK, Play};

pub(super) const CASES: &[Case] = &[
    case!(the_node_reaches_its_own_pods),
    case!(only_all_three_conditions_make_a_packet_the_nodes),
    case!(a_mark_that_is_not_a_slot_does_not_matter),
    case!(a_reset_of_the_node_passes_and_opens_nothing),
    case!(a_pod_reaches_its_own_node),
    case!(a_pod_is_held_to_policy_towards_its_node_where_the_operator_says_so, flags(Config::ENFORCE_OWN_NODE)),
    case!(another_node_is_an_address_like_any_other),
    case!(a_tunnel_to_a_node_is_dropped_for_every_pod),
    case!(a_pending_pod_may_only_find_its_neighbours),
    case!(an_interface_that_nobody_registered_is_closed),
    case!(before_the_first_sync_everything_passes),
    case!(every_packet_of_a_pod_carries_its_slot),
];

fn the_node_reaches_its_own_pods(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let node = play.cast.node;
    play.from_node_stack();
    let (probe, ask) = (play.tcp_in(node, SHUT), play.udp_in(node, SHUT));
    play.gets(&probe.back(SYN), Reason::FromOwnNode)?;
    play.gets(&ask.back(0), Reason::FromOwnNode)?;
    play.frame.from_host_stack = false;
    play.sends(&probe.out(SYN_ACK), Reason::Reply)?;
    play.sends(&ask.out(0), Reason::Reply)?;
    play.from_node_stack();
    play.gets(&probe.back(PSH_ACK), Reason::Established)
}

fn only_all_three_conditions_make_a_packet_the_nodes(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    for from_host_stack in [true, false] {
        for mark in [0, 1 << 24, 0x0800_0000, 0xff00_0000] {
            for source in [play.cast.node, play.cast.other_node, play.cast.stranger, play.cast.client] {
                play.frame.from_host_stack = from_host_stack;
                play.frame.mark = mark;
                let is_node = from_host_stack && mark == 0 && source == play.cast.node;
                let reason = if is_node { Reason::FromOwnNode } else { Reason::PolicyDenied };
                let talk = play.udp_in(source, if is_node { DNS } else { SHUT });
                play.gets(&talk.back(0), reason)?;
            }
        }
    }
    Ok(())
}

fn a_mark_that_is_not_a_slot_does_not_matter(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    play.from_node_stack();
    play.frame.mark = FOREIGN_MARK;
    play.gets(&play.udp_in(play.cast.node, SHUT).back(0), Reason::FromOwnNode)
}

fn a_reset_of_the_node_passes_and_opens_nothing(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    play.from_node_stack();
    play.gets(&play.tcp_in(play.cast.node, SHUT).back(RST | ACK), Reason::FromOwnNode)?;
    play.has_no_flow()
}

fn a_pod_reaches_its_own_node(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let talk = play.tcp_out(play.cast.node, SHUT);
    play.sends(&talk.out(SYN), Reason::ToOwnNode)?;
    play.from_node_stack();
    play.gets(&talk.back(SYN_ACK), Reason::Reply)?;
    play.revise();
    play.sends(&talk.out(ACK), Reason::ToOwnNode)?;
    // Without the node's stack behind it, it is a backend's that the node's port was translated to.
    play.frame.from_host_stack = false;
    play.gets(&talk.back(PSH_ACK), Reason::UnconfirmedReply)?;
    play.isolate(Isolation::Free);
    play.sends(&play.udp_out(play.cast.node, SHUT).out(0), Reason::ToOwnNode)
}

fn a_pod_is_held_to_policy_towards_its_node_where_the_operator_says_so(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    play.sends(&play.tcp_out(play.cast.node, SHUT).out(SYN), Reason::PolicyDenied)?;
    // The node's own probes are not concerned.
    play.from_node_stack();
    play.gets(&play.tcp_in(play.cast.node, SHUT).back(SYN), Reason::FromOwnNode)
}

fn another_node_is_an_address_like_any_other(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    play.sends(&play.tcp_out(play.cast.other_node, SHUT).out(SYN), Reason::PolicyDenied)?;
    play.gets(&play.tcp_in(play.cast.other_node, SHUT).back(SYN), Reason::PolicyDenied)
}

fn a_tunnel_to_a_node_is_dropped_for_every_pod(play: &mut Play<'_>) -> Result<()> {
    // A node takes what arrives there apart, and the packet inside comes from anybody.
    const PORTS: [u16; 3] = [8472, 4789, 8285];
    const ENCAPSULATIONS: [u8; 3] = [4, 41, 47];
    play.set_role(play.cast.other_node, AddressRole::NODE)?;
    for isolation in [Isolation::Free, Isolation::Both, Isolation::DenyAll] {
        play.isolate(isolation);
        for node in [play.cast.node, play.cast.other_node] {
            for port in PORTS {
                play.sends(&play.udp_out(node, port).out(0), Reason::TunnelFromPod)?;
                play.sends(&play.udp_out(node, port).out(0).fragment(1, 0, true), Reason::TunnelFromPod)?;
            }
            for protocol in ENCAPSULATIONS {
                play.sends(&play.talk(node, protocol, 0, 0).out(0), Reason::TunnelFromPod)?;
            }
        }
    }
    play.has_no_flow()?;
    // Others may run tunnels of their own, and these ports are only UDP's.
    play.isolate(Isolation::Free);
    for protocol in ENCAPSULATIONS {
        play.sends(&play.talk(play.cast.stranger, protocol, 0, 0).out(0), Reason::NotIsolated)?;
    }
    for port in PORTS {
        play.sends(&play.udp_out(play.cast.stranger, port).out(0), Reason::NotIsolated)?;
        play.sends(&play.tcp_out(play.cast.node, port).out(SYN), Reason::ToOwnNode)?;
        play.sends(&play.talk(play.cast.node, 17, port, SHUT).out(0), Reason::ToOwnNode)?;
    }
    play.flag(EndpointFlags::ANY_SOURCE, true);
    play.sends(&play.udp_out(play.cast.node, 8472).out(0), Reason::ToOwnNode)
}

fn a_pending_pod_may_only_find_its_neighbours(play: &mut Play<'_>) -> Result<()> {
    play.pend();
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::EndpointPending)?;
    play.gets(&talk.back(SYN_ACK), Reason::EndpointPending)?;
    play.sends(&play.udp_out(play.cast.node, DNS).out(0), Reason::EndpointPending)?;
    play.from_node_stack();
    play.gets(&play.tcp_in(play.cast.node, WEB).back(SYN), Reason::EndpointPending)?;
    // Its addresses are not known yet, nor is its MAC address.
    play.endpoint = Endpoint { slot: SLOT, flags: EndpointFlags::PENDING, ..Endpoint::default() };
    if !play.is_v4() {
        let body = vec![0; 20];
        let solicitation = Transport::Icmp { kind: 135, code: 0, body };
        let ask = Datagram::new(play.cast.pod, play.cast.node, solicitation).hops(255);
        play.sends_between(POD_MAC, BRIDGE_MAC, &ask, Reason::Neighbour)?;
        let answer = Datagram { source: play.cast.node, destination: play.cast.pod, ..ask };
        play.gets_at(POD_MAC, &answer, Reason::Neighbour)?;
    }
    play.sends_between(POD_MAC, BRIDGE_MAC, &talk.out(SYN), Reason::EndpointPending)?;
    for (hook, reason) in [(Hook::FromPod, Reason::UnsupportedEtherType), (Hook::ToPod, Reason::UnsupportedEtherType)] {
        let frame = [&[0x02; 12][..], &[0x88, 0xcc], &[0; 46]].concat();
        play.passes(hook, &frame, reason)?;
    }
    play.has_no_flow()
}

fn an_interface_that_nobody_registered_is_closed(play: &mut Play<'_>) -> Result<()> {
    play.endpoint = Endpoint::default();
    let talk = play.tcp_out(play.cast.client, WEB);
    play.sends_between(POD_MAC, BRIDGE_MAC, &talk.out(SYN), Reason::EndpointPending)?;
    play.gets_at(POD_MAC, &talk.back(SYN), Reason::EndpointPending)?;
    let arp = [&[0xff; 6][..], &POD_MAC, &[0x08, 0x06], &[0; 28]].concat();
    play.passes(Hook::FromPod, &arp, Reason::EndpointPending)?;
    play.passes(Hook::ToPod, &arp, Reason::EndpointPending)?;
    play.has_no_flow()
}

fn before_the_first_sync_everything_passes(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    play.flag(EndpointFlags::PASS_THROUGH, true);
    let mut talk = play.tcp_out(play.cast.client, WEB);
    play.sends(&talk.out(SYN), Reason::PassThrough)?;
    play.gets(&talk.back(SYN_ACK), Reason::PassThrough)?;
    talk.pod = play.cast.other_pod;
    play.sends(&talk.out(ACK), Reason::PassThrough)?;
    play.has_no_flow()?;
    play.flag(EndpointFlags::PASS_THROUGH, false);
    play.sends(&talk.out(ACK), Reason::SpoofedAddress)
}

fn every_packet_of_a_pod_carries_its_slot(play: &mut Play<'_>) -> Result<()> {
    // The kernel's mark is compared with every packet; here are the ones that start with a mark.
    for mark in [0, FOREIGN_MARK, 0xff00_0000 | FOREIGN_MARK, 0x0100_0000] {
        play.frame.mark = mark;
        play.sends(
            &play.udp_out(play.cast.client, DNS).out(0),
            if mark == 0 { Reason::NotIsolated } else { Reason::Established },
        )?;
        play.gets(
            &play.udp_in(play.cast.client, DNS).back(0),
            if mark == 0 { Reason::NotIsolated } else { Reason::Established },
        )?;
    }
    play.flag(EndpointFlags::PASS_THROUGH, true);
    play.sends(&play.udp_out(play.cast.client, DNS).out(0), Reason::PassThrough)?;
    ensure!(play.endpoint.slot == SLOT);
    Ok(())
}
