//! The conformance suites without packets on wires and without root: every case of every suite, under every address plan.

use std::path::PathBuf;

use netpol_tests::npconf::{Action, Suite};
use netpol_tests::oracle::Oracle;
use netpol_tests::oracle::fault::Fault;
use netpol_tests::replay::walk;

/// The suites that hold NetworkPolicy cases.
const SUITES: [&str; 5] = ["cyclonus", "e2e-netpol", "recipes", "extra", "netpol"];

fn suite(name: &str) -> Suite {
    Suite::read(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpora").join(format!("{name}.json"))).unwrap()
}

#[test]
fn the_oracle_agrees_with_every_cell_of_every_suite() {
    for name in SUITES {
        let report = walk(&suite(name), |_, _| true, Oracle::default).unwrap();
        report.require_agreement(name).unwrap();
        println!("{name}: {} cases, {} cells", report.cases, report.compared);
    }
}

/// Nothing may leave the suites unnoticed: a case that is dropped, a table that no longer applies to any plan.
#[test]
fn the_suites_are_as_large_as_they_were() {
    let sizes = SUITES.map(|name| {
        let report = walk(&suite(name), |_, _| true, Oracle::default).unwrap();
        (report.cases, report.compared)
    });
    assert_eq!(sizes, [(173, 333_504), (48, 2_024), (31, 1_844), (46, 3_249), (53, 450)]);
}

/// Connections that differ under each fault: cyclonus under flat4, the others under their IPv4 plans.
const NOTICED: [(Fault, [usize; 5]); 19] = [
];

#[test]
fn each_fault_is_noticed_where_expected() {
    let suites = SUITES.map(suite);
    let found = Fault::ALL.map(|fault| {
        let counts = suites.each_ref().map(|suite| {
            let plans = |_: &_, plan: &str| plan == "flat4" || (suite.suite != "cyclonus" && plan.ends_with('4'));
            let report = walk(suite, plans, || Oracle::with_fault(fault)).unwrap();
            report.differing.iter().filter(|cell| cell.connects_wrongly()).count()
        });
        assert!(counts.iter().sum::<usize>() > 0, "no suite notices {fault:?}");
        (fault, counts)
    });
    assert_eq!(found, NOTICED);
}

/// cluster-network-policy.json waits for its API; its cases need it, all of them.
#[test]
fn the_cluster_network_policy_suite_is_skipped_because_nothing_in_it_is_a_network_policy_case() {
    let suite = suite("cluster-network-policy");
    for case in &suite.cases {
        let mut actions = case.steps.iter().flat_map(|step| &step.actions);
        let needs = |action: &Action| {
            matches!(action, Action::CreateClusterPolicy { .. } | Action::UpdateClusterPolicy { .. })
        };
        assert!(actions.any(needs), "{} can be judged", case.id);
    }
    println!("skipped: {} cases of {}, ClusterNetworkPolicy is not implemented", suite.cases.len(), suite.suite);
}
