//! The decision on packet bytes, on the host: every scene, and that together they show every reason.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::abi::Reason;
use netpol_tests::packet::cases;
use netpol_tests::packet::cast::Family;

#[test]
fn every_scene_plays_as_written() {
    let mut failed = Vec::new();
    let mut played = 0;
    for case in cases::wanted().unwrap() {
        for family in case.families {
            played += 1;
            if let Err(error) = case.play(*family, None) {
                failed.push(format!("{error:#}"));
            }
        }
    }
    println!("{played} scenes");
    assert!(failed.is_empty(), "{} of {played} scenes:\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn scenes_have_names_of_their_own() {
    let cases = cases::all();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
}

/// Reasons that one family alone can have.
const OF_ONE_FAMILY: [(Reason, Family); 1] = [(Reason::UnknownExtensionHeader, Family::V6)];
/// Reasons that are counted beside a packet's own: tests of budgets show them.
const BESIDE_ANOTHER: [Reason; 1] = [Reason::FlowEvicted];

#[test]
fn the_scenes_show_every_reason_in_each_family() {
    let mut seen: BTreeMap<Family, BTreeSet<Reason>> = BTreeMap::new();
    for case in cases::all() {
        for family in case.families {
            seen.entry(*family).or_default().extend(case.play(*family, None).unwrap_or_default());
        }
    }
    for family in Family::BOTH {
        let expected: BTreeSet<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| !BESIDE_ANOTHER.contains(reason))
            .filter(|reason| OF_ONE_FAMILY.iter().all(|(other, of)| other != reason || *of == family))
            .collect();
        assert_eq!(seen.remove(&family).unwrap(), expected, "{family}");
    }
}
