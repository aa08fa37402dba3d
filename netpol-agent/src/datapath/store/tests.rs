use std::sync::Arc;

use netpol_common::abi::{AddressRole, EndpointFlags, capacity};

use super::*;
use crate::datapath::loader::{default_config, embedded_object, load_object};
use crate::datapath::sizing::Sizing;
use crate::testing::{has_object, in_sandbox};

/// A store on small maps; no program is verified for it.
fn with_store(test: impl FnOnce(KernelStore, PinDir) + Send) {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        let sizing = Sizing { allow: 8, addresses: 8, ..Sizing::default() };
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        load_object(embedded_object().unwrap(), &default_config().unwrap(), &sizing, Some(&pins)).unwrap();
        test(KernelStore::open(&pins).unwrap(), pins);
    });
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn block(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn what_a_plan_writes_is_read_back_and_removed_again() {
    with_store(|mut store, _| {
        let key = AllowKey::new(2, 7);
        let value = AllowValue { tcp: 3, udp: PortRule::All.encode(), sctp: 0, other: 0 };
        let mut bits = [0; PORT_SET_BYTES];
        bits[10] = 1;
        let word = PolicyWord::new(2, 1, 41);
        let written = [
            Op::WritePortSet { number: 3, bits: Arc::new(bits) },
            Op::WriteAllow(key, value),
            Op::WriteAddress(address("10.0.0.7"), 7),
            Op::WriteAddress(address("fd00::7"), 7),
            Op::WriteCidr(block("10.1.0.0/16"), 8),
            Op::WriteCidr(block("0.0.0.0/0"), 9),
            Op::WriteCidr(block("fd01::/32"), 8),
            Op::WritePolicyWord { slot: 5, word },
        ];
        store.apply(&written).unwrap();
        let actual = store.actual().unwrap();
        assert_eq!(actual.words, BTreeMap::from([(5, word)]));
        assert_eq!(actual.allow, BTreeMap::from([(key, value)]));
        assert_eq!(actual.addresses, BTreeMap::from([(address("10.0.0.7"), 7), (address("fd00::7"), 7)]));
        assert_eq!(
            actual.cidrs,
            BTreeMap::from([(block("10.1.0.0/16"), 8), (block("0.0.0.0/0"), 9), (block("fd01::/32"), 8)])
        );
        assert_eq!(Vec::from_iter(actual.policies()), [1, 2]);
        assert_eq!(Vec::from_iter(actual.identities()), [7, 8, 9]);
        assert_eq!(Vec::from_iter(actual.port_sets()), [3]);
        assert_eq!(*store.port_set(3).unwrap(), bits);
        let removed = [
            Op::RemoveAllow(key),
            Op::RemoveAllow(key),
            Op::RemoveAddress(address("10.0.0.7")),
            Op::RemoveAddress(address("fd00::7")),
            Op::RemoveAddress(address("fd00::8")),
            Op::RemoveCidr(block("10.1.0.0/16")),
            Op::RemoveCidr(block("0.0.0.0/0")),
            Op::RemoveCidr(block("fd01::/32")),
            Op::RemoveCidr(block("fd01::/33")),
            Op::WritePolicyWord { slot: 5, word: PolicyWord::default() },
        ];
        store.apply(&removed).unwrap();
        assert_eq!(store.actual().unwrap(), Actual::default());
    });
}

#[test]
fn a_policy_word_survives_the_process_that_wrote_it() {
    with_store(|mut store, pins| {
        let word = PolicyWord::new(9, 9, u32::MAX);
        store.apply(&[Op::WritePolicyWord { slot: 127, word }]).unwrap();
        drop(store);
        assert_eq!(KernelStore::open(&pins).unwrap().policy_word(127), Some(word));
    });
}

#[test]
fn the_first_refused_operation_is_named_and_later_ones_are_not_done() {
    with_store(|mut store, _| {
        let allow = |identity| Op::WriteAllow(AllowKey::new(2, identity), AllowValue::default());
        let ops: Vec<Op> = (0..20).map(allow).collect();
        let (index, error) = store.apply(&ops).unwrap_err();
        assert_eq!(store.actual().unwrap().allow.len(), index);
        assert!((8..20).contains(&index), "{index}");
        assert_eq!(error.source.raw_os_error(), Some(libc::E2BIG));
        let (index, error) =
            store.apply(&[allow(0), Op::WritePolicyWord { slot: 128, word: PolicyWord::default() }]).unwrap_err();
        assert_eq!((index, error.map), (1, map::POLICY_WORDS));
        assert!(error.to_string().contains("only 128 slots"), "{error}");
    });
}

#[test]
fn endpoints_are_found_below_and_above_the_array() {
    with_store(|mut store, _| {
        let endpoint = |slot| Endpoint { slot, flags: EndpointFlags::PENDING, ..Endpoint::default() };
        let (near, far) = (capacity::NEAR_IFINDEXES - 1, capacity::NEAR_IFINDEXES);
        store.write_endpoint(near, &endpoint(1)).unwrap();
        store.write_endpoint(far, &endpoint(2)).unwrap();
        assert_eq!(store.endpoints().unwrap(), BTreeMap::from([(near, endpoint(1)), (far, endpoint(2))]));
        for _ in 0..2 {
            store.remove_endpoint(near).unwrap();
            store.remove_endpoint(far).unwrap();
        }
        assert_eq!(store.endpoints().unwrap(), BTreeMap::new());
    });
}

#[test]
fn address_roles_become_what_is_wanted() {
    with_store(|mut store, _| {
        let first = BTreeMap::from([
            (address("10.0.0.1"), AddressRole::OWN),
            (address("10.96.0.1"), AddressRole::SERVICE),
            (address("fe80::1"), AddressRole::OWN),
        ]);
        let second = BTreeMap::from([
            (address("10.0.0.1"), AddressRole::OWN | AddressRole::SERVICE),
            (address("fd00::1"), AddressRole::OWN),
        ]);
        for wanted in [first, second, BTreeMap::new()] {
            store.sync_address_roles(&wanted).unwrap();
            assert_eq!(store.address_roles().unwrap(), wanted);
        }
    });
}

#[test]
fn counters_of_a_slot_that_does_not_exist_are_an_error_and_of_an_idle_one_empty() {
    with_store(|store, _| {
        assert_eq!(store.counters(127).unwrap(), SlotCounters::new());
        assert!(store.counters(128).is_err());
        assert_eq!(store.events_lost().unwrap(), 0);
    });
}
