//! Properties over random clusters and histories. `NETPOL_CASES=20000 cargo test -p netpol-tests --test property` looks harder.

use std::cell::RefCell;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netpol_tests::generate::{Sharing, scene};
use netpol_tests::judge::Judge;
use netpol_tests::oracle::Oracle;
use netpol_tests::oracle::fault::Fault;
use netpol_tests::property::runner;

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
