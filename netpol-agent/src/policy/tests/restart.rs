//! A restarted agent takes over maps with the numbers of an earlier run: traffic must not notice.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::generated::{Action, config, history, judged_questions, questions};
use super::node::{Maps, Node, passes, pod, pods, policy, rule, slots, tcp, tcp_named};
use crate::cluster::model::{ClusterEvent, Object, PodKey};
use crate::datapath::apply::{Applier, Fallback, OnFailure};
use crate::datapath::desired::Touched;
use crate::policy::{Compiler, Limits};

fn play(history: Vec<Action>) -> (Node, BTreeMap<u16, PodKey>) {
    let (mut node, mut local) = (Node::new(Limits::default()), BTreeMap::new());
    for action in history {
        match action {
            Action::Event(event) => node.compiler.apply(event),
            Action::Local(slots) => {
                local = slots.clone();
                node.compiler.set_local(slots);
            }
            Action::Settle => node.settle(),
        }
    }
    (node, local)
}

/// Compiles all there is before the maps are touched, as an agent does at its start.
fn compile_all(node: &mut Node) -> Touched {
    let mut touched = Touched::default();
    while let Some(step) = node.compiler.next_step() {
        touched.extend(&step.touched);
        node.compiler.applied(false);
    }
    touched
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn a_restart_changes_no_answer_at_any_moment(history in history(15)) {
        let (before, local) = play(history);
        let mut node = before.restarted(&local);
        let touched = compile_all(&mut node);
        let operations = node.applier.plan(node.compiler.desired(), &touched).operations().count();
        let (applier, maps) = (node.applier.clone(), node.maps.clone());
        node.maps.history = Some(Vec::new());
        prop_assert!(node.carry_out(&touched).complete);
        node.settle();
        let history = node.maps.history.take().unwrap();
        for number in 0..operations {
            let (applier, at) = (applier.clone(), maps.done + number);
            let maps = Maps { fail: vec![(at, at + 1)], ..maps.clone() };
            fail_once(&before, Node { compiler: before.restarted(&local).compiler, applier, maps }, true)?;
        }
        for question in questions().iter().filter(|question| local.contains_key(&question.slot)) {
            let old = passes(&before.maps.now, question);
            prop_assert!(history.iter().all(|maps| passes(maps, question) == old), "{question:?} was {old}");
        }
        let entries = node.compiler.desired().tables.allow_entries().count();
        prop_assert_eq!(node.maps.now.tables.allow_entries().count(), entries);
    }

    #[test]
    fn what_changed_while_the_agent_was_away_opens_nothing_on_the_way(
        history in history(10), meanwhile in history(10)
    ) {
        let (mut before, local) = play(history);
        let maps = before.maps.clone();
        for action in meanwhile {
            if let Action::Event(event) = action {
                before.compiler.apply(event);
            }
        }
        before.settle();
        before.maps = maps;
        let mut node = before.restarted(&local);
        let touched = compile_all(&mut node);
        let fail_at = (node.applier.clone(), node.maps.clone());
        node.maps.history = Some(Vec::new());
        let operations = node.applier.plan(node.compiler.desired(), &touched).operations().count();
        prop_assert!(node.carry_out(&touched).complete);
        node.settle();
        let history = node.maps.history.take().unwrap();
        let provenance = node.compiler.provenance();
        let asked = judged_questions((before.compiler.state(), &provenance), &node.compiler);
        for question in asked.iter().filter(|question| local.contains_key(&question.slot)) {
            let (old, new) = (passes(&before.maps.now, question), passes(&node.maps.now, question));
            prop_assert_eq!(new, node.judged(&local, question));
            for maps in &history {
                prop_assert!(!passes(maps, question) || old || new, "{:?} passed for a moment", question);
            }
            prop_assert!(!old || new || before.revision(question.slot) != node.revision(question.slot));
        }
        for number in (0..operations).step_by(1 + operations / 12) {
            let (applier, maps) = (fail_at.0.clone(), fail_at.1.clone());
            let at = maps.done + number;
            let failing = Maps { fail: vec![(at, at + 1)], ..maps };
            fail_once(&before, Node { compiler: before.restarted(&local).compiler, applier, maps: failing }, false)?;
        }
    }
}

