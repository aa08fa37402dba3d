//! The order of a plan, by hand; what it does to traffic is judged in `policy::tests`.

use std::sync::Arc;

use netpol_common::abi::{
    AllowKey, AllowValue, Direction, POLICY_DENY, POLICY_NOT_ISOLATED, PORT_SET_BYTES, PolicyWord,
};

use super::desired::{DesiredDatapath, PolicyIds, Tables, Touched, longest_match};
use super::diff::diff;
use super::installed::Installed;
use super::plan::{Effect, Op};

const TCP: AllowValue = AllowValue { tcp: 1, udp: 0, sctp: 0, other: 0 };

fn tables(allow: &[(u16, u32, AllowValue)], addresses: &[(&str, u32)], cidrs: &[(&str, u32)]) -> Tables {
    let mut tables = Tables::default();
    for (policy, identity, value) in allow {
        tables.allow.entry(*policy).or_default().insert(*identity, *value);
    }
    tables.addresses.extend(addresses.iter().map(|(address, id)| (address.parse().unwrap(), *id)));
    tables.cidrs.extend(cidrs.iter().map(|(cidr, id)| (cidr.parse().unwrap(), *id)));
    tables
}

fn word(ingress: u16, revision: u32) -> PolicyWord {
    PolicyWord::new(ingress, POLICY_NOT_ISOLATED, revision)
}

fn everything(installed: &Installed, desired: &DesiredDatapath) -> Touched {
    let mut touched = installed.everything();
    touched.extend(&Touched::everything(&desired.tables, desired.words.keys().copied()));
    touched
}

#[test]
fn entries_come_before_addresses_small_regions_before_large_words_after_both_and_removals_last() {
    let installed = Installed {
        tables: tables(&[(2, 5, TCP)], &[("10.0.0.1", 5)], &[("10.9.0.0/16", 5)]),
        words: [(1, word(2, 7))].into(),
    };
    let mut desired = DesiredDatapath {
        tables: tables(
            &[(3, 6, AllowValue { tcp: 2, ..TCP }), (3, 7, TCP)],
            &[("10.0.0.1", 6)],
            &[("10.0.0.0/8", 7), ("10.1.0.0/16", 7), ("10.1.1.0/24", 6)],
        ),
        words: [(1, PolicyIds { ingress: 3, egress: POLICY_NOT_ISOLATED })].into(),
    };
    desired.tables.port_sets.insert(2, Arc::new([1; PORT_SET_BYTES]));
    let plan = diff(&installed, &desired, &everything(&installed, &desired));
    let allow = |policy, identity| AllowKey::new(policy, identity);
    let cidr = |cidr: &str| cidr.parse().unwrap();
    let expected = [
        Op::WritePortSet { number: 2, bits: Arc::new([1; PORT_SET_BYTES]) },
        Op::WriteAllow(allow(3, 6), AllowValue { tcp: 2, ..TCP }),
        Op::WriteAllow(allow(3, 7), TCP),
        Op::WriteAddress("10.0.0.1".parse().unwrap(), 6),
        Op::WriteCidr(cidr("10.1.1.0/24"), 6),
        Op::WriteCidr(cidr("10.1.0.0/16"), 7),
        Op::WriteCidr(cidr("10.9.0.0/16"), 7),
        Op::WriteCidr(cidr("10.0.0.0/8"), 7),
        Op::WritePolicyWord { slot: 1, word: word(3, 8) },
        Op::RemoveCidr(cidr("10.9.0.0/16")),
        Op::RemoveAllow(allow(2, 5)),
    ];
    // Each new identity also comes to addresses that had none, so the old policy id shares nothing with it.
    assert_eq!(plan.operations().collect::<Vec<Op>>(), expected);
}

#[test]
fn nothing_to_do_is_an_empty_plan() {
    let tables = tables(&[(2, 5, TCP)], &[("10.0.0.1", 5)], &[("10.0.0.0/8", 5)]);
    let installed = Installed { tables: tables.clone(), words: [(1, word(2, 7))].into() };
    let ids = PolicyIds { ingress: 2, egress: POLICY_NOT_ISOLATED };
    let desired = DesiredDatapath { tables, words: [(1, ids)].into() };
    assert!(diff(&installed, &desired, &everything(&installed, &desired)).is_empty());
}

#[test]
fn a_revision_goes_on_from_the_pinned_word_and_wraps() {
    let installed = Installed { words: [(1, word(POLICY_DENY, u32::MAX))].into(), ..Installed::default() };
    let ids = PolicyIds { ingress: POLICY_NOT_ISOLATED, egress: POLICY_NOT_ISOLATED };
    let desired = DesiredDatapath { words: [(1, ids)].into(), ..DesiredDatapath::default() };
    let plan = diff(&installed, &desired, &everything(&installed, &desired));
    assert_eq!(plan.words[0].after, PolicyWord(0));
    assert_eq!((plan.words[0].effect(Direction::Ingress), plan.words[0].egress), (Effect::Widening, Effect::Unchanged));
}

#[test]
fn an_address_that_only_passes_to_an_equal_identity_changes_no_word() {
    let installed = Installed {
        tables: tables(&[(2, 5, TCP), (2, 6, TCP)], &[("10.0.0.1", 5)], &[]),
        words: [(1, word(2, 7))].into(),
    };
    let mut desired = DesiredDatapath { tables: installed.tables.clone(), words: [].into() };
    desired.words.insert(1, PolicyIds { ingress: 2, egress: POLICY_NOT_ISOLATED });
    desired.tables.addresses.insert("10.0.0.1".parse().unwrap(), 6);
    let plan = diff(&installed, &desired, &everything(&installed, &desired));
    assert_eq!((plan.moves.len(), plan.words.len()), (1, 0));
}

#[test]
fn the_longest_match_is_found_past_neighbours() {
    let cidrs = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.3.0/24", "10.128.0.0/9", "fd00::/8"];
    let map = cidrs.iter().map(|cidr| (cidr.parse().unwrap(), *cidr)).collect();
    let found = |target: &str| longest_match(&map, target.parse().unwrap()).map(|(_, cidr)| *cidr);
    assert_eq!(found("10.0.4.1/32"), Some("10.0.0.0/16"));
    assert_eq!(found("10.0.3.7/32"), Some("10.0.3.0/24"));
    assert_eq!(found("10.0.3.0/24"), Some("10.0.3.0/24"));
    assert_eq!(found("10.127.0.1/32"), Some("10.0.0.0/8"));
    assert_eq!(found("192.0.2.1/32"), Some("0.0.0.0/0"));
    assert_eq!(found("fd01::1/128"), Some("fd00::/8"));
    assert_eq!(found("2001:db8::1/128"), None);
}
