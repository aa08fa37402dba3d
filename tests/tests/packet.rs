//! The same packets through the BPF programs and through the decision on the host. Needs root and the built object:
//! `cargo xtask test packet`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use netpol_agent::datapath::loader::default_config;
use netpol_common::abi::{Config, Endpoint, Hook};
use netpol_common::classify::Frame;
use netpol_tests::frame::datagram::{Datagram, Transport, flag};
use netpol_tests::packet::cases::wanted;
use netpol_tests::packet::cast::{self, Cast, Family, Isolation};
use netpol_tests::packet::kernel::Kernel;
use netpol_tests::packet::mutate::steps;
use netpol_tests::packet::play::Play;
use netpol_tests::packet::privilege::object_or_skip;
use netpol_tests::property::{cases, runner};
use proptest::test_runner::TestCaseError;

#[test]
fn every_scene_plays_alike_in_the_kernel() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let defaults = default_config().unwrap();
    let mut kernels: BTreeMap<u32, Kernel> = BTreeMap::new();
    let (mut failed, mut played, mut left_out) = (Vec::new(), 0, BTreeMap::new());
    for case in wanted().unwrap() {
        if let Some(why) = case.host_only {
            left_out.insert(case.name, why);
            continue;
        }
        let kernel = kernels.entry(case.flags).or_insert_with(|| {
            Kernel::load(&object, case.config(defaults)).unwrap_or_else(|error| panic!("{error:?}"))
        });
        for family in case.families {
            played += 1;
            if let Err(error) = case.play(*family, Some(kernel)) {
                failed.push(format!("{error:#}"));
            }
        }
    }
    println!("{played} scenes; left out: {left_out:#?}");
    assert!(failed.is_empty(), "{} of {played} scenes:\n{}", failed.len(), failed.join("\n\n"));
}

/// Whatever else may be wrong with them.
#[test]
fn the_kernel_takes_the_programs() {
    let Some(object) = object_or_skip().unwrap() else { return };
    Kernel::load(&object, default_config().unwrap()).unwrap();
}

/// Losing the policy must not mean that there is none.
#[test]
fn a_slot_that_the_policy_table_lacks_is_denied_everything() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let mut kernel = Kernel::load(&object, default_config().unwrap()).unwrap();
    let cast = Cast::of(Family::V4);
    kernel.reset(&cast.tables(kernel.config())).unwrap();
    let syn = |source, destination| {
        Datagram::new(source, destination, Transport::Tcp { ports: [40_000, cast::WEB], flags: flag::SYN })
    };
    let plain = Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false };
    let known = cast::endpoint();
    let unknown = Endpoint { slot: 300, ..known };
    for (endpoint, passes) in [(known, true), (unknown, false)] {
        kernel.set_subject(endpoint, Isolation::Free.word(1)).unwrap();
        let sent = syn(cast.pod, cast.client).frame(cast::POD_MAC, cast::BRIDGE_MAC).unwrap();
        assert_eq!(kernel.run(Hook::FromPod, &sent, &plain).unwrap().passed(), passes);
        let got = syn(cast.client, cast.pod).frame(cast::BRIDGE_MAC, cast::POD_MAC).unwrap();
        assert_eq!(kernel.run(Hook::ToPod, &got, &plain).unwrap().passed(), passes);
    }
}

/// Almost valid frames, policy changes and time between them: whatever the host makes of it, the programs make of it.
#[test]
fn random_scenes_play_alike_in_the_kernel() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let defaults = default_config().unwrap();
    for (flags, share) in [(0, 4), (Config::STRICT_TCP | Config::ENFORCE_OWN_NODE, 1), (Config::ANY_SOURCE, 1)] {
        let config = Config { flags, event_interval: 0, events_per_second: u32::MAX, ..defaults };
        let kernel = RefCell::new(Kernel::load(&object, config).unwrap());
        for family in Family::BOTH {
            runner(cases(60) * share / 4)
                .run(&steps(family, 40), |steps| {
                    let mut kernel = kernel.borrow_mut();
                    let mut play = Play::new(family, config, Some(&mut kernel)).unwrap();
                    for step in steps {
                        step.run(&mut play).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
                    }
                    Ok(())
                })
                .unwrap();
        }
    }
}
