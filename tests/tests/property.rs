//! Properties over random clusters and histories. `NETPOL_CASES=20000 cargo test -p netpol-tests --test property` looks harder.

use std::cell::RefCell;
use std::collections::BTreeSet;

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
