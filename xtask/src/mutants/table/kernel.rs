//! Faults that only the kernel shows: in the two adapters of the BPF object, and in how the agent drives it.

use super::{Mutant, Suite};

const TABLES: &str = "netpol-ebpf/src/tables.rs";
const MAIN: &str = "netpol-ebpf/src/main.rs";
const ENFORCER: &str = "netpol-agent/src/enforcer.rs";
const ROLES: &str = "netpol-agent/src/enforcer/roles.rs";
const CHURN: &str = "allowed_traffic_loses_nothing_and_denied_traffic_gains_nothing_while_labels_and_policies_change";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "bpf-pod-addresses-not-asked",
        file: TABLES,
        original: "if let Some(identity) = unsafe { A::identities().get(address) } {",
        fault: "if let Some(identity) = unsafe { A::identities().get(address) }.filter(|_| false) {",
        suite: Suite::Packet,
        test: "each_protocol_has_its_own_ports",
        why: "no pod is a peer by its labels",
    },
    Mutant {
        name: "bpf-prefix-cut-short",
        file: TABLES,
        original: "A::cidrs().get(Key::new(A::BITS, *address))",
        fault: "A::cidrs().get(Key::new(A::BITS / 4, *address))",
        suite: Suite::Packet,
        test: "a_block_is_asked_when_no_address_matches_and_the_narrowest_prefix_wins",
        why: "exceptions of a block are open",
    },
    Mutant {
        name: "bpf-port-bits-reversed",
        file: TABLES,
        original: "byte >> (port & 7) & 1 == 1",
        fault: "byte >> (7 - (port & 7)) & 1 == 1",
        suite: Suite::Packet,
        test: "ports_at_both_ends_of_the_range_have_their_bits",
        why: "other ports are open than the agent wrote",
    },
    Mutant {
        name: "bpf-unanswered-flows-not-found",
        file: TABLES,
        original: "let handle = A::Unanswered::table().get_ptr_mut(key)?;",
        fault: "let handle = A::Unanswered::table().get_ptr_mut(key).filter(|_| false)?;",
        suite: Suite::Packet,
        test: "one_entry_serves_both_directions",
        why: "no reply is let in",
    },
    Mutant {
        name: "bpf-promoted-to-nowhere",
        file: TABLES,
        original: "if !add_flow::<A::Flows>(self.skb, key, key.slot, flow) {",
        fault: "if flow.last_seen == 1 && !add_flow::<A::Flows>(self.skb, key, key.slot, flow) {",
        suite: Suite::Packet,
        test: "any_other_flow_is_settled_by_its_first_reply",
        why: "a flow is forgotten with its first reply",
    },
    Mutant {
        name: "bpf-flow-word-not-written",
        file: TABLES,
        original: "if flow.word.0 != found.flow.word.0 {",
        fault: "if flow.word.0 == 1 {",
        suite: Suite::Packet,
        test: "the_client_is_quiet_while_its_server_pushes",
        why: "a flow is judged again with every packet, and never known as revoked",
    },
    Mutant {
        name: "bpf-foreign-mark-wiped",
        file: TABLES,
        original: "skb.set_mark(mark().write(skb.mark(), sender));",
        fault: "skb.set_mark(mark().write(skb.mark() & 0, sender));",
        suite: Suite::Packet,
        test: "every_packet_of_a_pod_carries_its_slot",
        why: "kube-proxy's and other agents' marks are lost",
    },
    Mutant {
        name: "bpf-any-interface-is-the-host-stack",
        file: MAIN,
        original: "from_host_stack: skb.ingress_ifindex() == 0",
        fault: "from_host_stack: skb.ingress_ifindex() < 100_000",
        suite: Suite::Packet,
        test: "only_all_three_conditions_make_a_packet_the_nodes",
        why: "who forges the node's address reaches every pod",
    },
    Mutant {
        name: "bpf-drops-pass",
        file: MAIN,
        original: "if decision.reason.is_drop() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }",
        fault: "if decision.reason.is_drop() && policy.0 == 0 { TC_ACT_SHOT } else { TC_ACT_UNSPEC }",
        suite: Suite::Packet,
        test: "a_syn_that_policy_does_not_allow_leaves_nothing",
        why: "nothing is enforced, and everything is reported as if it were",
    },
    Mutant {
        name: "bpf-counted-for-another-slot",
        file: MAIN,
        original: "CounterIndex::new(decision.slot, decision.direction, decision.reason));
    log_decision(ctx, hook, decision);",
        fault: "CounterIndex::new(decision.slot ^ 1, decision.direction, decision.reason));
    log_decision(ctx, hook, decision);",
        suite: Suite::Packet,
        test: "each_protocol_has_its_own_ports",
        why: "drops are counted for another pod",
    },
    Mutant {
        name: "bpf-missing-policy-word-is-no-policy",
        file: TABLES,
        original: "None => PolicyWord::new(POLICY_DENY, POLICY_DENY, 0),",
        fault: "None => PolicyWord::default(),",
        suite: Suite::PacketWhole,
        test: "a_slot_that_the_policy_table_lacks_is_denied_everything",
        why: "a pod beyond the table has no policy",
    },
    Mutant {
        name: "hooks-swapped",
        file: "netpol-agent/src/datapath/attach.rs",
        original: "sys::tcx_attach_first(self.programs.at(hook).fd.as_fd(), ifindex, hook)",
        fault: "sys::tcx_attach_first(self.programs.at(HOOKS[0]).fd.as_fd(), ifindex, hook)",
        suite: Suite::NetnsChurn,
        test: CHURN,
        why: "one direction is judged twice and the other never",
    },
    Mutant {
        name: "own-addresses-not-told",
        file: ROLES,
        original: "let roles = services::address_roles(self.compiler.state(), &view.own_addresses);",
        fault: "let roles = services::address_roles(self.compiler.state(), &std::collections::BTreeSet::new());",
        suite: Suite::NetnsShop,
        test: "the_shop_is_reached_as_its_policies_say_in_both_families",
        why: "the kubelet's probes fail",
    },
    Mutant {
        name: "start-in-steps",
        file: ENFORCER,
        original: "while let Some(step) = self.compiler.next_step() {",
        fault: "while let Some(step) = false.then(|| self.compiler.next_step()).flatten() {",
        suite: Suite::NetnsChurn,
        test: CHURN,
        why: "a restart replaces an earlier agent's policy before it has compiled its own: packets are lost",
    },
    Mutant {
        name: "sync-answers-before-enforcing",
        file: "netpol-agent/src/pipeline.rs",
        original: "                self.take(changes);
                if self.begun {
                    self.settle().await;",
        fault: "                self.take(changes);
                if self.begun {",
        suite: Suite::NetnsShop,
        test: "a_server_with_free_egress_does_not_become_the_client_of_its_revoked_client",
        why: "who waits for `sync` is told that a policy is in force that is not",
    },
    Mutant {
        name: "policies-behind-a-drop-not-named",
        file: "netpol-agent/src/flow/enrich.rs",
        original: "policies: explanation.as_ref().map(|it| it.isolated_by.clone()).unwrap_or_default(),",
        fault: "policies: Vec::new(),",
        suite: Suite::NetnsShop,
        test: "a_denied_attempt_is_reported_with_names_and_counted_once_a_packet",
        why: "nobody knows which policy dropped a packet",
    },
];
