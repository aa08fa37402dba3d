//! The link: who sends under which MAC address, ARP and neighbour discovery, frames that are for somebody else.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netpol_common::abi::{Config, EndpointFlags, Hook, Reason};

use super::case;
use crate::frame::datagram::flag::SYN;
use crate::frame::datagram::{Datagram, Transport};
use crate::packet::Case;
use crate::packet::cast::{BRIDGE_MAC, DNS, Family, Isolation, OTHER_POD_MAC, POD_MAC, WEB};
use crate::packet::play::{Play, mac_towards};

const BROADCAST: [u8; 6] = [0xff; 6];

pub(super) const CASES: &[Case] = &[
    case!(a_foreign_mac_address_is_spoofed),
    case!(a_foreign_source_address_is_spoofed),
    case!(any_source_passes_where_the_operator_says_so),
    case!(any_source_passes_where_the_operator_says_so_for_all, flags(Config::ANY_SOURCE)),
    case!(a_pod_without_this_family_owns_no_address_of_it),
    case!(unicast_in_a_group_frame_is_dropped),
    case!(a_flooded_frame_is_passed_over_in_silence),
    case!(an_unknown_address_in_a_frame_for_the_pod_is_told),
    case!(a_vlan_tag_beside_the_frame_is_dropped, host_only("BPF_PROG_TEST_RUN cannot set a VLAN tag")),
    case!(a_vlan_tag_within_the_frame_is_dropped),
    case!(other_ether_types_pass_only_where_nothing_isolates),
    case!(arp_speaks_of_the_pods_own_address, only(&Family::ONLY_V4)),
    case!(arp_that_is_cut_or_odd_is_dropped, only(&Family::ONLY_V4)),
    case!(dhcp_works_before_any_address, only(&Family::ONLY_V4)),
    case!(nothing_else_comes_from_the_unspecified_address),
    case!(neighbour_discovery_works_beside_any_policy, only(&Family::ONLY_V6)),
    case!(an_advertisement_speaks_of_the_pods_own_address, only(&Family::ONLY_V6)),
    case!(neighbour_discovery_from_afar_is_judged_by_policy, only(&Family::ONLY_V6)),
    case!(duplicate_address_detection_comes_from_nowhere, only(&Family::ONLY_V6)),
    case!(multicast_listeners_report_to_groups, only(&Family::ONLY_V6)),
    case!(a_pod_is_no_router),
    case!(routers_reach_the_pod, only(&Family::ONLY_V6)),
    case!(the_link_local_address_of_its_mac_is_the_pods_own, only(&Family::ONLY_V6)),
];

fn a_foreign_mac_address_is_spoofed(play: &mut Play<'_>) -> Result<()> {
    let talk = play.udp_out(play.cast.client, DNS);
    for mac in [OTHER_POD_MAC, BRIDGE_MAC, [0; 6], BROADCAST] {
        play.sends_between(mac, BRIDGE_MAC, &talk.out(0), Reason::SpoofedMac)?;
    }
    let arp = arp(1, OTHER_POD_MAC, play.cast.pod, play.cast.node)?;
    play.passes(Hook::FromPod, &ether(BROADCAST, OTHER_POD_MAC, 0x0806, &arp), Reason::SpoofedMac)
}

fn a_foreign_source_address_is_spoofed(play: &mut Play<'_>) -> Result<()> {
    for isolation in [Isolation::Free, Isolation::Both, Isolation::DenyAll] {
        play.isolate(isolation);
        for source in [play.cast.other_pod, play.cast.client, play.cast.node, play.cast.group, play.cast.unspecified()]
        {
            let mut talk = play.udp_out(play.cast.client, DNS);
            talk.pod = source;
            play.sends(&talk.out(0), Reason::SpoofedAddress)?;
        }
    }
    play.has_no_flow()
}

fn any_source_passes_where_the_operator_says_so(play: &mut Play<'_>) -> Result<()> {
    play.flag(EndpointFlags::ANY_SOURCE, true);
    any_source(play)
}

