//! Where packets to services leave the node: judged on the backend, whoever they say they are from.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use netpol_common::abi::{AddressRole, Backend, BackendKey, Direction, Hook, Reason, V4, V6};
use netpol_common::packet::Address as _;

use super::case;
use super::fragments::later;
use super::services::{backend, service};
use crate::frame::datagram::Datagram;
use crate::frame::datagram::flag::{PSH_ACK, SYN};
use crate::packet::Case;
use crate::packet::cast::{self, BRIDGE_MAC, DNS, EGRESS_POLICY, Isolation, OTHER_SLOT, SHUT, SLOT, WEB};
use crate::packet::play::{Play, Talk};

pub(super) const CASES: &[Case] = &[
    case!(what_leaves_is_judged_on_the_backend),
    case!(what_cannot_be_read_does_not_leave),
    case!(a_service_leads_no_tunnel_to_a_node),
    case!(a_foreign_mark_means_nothing),
    case!(fragments_are_judged_where_they_leave),
];

/// The packet leaves the node by an uplink.
fn leaves(play: &mut Play<'_>, datagram: &Datagram, expected: Reason) -> Result<()> {
    let frame = datagram.frame([2; 6], BRIDGE_MAC).context("no such packet")?;
    play.passes(Hook::ToUplink, &frame, expected).with_context(|| format!("leaves: {datagram:x?}"))
}

fn what_leaves_is_judged_on_the_backend(play: &mut Play<'_>) -> Result<()> {
    play.isolate(Isolation::Both);
    play.deferred_by(SLOT);
    let (client, stranger, node) = (play.cast.client, play.cast.stranger, play.cast.node);
    for source in [play.cast.pod, node] {
        let to = |peer, port| Talk { pod: source, ..play.talk(peer, 6, 50_000, port) }.out(SYN);
        let (good, other, shut) = (to(client, WEB), to(stranger, WEB), to(client, SHUT));
        leaves(play, &good, Reason::AllowedAfterTranslation)?;
        leaves(play, &other, Reason::DeniedAfterTranslation)?;
        leaves(play, &shut, Reason::DeniedAfterTranslation)?;
        // Replies may come from where the flow was let go, and from nowhere else.
        ensure!(recorded(play)? == backend(client, 6, WEB), "{:?}", play.host.backends);
        let report = play.reports.last().context("a report")?;
        let own = if let IpAddr::V4(v4) = play.cast.pod { V4::from(v4).widen() } else { V6::from(v6_of(play)).widen() };
        ensure!(report.addresses[0] == V6(own) && report.slot == SLOT, "told as the node's: {report:?}");
        ensure!(report.policy == EGRESS_POLICY && report.direction == Direction::Egress, "{report:?}");
    }
    // In mid-stream too: each packet is judged by the policy of now.
    let data = play.tcp_out(client, WEB).out(PSH_ACK);
    leaves(play, &data, Reason::AllowedAfterTranslation)?;
    play.forbid_client(Direction::Egress)?;
    leaves(play, &data, Reason::DeniedAfterTranslation)?;
    play.isolate(Isolation::Ingress);
    leaves(play, &data, Reason::AllowedAfterTranslation)?;
    // Led elsewhere, it is that backend's to answer.
    leaves(play, &play.udp_out(stranger, DNS).out(0), Reason::AllowedAfterTranslation)?;
    ensure!(recorded(play)? == backend(stranger, 17, DNS), "{:?}", play.host.backends);
    play.has_no_flow()
}

/// The only backend that the pod's flows were led to (their packets have no hash here, so they are one flow).
fn recorded(play: &Play<'_>) -> Result<Backend> {
    let backends = play.host.backends.borrow();
    ensure!(backends.len() == 1, "not one backend but {backends:?}");
    let key = BackendKey { cookie: play.frame.hash, slot: SLOT, pad: 0 };
    backends.get(&key).copied().context("of another flow or pod")
}

