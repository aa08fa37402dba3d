//! Faults in who is behind which interface.

use super::{Mutant, Suite};

const ENDPOINTS: &str = "netpol-agent/src/endpoints.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "first-of-two-pods-behind-an-interface",
        file: ENDPOINTS,
        original: "[pod] if bound.insert(pod.key.clone()) => Some(pod.clone()),",
        fault: "[pod, ..] if bound.insert(pod.key.clone()) => Some(pod.clone()),",
        suite: Suite::Agent,
        test: "endpoints::tests::an_interface_with_two_pods_behind_it_is_nobodys",
        why: "a pod is held to another's policy",
    },
    Mutant {
        name: "pod-behind-two-interfaces",
        file: ENDPOINTS,
        original: "[pod] if bound.insert(pod.key.clone()) => Some(pod.clone()),",
        fault: "[pod] => {
                    bound.insert(pod.key.clone());
                    Some(pod.clone())
                }",
        suite: Suite::Agent,
        test: "endpoints::tests::a_pod_is_behind_one_interface_only_and_what_was_found_goes_first",
        why: "a pod's old interface keeps its rights",
    },
    Mutant {
        name: "memory-goes-before-what-was-found",
        file: ENDPOINTS,
        original: "(interface.addresses.is_empty(), interface.ifindex)",
        fault: "interface.ifindex",
        suite: Suite::Agent,
        test: "endpoints::tests::a_pod_is_behind_one_interface_only_and_what_was_found_goes_first",
        why: "a pod that came back is not enforced while its old interface lingers",
    },
    Mutant {
        name: "slot-comes-again-at-once",
        file: ENDPOINTS,
        original: "self.next = if slot + 1 < self.slots { slot + 1 } else { 1 };",
        fault: "",
        suite: Suite::Agent,
        test: "endpoints::tests::a_freed_slot_comes_again_only_after_all_others",
        why: "a new pod finds the flows of the one before",
    },
    Mutant {
        name: "unknown-interface-passes",
        file: ENDPOINTS,
        original: "let pending_flag = if hold_pending {",
        fault: "let pending_flag = if !hold_pending {",
        suite: Suite::Agent,
        test: "endpoints::tests::an_interface_is_held_until_pod_and_mac_are_known",
        why: "a pod talks freely until somebody knows it",
    },
    Mutant {
        name: "restart-forgets-whose-interface-it-is",
        file: ENDPOINTS,
        original: "(_, _, Some(local)) => local.endpoint,",
        fault: "(_, _, Some(local)) if local.slot == 0 => local.endpoint,",
        suite: Suite::Agent,
        test: "endpoints::tests::what_an_earlier_agent_left_stays_until_the_pod_is_found_again",
        why: "a restart cuts every pod until its address is heard of",
    },
    Mutant {
        name: "only-the-address-that-was-found",
        file: ENDPOINTS,
        original: "endpoint.flags |= EndpointFlags::HAS_V6;",
        fault: "endpoint.flags |= EndpointFlags::HAS_V4;",
        suite: Suite::Agent,
        test: "endpoints::tests::a_pod_is_found_by_one_address_and_has_all_that_it_declares",
        why: "a dual-stack pod has no IPv6",
    },
];
