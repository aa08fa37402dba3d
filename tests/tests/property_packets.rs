//! Properties of the decision over random bytes and random scenes. `NETPOL_CASES=20000` looks harder, `NETPOL_SEED` elsewhere.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops at the first surprise"
)]

use netpol_common::abi::{Config, Hook, Reason};
use netpol_tests::packet::cast::{Cast, Family, Isolation};
use netpol_tests::packet::mutate::{frame, steps};
use netpol_tests::packet::play::Play;
use netpol_tests::property::{cases, runner};
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;

fn play(family: Family) -> Play<'static> {
    Play::new(family, Config::for_hz(250), None).unwrap()
}

/// Overflow and bounds are checked in this build; a panic here would be a refusal by the verifier, or worse, there.
#[test]
fn no_bytes_make_the_decision_panic() {
    let bytes = vec(any::<u8>(), 0..160);
    let ether_types = select(&[[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]]);
    let hooks = select(&[Hook::FromPod, Hook::ToPod]);
    runner(cases(20_000))
        .run(&(bytes, ether_types, any::<bool>(), hooks), |(mut bytes, ether_type, usual, hook)| {
            let mut play = play(Family::V4);
            play.isolate(Isolation::Both);
            if usual && bytes.len() >= 15 {
                // As random as before, but for what would end the parsing at once.
                bytes[12..14].copy_from_slice(&ether_type);
                bytes[14] = if ether_type == [0x86, 0xdd] { 0x60 } else { 0x40 | bytes[14] & 0xf };
            }
            play.meets(hook, &bytes).map(drop).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .unwrap();
}

#[test]
fn random_scenes_do_not_make_the_decision_panic() {
    for family in Family::BOTH {
        runner(cases(300))
            .run(&steps(family, 60), |steps| {
                let mut play = play(family);
                for step in steps {
                    step.run(&mut play).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
                }
                Ok(())
            })
            .unwrap();
    }
}

/// What a pod that is denied everything can still send and get: discovery on its link, and its own node.
#[test]
fn a_denied_pod_exchanges_nothing_but_discovery() {
    for family in Family::BOTH {
        let cast = Cast::of(family);
        runner(cases(20_000))
            .run(&frame(family), |(hook, bytes)| {
                let mut play = play(family);
                play.isolate(Isolation::DenyAll);
                let reason = play.meets(hook, &bytes).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
                let harmless = match reason {
                    reason if reason.is_drop() => true,
                    Reason::Neighbour => is_discovery(&bytes),
                    Reason::ToOwnNode | Reason::PickedUp => {
                        hook == Hook::FromPod && destination(&bytes) == octets(&cast)
                    }
                    _ => false,
                };
                if harmless { Ok(()) } else { Err(TestCaseError::fail(format!("{hook:?} {reason} {bytes:02x?}"))) }
            })
            .unwrap();
    }
}

/// The node's address as it lies in packets.
fn octets(cast: &Cast) -> Vec<u8> {
    match cast.node {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn destination(frame: &[u8]) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] { frame[30..34].to_vec() } else { frame[38..54].to_vec() }
}

/// Read anew from the bytes, naively: ARP, anything of IP to a group, or ICMPv6 of neighbour discovery with hop limit 255.
fn is_discovery(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x06] => true,
        [0x08, 0x00] => frame[30] >> 4 == 0xe || frame[30..34] == [0xff; 4],
        [0x86, 0xdd] if frame[38] == 0xff => true,
        [0x86, 0xdd] => {
            let (mut next, mut at) = (frame[20], 54);
            while next != 58 {
                let length = match next {
                    44 => 8,
                    51 => (usize::from(frame[at + 1]) + 2) * 4,
                    _ => (usize::from(frame[at + 1]) + 1) * 8,
                };
                (next, at) = (frame[at], at + length);
            }
            frame[21] == 255 && (133..=137).contains(&frame[at])
        }
        _ => false,
    }
}