fn any_source_passes_where_the_operator_says_so_for_all(play: &mut Play<'_>) -> Result<()> {
    any_source(play)
}

fn any_source(play: &mut Play<'_>) -> Result<()> {
    let mut talk = play.udp_out(play.cast.client, DNS);
    talk.pod = play.cast.stranger;
    play.sends_between(OTHER_POD_MAC, BRIDGE_MAC, &talk.out(0), Reason::NotIsolated)?;
    // The answer comes to an address that is not the pod's either.
    play.gets(&talk.back(0), Reason::Reply)?;
    // Policy holds all the same.
    play.isolate(Isolation::Both);
    let mut denied = play.udp_out(play.cast.stranger, DNS);
    denied.pod = play.cast.other_pod;
    play.sends(&denied.out(0), Reason::PolicyDenied)?;
    play.gets(&denied.back(0), Reason::PolicyDenied)
}

fn a_pod_without_this_family_owns_no_address_of_it(play: &mut Play<'_>) -> Result<()> {
    let flag = if play.is_v4() { EndpointFlags::HAS_V4 } else { EndpointFlags::HAS_V6 };
    play.flag(flag, false);
    let talk = play.udp_out(play.cast.client, DNS);
    play.sends(&talk.out(0), Reason::SpoofedAddress)?;
    play.gets(&talk.back(0), Reason::UnknownDestination)
}

fn unicast_in_a_group_frame_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let group = mac_towards(play.cast.group).context("a group")?;
    for destination in [BROADCAST, group] {
        play.sends_between(
            POD_MAC,
            destination,
            &play.udp_out(play.cast.client, DNS).out(0),
            Reason::UnicastInMulticastFrame,
        )?;
    }
    let mut talk = play.udp_out(play.cast.client, 5353);
    talk.peer = play.cast.group;
    play.sends_between(POD_MAC, group, &talk.out(0), Reason::NotIsolated)?;
    play.isolate(Isolation::DenyAll);
    talk.pod_port += 1;
    play.sends_between(POD_MAC, group, &talk.out(0), Reason::PolicyDenied)
}

fn a_flooded_frame_is_passed_over_in_silence(play: &mut Play<'_>) -> Result<()> {
    for isolation in [Isolation::Free, Isolation::DenyAll] {
        play.isolate(isolation);
        let mut talk = play.udp_in(play.cast.client, DNS);
        // Unicast to another MAC address, whatever the address inside.
        play.gets_at(OTHER_POD_MAC, &talk.back(0), Reason::NotForThisPod)?;
        // A group frame with another pod's address inside.
        talk.pod = play.cast.other_pod;
        play.gets_at(BROADCAST, &talk.back(0), Reason::NotForThisPod)?;
    }
    ensure!(play.reports.is_empty());
    // In a group frame, but with the pod's address: policy has a word on it.
    play.gets_at(BROADCAST, &play.udp_in(play.cast.client, DNS).back(0), Reason::PolicyDenied)
}

fn an_unknown_address_in_a_frame_for_the_pod_is_told(play: &mut Play<'_>) -> Result<()> {
    let mut talk = play.udp_in(play.cast.client, DNS);
    talk.pod = play.cast.other_pod;
    play.gets(&talk.back(0), Reason::UnknownDestination)?;
    ensure!(play.reports.len() == 1);
    Ok(())
}

fn a_vlan_tag_beside_the_frame_is_dropped(play: &mut Play<'_>) -> Result<()> {
    play.frame.vlan_tagged = true;
    play.sends(&play.udp_out(play.cast.client, DNS).out(0), Reason::VlanTagged)?;
    // Towards the pod the tag changes nothing: what is inside is judged.
    play.gets(&play.udp_in(play.cast.client, DNS).back(0), Reason::NotIsolated)?;
    play.isolate(Isolation::DenyAll);
    play.gets(&play.tcp_in(play.cast.client, WEB).back(SYN), Reason::PolicyDenied)
}