fn what_cannot_be_read_does_not_leave(play: &mut Play<'_>) -> Result<()> {
    play.set_sender(play.endpoint, play.policy)?;
    play.deferred_by(SLOT);
    let whole = play.udp_out(play.cast.client, DNS).out(0).frame([2; 6], BRIDGE_MAC).context("no such packet")?;
    play.passes(Hook::ToUplink, &whole, Reason::AllowedAfterTranslation)?;
    let cut = whole.get(..whole.len() - 4).context("a frame")?;
    play.passes(Hook::ToUplink, cut, Reason::Truncated)
}

fn v6_of(play: &Play<'_>) -> std::net::Ipv6Addr {
    match play.cast.pod {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn a_service_leads_no_tunnel_to_a_node(play: &mut Play<'_>) -> Result<()> {
    play.set_role(play.cast.other_node, AddressRole::NODE)?;
    play.set_sender(play.endpoint, play.policy)?;
    play.deferred_by(SLOT);
    leaves(play, &play.udp_out(play.cast.other_node, 8472).out(0), Reason::TunnelFromPod)?;
    leaves(play, &play.udp_out(play.cast.other_node, DNS).out(0), Reason::AllowedAfterTranslation)
}

fn a_foreign_mark_means_nothing(play: &mut Play<'_>) -> Result<()> {
    play.set_identity(play.cast.other_pod, cast::CLIENT_IDENTITY)?;
    play.isolate(Isolation::DenyAll);
    play.deferred_by(OTHER_SLOT + 1);
    let out = play.tcp_out(play.cast.stranger, WEB).out(SYN);
    leaves(play, &out, Reason::ForeignMark)?;
    // Nor does it lend a source to anyone.
    play.isolate(Isolation::Ingress);
    play.gets(&play.tcp_in(play.cast.stranger, WEB).back(SYN), Reason::PolicyDenied)?;
    play.gets(&play.tcp_in(play.cast.client, WEB).back(SYN), Reason::AllowedByPolicy)?;
    // Nor does the pod's own mark make a stranger the pod itself.
    play.deferred_by(SLOT);
    play.gets(&play.udp_in(play.cast.stranger, WEB).back(0), Reason::PolicyDenied)?;
    // A mark of a pod beside another's address does not lend that pod's identity either.
    play.set_sender(cast::other_endpoint(), Isolation::Free.word(1))?;
    play.deferred_by(OTHER_SLOT);
    play.gets(&play.tcp_in(play.cast.stranger, WEB).back(SYN), Reason::PolicyDenied)
}

fn fragments_are_judged_where_they_leave(play: &mut Play<'_>) -> Result<()> {
    let service = service(play)?;
    play.isolate(Isolation::Both);
    let out = play.udp_out(service, DNS).out(0);
    play.sends(&out.clone().fragment(1, 0, true), Reason::Deferred)?;
    play.sends(&later(&out, 1, 1480), Reason::Deferred)?;
    play.sends(&later(&out, 2, 1480), Reason::Deferred)?;
    play.deferred_by(SLOT);
    let (good, bad) = (play.udp_out(play.cast.client, DNS).out(0), play.udp_out(play.cast.stranger, DNS).out(0));
    leaves(play, &later(&good, 3, 1480), Reason::FragmentWithoutFirst)?;
    leaves(play, &good.clone().fragment(3, 0, true), Reason::AllowedAfterTranslation)?;
    leaves(play, &later(&good, 3, 1480), Reason::AllowedAfterTranslation)?;
    leaves(play, &bad.clone().fragment(4, 0, true), Reason::DeniedAfterTranslation)?;
    leaves(play, &later(&bad, 4, 1480), Reason::FragmentOfDenied)?;
    play.isolate(Isolation::Free);
    leaves(play, &later(&good, 5, 1480), Reason::AllowedAfterTranslation)?;
    // Not translated, it looks alike at both hooks: each goes by what it made of the first part itself.
    let first = out.clone().fragment(6, 0, true);
    play.sends(&first, Reason::Deferred)?;
    leaves(play, &first, Reason::AllowedAfterTranslation)?;
    play.sends(&later(&out, 6, 1480), Reason::Deferred)?;
    leaves(play, &later(&out, 6, 1480), Reason::AllowedAfterTranslation)
}
