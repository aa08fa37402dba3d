//! The same packets through the BPF programs and through the decision on the host. Needs root and the built object:
//! `cargo xtask test packet`.

use std::collections::BTreeMap;

use netpol_agent::datapath::loader::default_config;
use netpol_tests::packet::cases;
use netpol_tests::packet::kernel::Kernel;
use netpol_tests::packet::privilege::object_or_skip;

#[test]
fn every_scene_plays_alike_in_the_kernel() {
    let Some(object) = object_or_skip().unwrap() else { return };
    let defaults = default_config().unwrap();
    let mut kernels: BTreeMap<u32, Kernel> = BTreeMap::new();
    let (mut failed, mut played, mut left_out) = (Vec::new(), 0, BTreeMap::new());
    for case in cases::all() {
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