/// One failing apply right after a restart, then one that succeeds.
fn fail_once(before: &Node, mut node: Node, unchanged: bool) -> Result<(), TestCaseError> {
    let touched = compile_all(&mut node);
    let outcome = node.carry_out(&touched);
    let failed = node.maps.now.clone();
    node.maps.fail.clear();
    let healed = node.carry_out(&Touched::default());
    prop_assert!(healed.complete, "{:?}", healed);
    node.settle();
    let provenance = node.compiler.provenance();
    for question in judged_questions((before.compiler.state(), &provenance), &node.compiler) {
        let [old, now, new] = [&before.maps.now, &failed, &node.maps.now].map(|maps| passes(maps, &question));
        prop_assert!(!now || old || new, "{:?} passes, by neither the old nor the new policy", question);
        let stuck = outcome.slots.get(&(question.slot, question.direction)) == Some(&Fallback::Stuck);
        let fallback = outcome.slots.get(&(question.slot, question.direction));
        let unmoved = outcome.removed.contains(&question.peer) || outcome.stale.contains(&question.peer);
        let excused = unmoved || fallback == Some(&Fallback::Denied);
        // If the cluster changed meanwhile, what old numbers say of a new identity is what all its addresses share.
        prop_assert!(now || !old || !new || excused || !unchanged, "{:?} is cut for nothing: {:?}", question, outcome);
        prop_assert!(!now || new || stuck, "{:?} still passes, and nobody said so: {:?}", question, outcome);
    }
    Ok(())
}

#[test]
fn a_restart_uses_none_of_the_numbers_in_the_maps_until_they_are_gone() {
    let objects = vec![
        Object::Pod(pod("x/web", "10.0.0.1", "app=web")),
        Object::Pod(pod("x/peer", "10.0.0.2", "role=peer")),
        policy("x/web", "app=web", Some(vec![rule(pods("role=peer"), tcp(80, 81))]), None),
    ];
    let first = Node::with(objects, &["x/web"]);
    let local = slots(&["x/web"]);
    let mut node = first.restarted(&local);
    let touched = compile_all(&mut node);
    let (old, new) = (first.maps.now.numbers(), node.compiler.desired().tables.clone());
    assert!(new.allow.keys().all(|policy| !old.policies.contains(policy)));
    assert!(new.addresses.values().all(|identity| !old.identities.contains(identity)));
    assert!(new.port_sets.keys().all(|number| !old.port_sets.contains(number)));
    assert!(node.carry_out(&touched).complete);
    node.settle();
    assert!(node.revision(1) > first.revision(1));
    assert!(node.ingress(1, "10.0.0.2", 81));
}

#[test]
fn a_slot_that_nobody_has_after_a_restart_is_closed() {
    let first = Node::with(vec![Object::Pod(pod("x/web", "10.0.0.1", ""))], &["x/web"]);
    assert!(first.ingress(1, "192.0.2.1", 80) || first.maps.now.words.is_empty());
    let mut first = first;
    first.put(policy("x/p", "", Some(vec![rule(pods(""), tcp_named("http"))]), None));
    let mut node = first.restarted(&BTreeMap::new());
    let touched = compile_all(&mut node);
    assert!(node.carry_out(&touched).complete);
    assert!(!node.ingress(1, "10.0.0.1", 80) && node.maps.now.tables.allow_entries().count() == 0);
}

#[test]
fn a_full_allow_map_is_emptied_of_what_no_slot_has_even_if_the_rest_fails() {
    let objects = vec![
        Object::Pod(pod("x/web", "10.0.0.1", "app=web")),
        Object::Pod(pod("x/peer", "10.0.0.2", "role=peer")),
        policy("x/web", "app=web", Some(vec![rule(pods("role=peer"), tcp(80, 80))]), None),
    ];
    let first = Node::with(objects, &["x/web"]);
    let installed = first.maps.now.clone();
    let mut node = Node {
        compiler: Compiler::new(Limits::default(), installed.numbers()),
        applier: Applier::new(installed, OnFailure::Deny),
        maps: first.maps,
    };
    node.compiler.apply(ClusterEvent::Apply(Object::Pod(pod("x/web", "10.0.0.1", "app=web"))));
    node.compiler.apply(ClusterEvent::Apply(policy("x/web", "app=web", Some(vec![rule(pods(""), tcp(81, 81))]), None)));
    node.compiler.set_local(slots(&["x/web"]));
    let touched = compile_all(&mut node);
    node.maps.broken = Some(|op| matches!(op, crate::datapath::plan::Op::WriteAllow(..)));
    let outcome = node.carry_out(&touched);
    assert_eq!(outcome.slots.values().collect::<Vec<_>>(), [&Fallback::Denied]);
    assert_eq!(node.maps.now.tables.allow_entries().count(), 0);
}