fn a_vlan_tag_within_the_frame_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let inside = play.udp_out(play.cast.client, DNS).out(0).bytes().context("no such packet")?;
    let tagged = [&[0, 42][..], &play.cast.family.ether_type().to_be_bytes(), &inside].concat();
    for tag in [0x8100, 0x88a8] {
        play.passes(Hook::FromPod, &ether(BRIDGE_MAC, POD_MAC, tag, &tagged), Reason::VlanTagged)?;
    }
    Ok(())
}

fn other_ether_types_pass_only_where_nothing_isolates(play: &mut Play<'_>) -> Result<()> {
    // LLDP, PPPoE, MACsec, EAPOL, an IEEE 802.3 length, zero.
    for ether_type in [0x88cc, 0x8864, 0x88e5, 0x888e, 0x0026, 0] {
        let (sent, got) =
            (ether(BRIDGE_MAC, POD_MAC, ether_type, &[0; 46]), ether(POD_MAC, BRIDGE_MAC, ether_type, &[0; 46]));
        for (isolation, out, into) in [
            (Isolation::Free, Reason::NotIsolated, Reason::NotIsolated),
            (Isolation::Ingress, Reason::NotIsolated, Reason::UnsupportedEtherType),
            (Isolation::Egress, Reason::UnsupportedEtherType, Reason::NotIsolated),
            (Isolation::DenyAll, Reason::UnsupportedEtherType, Reason::UnsupportedEtherType),
        ] {
            play.isolate(isolation);
            play.passes(Hook::FromPod, &sent, out)?;
            play.passes(Hook::ToPod, &got, into)?;
        }
    }
    Ok(())
}

/// A frame with this payload.
fn ether(destination: [u8; 6], source: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ether_type.to_be_bytes(), payload].concat()
}

/// An ARP packet; all zero for the addresses of IPv6, which has none.
fn arp(operation: u8, sender_mac: [u8; 6], sender: IpAddr, target: IpAddr) -> Result<Vec<u8>> {
    let octets = |address| match address {
        IpAddr::V4(address) => std::net::Ipv4Addr::octets(&address),
        IpAddr::V6(_) => [0; 4],
    };
    Ok([&[0, 1, 8, 0, 6, 4, 0, operation][..], &sender_mac, &octets(sender), &[0; 6], &octets(target)].concat())
}

fn arp_speaks_of_the_pods_own_address(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let (pod, node) = (play.cast.pod, play.cast.node);
    for operation in [1, 2] {
        let sender = |mac, address| {
            Ok::<_, anyhow::Error>(ether(BROADCAST, POD_MAC, 0x0806, &arp(operation, mac, address, node)?))
        };
        play.passes(Hook::FromPod, &sender(POD_MAC, pod)?, Reason::Neighbour)?;
        // RFC 5227: a probe has no sender yet.
        play.passes(Hook::FromPod, &sender(POD_MAC, play.cast.unspecified())?, Reason::Neighbour)?;
        for address in [play.cast.other_pod, node, play.cast.client] {
            play.passes(Hook::FromPod, &sender(POD_MAC, address)?, Reason::SpoofedNeighbour)?;
        }
        play.passes(Hook::FromPod, &sender(OTHER_POD_MAC, pod)?, Reason::SpoofedNeighbour)?;
        let into = ether(POD_MAC, BRIDGE_MAC, 0x0806, &arp(operation, BRIDGE_MAC, node, pod)?);
        play.passes(Hook::ToPod, &into, Reason::Neighbour)?;
    }
    play.flag(EndpointFlags::ANY_SOURCE, true);
    let foreign = ether(BROADCAST, POD_MAC, 0x0806, &arp(1, OTHER_POD_MAC, play.cast.other_pod, node)?);
    play.passes(Hook::FromPod, &foreign, Reason::Neighbour)
}

