//! Properties over random clusters and histories. `NETPOL_CASES=20000 cargo test -p netpol-tests --test property` looks harder.

use std::cell::RefCell;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netpol_tests::generate::history::{History, history};
use netpol_tests::generate::{Sharing, scene};
use netpol_tests::judge::Judge;
use netpol_tests::oracle::Oracle;
use netpol_tests::oracle::fault::Fault;
use netpol_tests::property::{first_difference, read_kept, regressions, require, require_agreement, runner};
use netpol_tests::replica::Replica;
use netpol_tests::replica::flows::{Fates, follow};
use proptest::strategy::Strategy;

/// Scenes in which no mistake would show are no test of the compiler.
#[test]
fn random_scenes_show_every_fault() {
    let unseen = RefCell::new(BTreeSet::from(Fault::ALL));
    runner(400)
        .run(&scene(Sharing::Never), |scene| {
            let probes = scene.probes();
            let mut oracle = Oracle::default();
            oracle.change(&scene.objects.creation()).unwrap();
            let verdicts: Vec<_> = probes.iter().map(|probe| oracle.judge(probe)).collect();
            unseen.borrow_mut().retain(|fault| {
                let mut faulty = Oracle::with_fault(*fault);
                faulty.change(&scene.objects.creation()).unwrap();
                probes.iter().zip(&verdicts).all(|(probe, verdict)| faulty.judge(probe) == *verdict)
            });
            Ok(())
        })
        .unwrap();
    assert_eq!(*unseen.borrow(), BTreeSet::new());
}

/// Legal objects only, and both answers often: a judge that always says the same must fail soon.
#[test]
fn random_scenes_are_legal_and_undecided() {
    let counts = RefCell::new((0_usize, 0_usize));
    runner(300)
        .run(&scene(Sharing::Never), |scene| {
            for (_, object) in scene.objects.of("NetworkPolicy") {
                serde_json::from_value::<NetworkPolicy>(object.clone()).unwrap();
            }
            for (_, object) in scene.objects.of("Pod") {
                serde_json::from_value::<Pod>(object.clone()).unwrap();
            }
            let mut oracle = Oracle::default();
            oracle.change(&scene.objects.creation()).unwrap();
            let probes = scene.probes();
            let allowed = probes.iter().filter(|probe| oracle.judge(probe).allowed()).count();
            let mut counts = counts.borrow_mut();
            *counts = (counts.0 + allowed, counts.1 + probes.len());
            Ok(())
        })
        .unwrap();
    let (allowed, all) = *counts.borrow();
    println!("{allowed} of {all} probes are allowed");
    assert!(allowed * 10 > all * 3 && allowed * 10 < all * 8, "{allowed} of {all} probes are allowed");
}

#[test]
fn the_compiler_and_the_hooks_agree_with_the_oracle_on_random_clusters() {
    let scenes = scene(Sharing::Never).prop_map(History::at_once);
    require_agreement("scene", 500, scenes, Replica::default).unwrap();
}

#[test]
fn after_any_history_the_compiler_agrees_with_the_oracle_of_the_end_state() {
    require_agreement("history", 400, history(), Replica::default).unwrap();
}

/// What only one of two live pods with one address may do, nobody at that address may.
#[test]
fn an_address_that_two_live_pods_claim_gets_what_both_have() {
    let scenes = scene(Sharing::Sometimes).prop_map(History::at_once);
    require_agreement("shared-address", 300, scenes, Replica::default).unwrap();
}

/// Open connections are judged anew in both directions when policy changes, and only then do they notice.
#[test]
fn connections_follow_policy_through_any_history() {
    let all = RefCell::new(Fates::default());
    let property = |history: &History| {
        let fates = follow(history)?;
        let mut all = all.borrow_mut();
        *all = Fates {
            opened: all.opened + fates.opened,
            went_on: all.went_on + fates.went_on,
            stopped: all.stopped + fates.stopped,
            resumed: all.resumed + fates.resumed,
        };
        Ok(())
    };
    require("flows", 200, history(), property).unwrap();
    let all = *all.borrow();
    println!("{all:?}");
    assert!(all.opened > all.stopped && all.stopped > all.resumed && all.resumed > 0, "{all:?}");
}

#[test]
fn every_kept_failure_stays_fixed() {
    let kept = std::fs::read_dir(regressions()).unwrap().map(|entry| entry.unwrap().path());
    for path in kept.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        let history = read_kept(&path).unwrap();
        let found = first_difference(&history, &mut Replica::default()).unwrap();
        assert!(found.is_none(), "{}: {found:?}", path.display());
        // Two pods with one address would take each other's packets for their own.
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shared-address")) {
            follow(&history).unwrap();
        }
    }
}
