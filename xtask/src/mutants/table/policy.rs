//! Faults in the meaning of NetworkPolicy: the fault table of `tests/corpora/README.md`, in the compiler.

use super::{Mutant, Suite};

const EVERY_CELL: &str = "the_compiler_and_the_hooks_agree_with_every_cell_of_every_suite";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "egress-not-enforced",
        file: "netpol-agent/src/policy/content.rs",
        original: "Direction::Egress => policy.egress.as_deref(),",
        fault: "Direction::Egress => policy.egress.as_deref().filter(|_| false),",
        suite: Suite::Semantics,
        test: EVERY_CELL,
        why: "an egress policy isolates nobody",
    },
    Mutant {
        name: "x-incremental",
        file: "netpol-agent/src/policy/content.rs",
        original: "Direction::Ingress => policy.ingress.as_deref(),",
        fault: "Direction::Ingress => policy.ingress.as_deref().filter(|_| false),",
        suite: Suite::Agent,
        test: "policy::tests::incremental::the_maps_follow_any_history_and_end_as_if_built_afresh",
        why: "an egress policy isolates nobody",
    },
];