fn arp_that_is_cut_or_odd_is_dropped(play: &mut Play<'_>) -> Result<()> {
    let whole = arp(1, POD_MAC, play.cast.pod, play.cast.node)?;
    for length in 1..whole.len() {
        let cut = whole.get(..length).context("a cut")?;
        play.passes(Hook::FromPod, &ether(BROADCAST, POD_MAC, 0x0806, cut), Reason::Truncated)?;
    }
    for lengths in [[8, 4], [6, 16], [0, 0]] {
        let mut odd = whole.clone();
        odd.splice(4..6, lengths);
        play.passes(Hook::FromPod, &ether(BROADCAST, POD_MAC, 0x0806, &odd), Reason::Malformed)?;
    }
    Ok(())
}

fn dhcp_works_before_any_address(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let ask = |source: IpAddr, destination: IpAddr, ports| Datagram::new(source, destination, Transport::Udp { ports });
    let (nowhere, everyone) = (play.cast.unspecified(), IpAddr::from([255; 4]));
    play.sends(&ask(nowhere, everyone, [68, 67]), Reason::Neighbour)?;
    play.sends(&ask(nowhere, everyone, [68, 68]), Reason::SpoofedAddress)?;
    play.sends(&ask(nowhere, everyone, [67, 67]), Reason::SpoofedAddress)?;
    play.sends(&ask(nowhere, play.cast.client, [68, 67]), Reason::SpoofedAddress)?;
    play.sends(&ask(nowhere, play.cast.group, [68, 67]), Reason::SpoofedAddress)?;
    play.sends(&ask(nowhere, everyone, [68, 67]).fragment(1, 0, true), Reason::SpoofedAddress)?;
    // With an address it is a packet like any other.
    play.sends(&ask(play.cast.pod, everyone, [68, 67]), Reason::PolicyDenied)?;
    play.gets(&ask(play.cast.node, everyone, [67, 68]), Reason::PolicyDenied)
}

fn nothing_else_comes_from_the_unspecified_address(play: &mut Play<'_>) -> Result<()> {
    let nowhere = play.cast.unspecified();
    for destination in [play.cast.client, play.cast.group] {
        for ports in [[68, 67], [546, 547], [5353, 5353]] {
            let datagram = Datagram::new(nowhere, destination, Transport::Udp { ports });
            play.sends(&datagram, Reason::SpoofedAddress)?;
        }
        let echo = Datagram::new(nowhere, destination, Transport::Echo { reply: false, id: 1 });
        play.sends(&echo, Reason::SpoofedAddress)?;
    }
    play.has_no_flow()
}

/// A message of ICMPv6 that speaks of `target`.
fn discovery(source: IpAddr, destination: IpAddr, kind: u8, target: IpAddr) -> Datagram {
    let mut body = vec![0; 4];
    if let IpAddr::V6(target) = target {
        body.extend(target.octets());
    }
    Datagram::new(source, destination, Transport::Icmp { kind, code: 0, body }).hops(255)
}

fn neighbour_discovery_works_beside_any_policy(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let (pod, node, link_local) = (play.cast.pod, play.cast.node, play.cast.link_local);
    for source in [pod, link_local] {
        // Router solicitation, neighbour solicitation, neighbour advertisement.
        play.sends(&discovery(source, play.cast.group, 133, pod), Reason::Neighbour)?;
        play.sends(&discovery(source, node, 135, node), Reason::Neighbour)?;
        play.sends(&discovery(source, node, 136, source), Reason::Neighbour)?;
    }
    play.gets(&discovery(node, pod, 135, pod), Reason::Neighbour)?;
    play.gets(&discovery(node, pod, 136, node), Reason::Neighbour)?;
    // A solicitation from an address that is not the pod's is no discovery of its own.
    play.sends(&discovery(play.cast.other_pod, node, 135, node), Reason::SpoofedAddress)
}

fn an_advertisement_speaks_of_the_pods_own_address(play: &mut Play<'_>) -> Result<()> {
    let (pod, node) = (play.cast.pod, play.cast.node);
    for target in [play.cast.other_pod, node, play.cast.client] {
        play.sends(&discovery(pod, node, 136, target), Reason::SpoofedNeighbour)?;
    }
    // Too short to speak of anything.
    let short = Transport::Icmp { kind: 136, code: 0, body: vec![0; 8] };
    play.sends(&Datagram::new(pod, node, short).hops(255), Reason::Truncated)?;
    play.flag(EndpointFlags::ANY_SOURCE, true);
    play.sends(&discovery(pod, node, 136, play.cast.other_pod), Reason::Neighbour)
}

