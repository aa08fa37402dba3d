use aya::maps::{Array, HashMap, MapData};
use netpol_common::abi::{POLICY_FIRST, layout};

use super::*;
use crate::datapath::loader::{LoadOptions, default_config, open};
use crate::testing::{Sandbox, has_object, in_sandbox, ip};

/// An endpoint of a later layout: the fields that all have, and some more.
type LaterEndpoint = [u8; ENDPOINT_PREFIX + 8];

fn options(sandbox: &Sandbox) -> LoadOptions {
    let sizing = Sizing { slots: 16, ..Sizing::default() };
    LoadOptions { bpffs: sandbox.bpffs.clone(), config: default_config().unwrap(), sizing }
}

fn later(pins: &PinDir, name: &str) -> std::path::PathBuf {
    pins.maps().join(format!("{name}-v{}", layout(name) + 1))
}

fn endpoint_of(slot: u16, flags: u16) -> Endpoint {
    Endpoint { slot, flags, ..Endpoint::default() }
}

#[test]
fn revisions_wrap_around() {
    assert_eq!((newer(2, 1), newer(1, 2), newer(0, u32::MAX), newer(u32::MAX, 0)), (2, 2, 0, 0));
}

#[test]
fn a_slot_goes_on_after_the_newest_revision_and_a_new_one_is_closed() {
    let word = |revision| PolicyWord::new(POLICY_FIRST, 0, revision);
    assert_eq!(carried(word(7), 6), None);
    // Equal ones may stand for different policies.
    assert_eq!(carried(word(7), 7), Some(word(8)));
    assert_eq!(carried(word(7), 9), Some(word(10)));
    assert_eq!(carried(word(0), u32::MAX), None);
    let closed = PolicyWord::new(POLICY_DENY, POLICY_DENY, 8);
    assert_eq!(carried(PolicyWord::default(), 7), Some(closed));
    assert_eq!(carried(PolicyWord::default(), 0x9000_0000).map(PolicyWord::revision), Some(0x9000_0001));
}

#[test]
fn of_an_interface_only_what_nobody_disputes_is_believed() {
    let pending = EndpointFlags::PENDING;
    let said = BTreeMap::from([
        (7, vec![endpoint_of(1, 0), endpoint_of(1, pending)]),
        (8, vec![endpoint_of(2, 0), endpoint_of(3, 0)]),
        (9, vec![endpoint_of(3, 0)]),
        (10, vec![]),
        (11, vec![endpoint_of(4, 0)]),
        (12, vec![endpoint_of(4, 0)]),
        // Nobody else has either slot, and still one of both words is wrong.
        (13, vec![endpoint_of(5, 0), endpoint_of(6, 0)]),
    ]);
    assert_eq!(agreed(said), BTreeMap::from([(7, endpoint_of(1, 0))]));
}

#[test]
fn slots_and_revisions_of_a_later_version_carry_over_and_its_maps_go_at_the_end() {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        let mut words = Array::<MapData, [u64; 2]>::create(32, 0).unwrap();
        words.set(3, [PolicyWord::new(9, 9, 41).0, 77], 0).unwrap();
        words.pin(later(&pins, map::POLICY_WORDS)).unwrap();
        let mut near = Array::<MapData, LaterEndpoint>::create(16, 0).unwrap();
        let mut far = HashMap::<MapData, u32, LaterEndpoint>::create(16, 0).unwrap();
        let mut value = [0xff; ENDPOINT_PREFIX + 8];
        value[..2].copy_from_slice(&3_u16.to_ne_bytes());
        value[2..4].copy_from_slice(&EndpointFlags::HAS_V4.to_ne_bytes());
        value[12..16].copy_from_slice(&[10, 0, 0, 1]);
        near.set(7, value, 0).unwrap();
        far.insert(70_000, value, 0).unwrap();
        near.pin(later(&pins, map::ENDPOINTS)).unwrap();
        far.pin(later(&pins, map::ENDPOINTS_FAR)).unwrap();

        let mut datapath = open(&options(sandbox)).unwrap();
        assert!(datapath.adopted);
        assert_eq!((datapath.sizing.slots, datapath.store.slots()), (32, 32));
        let closed = PolicyWord::new(POLICY_DENY, POLICY_DENY, 42);
        assert_eq!(datapath.store.policy_word(3), Some(closed));
        assert_eq!(datapath.store.policy_word(4), Some(PolicyWord::default()));
        for ifindex in [7, 70_000] {
            let [found] = datapath.others.endpoints(ifindex).unwrap().try_into().unwrap();
            assert_eq!((found.slot, found.flags), (3, EndpointFlags::HAS_V4));
            assert_eq!(found.ipv4, V4::from_octets([10, 0, 0, 1]));
            assert_eq!(found.mac, Mac::from_octets([0xff; 6]));
        }
        assert_eq!(datapath.others.endpoints(8).unwrap(), []);
        // No interface of that index has a program of ours: nothing is believed.
        let hooks = Hooks::new(datapath.programs, datapath.pins, crate::datapath::attach::AttachMode::Auto);
        ip("link add veth0 index 7 type veth peer name peer0");
        assert_eq!(left(&mut datapath.store, &datapath.others, &hooks).unwrap(), Left::default());
        datapath.others.remove().unwrap();
        assert!(Others::find(&pins).unwrap().is_empty());
        assert!(pins.map(map::POLICY_WORDS).exists());
    });
}

#[test]
fn an_entry_counts_only_where_a_program_of_ours_is_live() {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        ip("link add veth0 index 7 type veth peer name peer0");
        let mut first = open(&options(sandbox)).unwrap();
        let mut hooks = Hooks::new(first.programs, first.pins, crate::datapath::attach::AttachMode::Auto);
        first.store.write_endpoint(7, &endpoint_of(1, 0)).unwrap();
        hooks.attach(7, crate::datapath::attach::Role::Pod).unwrap();
        let expected = Left {
            endpoints: BTreeMap::from([(7, endpoint_of(1, 0))]),
            live: BTreeSet::from([7]),
            freed: BTreeSet::new(),
        };
        assert_eq!(left(&mut first.store, &first.others, &hooks).unwrap(), expected);
        // Another pod's interface with the same index.
        ip("link del veth0");
        ip("link add veth0 index 7 type veth peer name peer0");
        let expected = Left { freed: BTreeSet::from([1]), ..Left::default() };
        assert_eq!(left(&mut first.store, &first.others, &hooks).unwrap(), expected);
        assert_eq!(first.store.endpoint(7).unwrap(), None);
    });
}

#[test]
fn a_loss_of_flows_is_said_once() {
    in_sandbox(|sandbox| {
        let pins = PinDir::create(&sandbox.bpffs).unwrap();
        let pin = |path: std::path::PathBuf| Array::<MapData, u32>::create(1, 0).unwrap().pin(path).unwrap();
        for name in [map::FLOWS_V4, map::FLOWS_V6, map::ENDPOINTS] {
            pin(later(&pins, name));
        }
        let [loss] = Others::find(&pins).unwrap().losses().try_into().unwrap();
        assert!(loss.contains("no open connection is known"), "{loss}");
        for name in [map::FLOWS_V4, map::FLOWS_V6] {
            pin(pins.map(name));
        }
        assert_eq!(Others::find(&pins).unwrap().losses(), [""; 0]);
    });
}
