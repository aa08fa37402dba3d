//! Pretending to answer: packets that claim to belong to a flow which their receiver never opened.

use super::Attack;
use super::cast::{Cast, FAMILIES, FRIEND, MALLORY, VICTIM, icmp, named, tcp, udp};
use crate::frame::datagram::flag::{ACK, FIN_ACK, PSH_ACK, RST, SYN, SYN_ACK};
use crate::frame::datagram::{Datagram, Transport};

/// The service's port at Mallory's, which the victim may reach.
const SERVICE: u16 = 7000;
/// The victim's port of a flow that it opens.
const LIVE: u16 = 41_000;
/// A port of the victim without any flow.
const DEAD: u16 = 42_000;

/// All of them.
#[must_use]
pub fn attacks(cast: &Cast) -> Vec<Attack> {
    FAMILIES
        .iter()
        .flat_map(|&ipv6| [segments(cast, ipv6), datagrams(cast, ipv6), errors(cast, ipv6)].concat())
        .collect()
}

/// The victim's packet that opens a flow to Mallory.
fn opening(cast: &Cast, ipv6: bool, transport: Transport) -> Vec<u8> {
    cast.frame(VICTIM, MALLORY, &cast.packet(VICTIM, MALLORY, ipv6, transport))
}

fn segments(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let cases = [
        ("SYN-ACK", SYN_ACK),
        ("ACK", ACK),
        ("data", PSH_ACK),
        ("FIN", FIN_ACK),
        ("RST", RST),
        ("RST and ACK", RST | ACK),
    ];
    (0..)
        .zip(cases)
        .map(|(number, (what, flags))| {
            let what = named(&format!("{what} from the service's port, of no flow"), ipv6);
            Attack::new(&what, MALLORY, VICTIM, |intent| {
                let ports = [SERVICE, intent.choose(DEAD, LIVE + number)];
                let segment = cast.packet(MALLORY, VICTIM, ipv6, tcp(ports, flags, intent.mark()));
                vec![cast.frame(MALLORY, VICTIM, &segment)]
            })
            .after(VICTIM, MALLORY, opening(cast, ipv6, tcp([LIVE + number, SERVICE], SYN, b"")))
            .refused_at(VICTIM, "policy-denied")
        })
        .collect()
}

fn datagrams(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let cases = [
        ("UDP from the service's port, of no flow", [SERVICE, DEAD]),
        ("UDP of a live flow from another port", [SERVICE + 1, LIVE]),
        ("UDP of a live flow to another port", [SERVICE, LIVE + 1]),
    ];
    let mut attacks: Vec<Attack> = cases
        .into_iter()
        .map(|(what, ports)| {
            Attack::new(&named(what, ipv6), MALLORY, VICTIM, |intent| {
                let ports = intent.choose(ports, [SERVICE, LIVE]);
                let answer = cast.packet(MALLORY, VICTIM, ipv6, udp(ports, intent.mark()));
                vec![cast.frame(MALLORY, VICTIM, &answer)]
            })
            .after(VICTIM, MALLORY, opening(cast, ipv6, udp([LIVE, SERVICE], b"question")))
            .refused_at(VICTIM, "policy-denied")
        })
        .collect();
    let from_friend = Attack::new(&named("UDP of a live flow from another pod", ipv6), FRIEND, VICTIM, |intent| {
        let from = intent.choose(FRIEND, MALLORY);
        let answer = cast.packet(from, VICTIM, ipv6, udp([SERVICE, LIVE], intent.mark()));
        vec![cast.frame(from, VICTIM, &answer)]
    });
    attacks.push(
        from_friend
            .legal_from(MALLORY)
            .after(VICTIM, MALLORY, opening(cast, ipv6, udp([LIVE, SERVICE], b"question")))
            .refused_at(VICTIM, "policy-denied"),
    );
    let echo = Attack::new(&named("an echo reply that nobody asked for", ipv6), MALLORY, VICTIM, |intent| {
        let id: u16 = intent.choose(5, 6);
        let kind = if ipv6 { 129 } else { 0 };
        let body = [&id.to_be_bytes()[..], &[0, 1], intent.mark()].concat();
        vec![cast.frame(MALLORY, VICTIM, &cast.packet(MALLORY, VICTIM, ipv6, icmp(kind, 0, &body)))]
    });
    let request = opening(cast, ipv6, Transport::Echo { reply: false, id: 6 });
    attacks.push(echo.after(VICTIM, MALLORY, request).refused_at(VICTIM, "policy-denied"));
    attacks
}

/// ICMP errors about packets that the victim never sent.
fn errors(cast: &Cast, ipv6: bool) -> Vec<Attack> {
    let kinds: [(u8, u8); 3] = if ipv6 { [(1, 4), (2, 0), (3, 0)] } else { [(3, 3), (3, 4), (11, 0)] };
    kinds
        .into_iter()
        .map(|(kind, code)| {
            let what = named(&format!("ICMP error {kind}/{code} about a packet that was never sent"), ipv6);
            Attack::new(&what, MALLORY, VICTIM, |intent| {
                let quoted =
                    cast.packet(VICTIM, MALLORY, ipv6, udp([intent.choose(DEAD, LIVE), SERVICE], intent.mark()));
                let error = cast.packet(MALLORY, VICTIM, ipv6, error_about(kind, code, &quoted));
                vec![cast.frame(MALLORY, VICTIM, &error)]
            })
            .after(VICTIM, MALLORY, opening(cast, ipv6, udp([LIVE, SERVICE], b"question")))
            .refused_at(VICTIM, "policy-denied")
        })
        .collect()
}

/// An ICMP error that quotes a packet.
fn error_about(kind: u8, code: u8, quoted: &Datagram) -> Transport {
    icmp(kind, code, &[&[0, 0, 5, 0][..], &quoted.bytes().unwrap_or_default()].concat())
}