fn neighbour_discovery_from_afar_is_judged_by_policy(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let (pod, node) = (play.cast.pod, play.cast.node);
    for kind in [133, 135, 136] {
        play.sends(&discovery(pod, node, kind, pod).hops(254), Reason::ToOwnNode)?;
        play.sends(&discovery(pod, play.cast.client, kind, pod).hops(64), Reason::PolicyDenied)?;
        play.gets(&discovery(play.cast.client, pod, kind, pod).hops(254), Reason::PolicyDenied)?;
    }
    play.gets(&discovery(play.cast.client, pod, 134, pod).hops(254), Reason::PolicyDenied)
}

fn duplicate_address_detection_comes_from_nowhere(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let (pod, nowhere) = (play.cast.pod, play.cast.unspecified());
    let solicited = IpAddr::from([0xff02, 0, 0, 0, 0, 1, 0xff00, 7]);
    play.sends(&discovery(nowhere, solicited, 135, pod), Reason::Neighbour)?;
    play.sends(&discovery(nowhere, solicited, 135, pod).hops(64), Reason::SpoofedAddress)?;
    play.gets(&discovery(nowhere, solicited, 135, pod), Reason::Neighbour)
}

fn multicast_listeners_report_to_groups(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let routers = IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0x16]);
    let alert = [0, 5, 2, 0, 0, 1, 0];
    for kind in [130, 131, 132, 143] {
        for source in [play.cast.link_local, play.cast.unspecified(), play.cast.pod] {
            let report = discovery(source, routers, kind, routers).hops(1).extension(0, &alert);
            play.sends(&report, Reason::Neighbour)?;
            play.gets(&report, Reason::Neighbour)?;
        }
        // To one neighbour it would be a message of any content to any pod of the node.
        let whisper = |source, destination| discovery(source, destination, kind, routers).hops(1);
        play.sends(&whisper(play.cast.pod, play.cast.other_pod), Reason::PolicyDenied)?;
        play.gets(&whisper(play.cast.other_pod, play.cast.pod), Reason::PolicyDenied)?;
        play.sends(&discovery(play.cast.pod, routers, kind, routers).hops(2), Reason::PolicyDenied)?;
    }
    Ok(())
}

fn a_pod_is_no_router(play: &mut Play<'_>) -> Result<()> {
    let kinds: &[u8] = if play.is_v4() { &[5, 9] } else { &[134, 137] };
    for isolation in [Isolation::Free, Isolation::DenyAll] {
        play.isolate(isolation);
        for &kind in kinds {
            for hops in [1, 64, 255] {
                let message = Transport::Icmp { kind, code: 0, body: vec![0; 36] };
                for destination in [play.cast.other_pod, play.cast.group] {
                    let datagram = Datagram::new(play.cast.pod, destination, message.clone()).hops(hops);
                    play.sends(&datagram, Reason::RouterMessage)?;
                }
            }
        }
    }
    Ok(())
}

fn routers_reach_the_pod(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::DenyAll);
    let router = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]);
    let nodes = IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]);
    play.gets(&discovery(router, nodes, 134, router), Reason::Neighbour)?;
    play.gets(&discovery(router, play.cast.pod, 137, router), Reason::Neighbour)
}

fn the_link_local_address_of_its_mac_is_the_pods_own(play: &mut Play<'_>) -> Result<()> {
    let router = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]);
    let mut talk = play.udp_out(router, DNS);
    talk.pod = play.cast.link_local;
    play.sends(&talk.out(0), Reason::NotIsolated)?;
    play.gets(&talk.back(0), Reason::Reply)?;
    play.isolate(Isolation::DenyAll);
    play.sends(&talk.out(0), Reason::FlowRevoked)?;
    talk.pod = router;
    play.sends(&talk.out(0), Reason::SpoofedAddress)
}
