//! The conformance suites without packets on wires and without root: every case of every suite, under every address plan.

use netpol_tests::npconf::{Action, Suite};
use netpol_tests::oracle::Oracle;
use netpol_tests::oracle::fault::Fault;
use netpol_tests::replay::walk;
use netpol_tests::replica::Replica;

/// The suites that hold NetworkPolicy cases.
const SUITES: [&str; 6] = ["cyclonus", "e2e-netpol", "recipes", "extra", "netpol", "guides"];

/// Cases and cells of each suite: nothing may leave one unnoticed, neither a case nor a table that applies to no plan.
const SIZES: [(usize, usize); 6] = [(173, 333_504), (48, 2_024), (31, 1_844), (46, 3_249), (53, 450), (37, 554)];

#[test]
fn the_oracle_agrees_with_every_cell_of_every_suite() {
    for (name, size) in SUITES.into_iter().zip(SIZES) {
        let report = walk(&Suite::committed(name).unwrap(), |_, _| true, Oracle::default).unwrap();
        report.require_agreement(name).unwrap();
        assert_eq!((report.cases, report.compared), size, "size of {name}");
    }
}

#[test]
fn the_compiler_and_the_hooks_agree_with_every_cell_of_every_suite() {
    for (name, size) in SUITES.into_iter().zip(SIZES) {
        let report = walk(&Suite::committed(name).unwrap(), |_, _| true, Replica::default).unwrap();
        report.require_agreement(name).unwrap();
        assert_eq!((report.cases, report.compared), size, "size of {name}");
    }
}

/// Connections that differ under each fault: cyclonus under flat4, the others under their IPv4 plans.
const NOTICED: [(Fault, [usize; 6]); 19] = [
    (Fault::EgressNotEnforced, [7146, 42, 63, 59, 28, 46]),
    (Fault::ProtocolIgnored, [3136, 6, 0, 15, 15, 11]),
    (Fault::SctpTakenAsTcp, [112, 4, 0, 6, 2, 0]),
    (Fault::PodSelectorAcrossNamespaces, [80, 8, 20, 10, 7, 9]),
    (Fault::AndAsOr, [919, 18, 11, 12, 7, 4]),
    (Fault::MatchExpressionsIgnored, [1040, 14, 2, 20, 9, 0]),
    (Fault::BlockNotForPods, [314, 8, 0, 22, 16, 5]),
    (Fault::ExceptIgnored, [28, 4, 0, 10, 4, 4]),
    (Fault::EndPortIgnored, [52, 0, 2, 3, 4, 2]),
    (Fault::LongestPrefixShadows, [0, 0, 0, 0, 2, 0]),
    (Fault::NamedPortsOncePerCluster, [0, 0, 0, 8, 9, 0]),
    (Fault::NotInFailsOnAbsentKey, [0, 0, 0, 3, 1, 0]),
    (Fault::EmptyValueIsAbsent, [0, 0, 0, 6, 4, 0]),
    (Fault::PolicyTypesMissingIsIngressOnly, [0, 0, 0, 5, 1, 0]),
    (Fault::PolicyTypesMissingIsBoth, [0, 0, 76, 16, 2, 6]),
    (Fault::EmptyFromIsNobody, [0, 0, 0, 0, 7, 0]),
    (Fault::EmptyPortsIsNone, [0, 0, 0, 4, 4, 0]),
    (Fault::EmptyNamespaceSelectorAdmitsOutsiders, [0, 0, 4, 10, 2, 0]),
    (Fault::OwnNodeNotExempt, [0, 0, 0, 24, 5, 10]),
];

#[test]
fn each_fault_is_noticed_where_expected() {
    let suites = SUITES.map(|name| Suite::committed(name).unwrap());
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
    let suite = Suite::committed("cluster-network-policy").unwrap();
    for case in &suite.cases {
        let mut actions = case.steps.iter().flat_map(|step| &step.actions);
        let needs =
            |action: &Action| matches!(action, Action::CreateClusterPolicy { .. } | Action::UpdateClusterPolicy { .. });
        assert!(actions.any(needs), "{} can be judged", case.id);
    }
    println!("skipped: {} cases of {}, ClusterNetworkPolicy is not implemented", suite.cases.len(), suite.suite);
}
