//! Applies that fail at every operation of random plans: nothing opens, what closes is said, and the next apply heals it.

use std::collections::BTreeMap;

use netpol_common::abi::Direction;
use proptest::prelude::*;

use super::generated::{Action, config, history, judged_questions, questions};
use super::judge::Question;
use super::node::{Maps, Node, key, passes, pod, pods, policy, rule, tcp};
use crate::cluster::model::{ClusterEvent, Object, Protocol};
use crate::datapath::apply::{Applier, Fallback, OnFailure, Outcome};
use crate::datapath::desired::{DesiredDatapath, Touched};
use crate::datapath::installed::Installed;
use crate::datapath::plan::Op;
use crate::policy::Limits;

/// One apply that met failures, with the states around it.
struct Attempt<'a> {
    before: &'a Installed,
    after: &'a Installed,
    now: &'a Installed,
    outcome: &'a Outcome,
}

impl Attempt<'_> {
    fn check(&self, question: &Question, on_failure: OnFailure) -> Result<(), TestCaseError> {
        let [old, new, now] = [self.before, self.after, self.now].map(|maps| passes(maps, question));
        let fallback = self.outcome.slots.get(&(question.slot, question.direction));
        prop_assert!(!now || old || new, "{question:?} passes, by neither the old nor the new policy");
        if on_failure == OnFailure::Deny {
            let stuck = fallback == Some(&Fallback::Stuck);
            prop_assert!(!now || new || stuck, "{question:?} still passes, and nobody said so: {:?}", self.outcome);
            let revision = |maps: &Installed| maps.word(question.slot).revision();
            let seen = revision(self.before) != revision(self.now);
            prop_assert!(!old || new || seen || stuck, "open connections of {question:?} go on: {:?}", self.outcome);
        }
        let unmoved = self.outcome.removed.contains(&question.peer) || self.outcome.stale.contains(&question.peer);
        let excused = fallback == Some(&Fallback::Denied) || unmoved;
        prop_assert!(now || !old || !new || excused, "{question:?} is cut for nothing: {:?}", self.outcome);
        Ok(())
    }
}

/// A step that is to be carried out in several ways.
struct Trial<'a> {
    applier: Applier,
    desired: &'a DesiredDatapath,
    touched: &'a Touched,
    before: &'a Installed,
    after: &'a Installed,
    on_failure: OnFailure,
    asked: Vec<Question>,
}

/// Carries a step out with failures, checks, heals the maps and checks that the next apply converges.
fn attempt(trial: &Trial<'_>, mut maps: Maps) -> Result<Outcome, TestCaseError> {
    let Trial { desired, touched, before, after, on_failure, ref asked, .. } = *trial;
    let mut applier = trial.applier.clone();
    let outcome = applier.apply(desired, touched, &mut maps);
    for question in asked {
        Attempt { before, after, now: &maps.now, outcome: &outcome }.check(question, on_failure)?;
    }
    prop_assert_eq!(outcome.complete, !applier.is_behind());
    prop_assert!(outcome.complete || !outcome.problems(|slot| slot.to_string()).is_empty());
    (maps.fail, maps.broken) = (Vec::new(), None);
    let healed = applier.apply(desired, &Touched::default(), &mut maps);
    prop_assert!(healed.complete, "{:?}", healed);
    for question in asked {
        prop_assert_eq!(passes(&maps.now, question), passes(after, question), "{:?} after healing", question);
    }
    prop_assert_eq!(&maps.now.tables.addresses, &after.tables.addresses);
    prop_assert_eq!(&maps.now.tables.cidrs, &after.tables.cidrs);
    prop_assert_eq!(&maps.now.tables.allow, &after.tables.allow);
    Ok(outcome)
}

const BROKEN: [fn(&Op) -> bool; 6] = [
    |op| matches!(op, Op::WriteAllow(..)),
    |op| matches!(op, Op::WritePortSet { .. }),
    |op| matches!(op, Op::WriteAddress(..)),
    |op| matches!(op, Op::WriteAddress(..) | Op::RemoveAddress(_)),
    |op| matches!(op, Op::WriteCidr(..) | Op::RemoveCidr(_)),
    |op| matches!(op, Op::WritePolicyWord { .. }),
];

/// Fails the next step in every way, on copies, then carries it out. False if there was none.
fn fail_everywhere(node: &mut Node, on_failure: OnFailure) -> Result<bool, TestCaseError> {
    let (state, provenance, before) =
        (node.compiler.state().clone(), node.compiler.provenance(), node.maps.now.clone());
    let Some(step) = node.compiler.next_step() else { return Ok(false) };
    let (applier, maps) = (node.applier.clone(), node.maps.clone());
    let operations = applier.plan(node.compiler.desired(), &step.touched).operations().count();
    node.carry_out(&step.touched);
    let (desired, after) = (node.compiler.desired(), node.maps.now.clone());
    let simple = |question: &Question| !matches!(question.port, Some((_, 82 | 443 | 9000)));
    let asked = judged_questions((&state, &provenance), &node.compiler);
    let trial = Trial {
        applier,
        desired,
        touched: &step.touched,
        before: &before,
        after: &after,
        on_failure,
        asked: asked.into_iter().filter(simple).collect(),
    };
    let run = |maps: Maps| attempt(&trial, maps);
    for number in 0..operations {
        let at = maps.done + number;
        let once = run(Maps { fail: vec![(at, at + 1)], ..maps.clone() })?;
        let stuck = once.slots.values().any(|fallback| *fallback == Fallback::Stuck);
        prop_assert!(!stuck, "one failure always leaves a way to deny: {once:?}");
        run(Maps { fail: vec![(at, usize::MAX)], ..maps.clone() })?;
    }
    for broken in BROKEN {
        run(Maps { broken: Some(broken), ..maps.clone() })?;
    }
    Ok(true)
}

fn fail_through(history: Vec<Action>, on_failure: OnFailure) -> Result<(), TestCaseError> {
    let mut node = Node::new(Limits::default());
    node.applier = Applier::new(Installed::default(), on_failure);
    for action in history {
        match action {
            Action::Event(event) => node.compiler.apply(event),
            Action::Local(slots) => node.compiler.set_local(slots),
            Action::Settle => while fail_everywhere(&mut node, on_failure)? {},
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn a_failure_at_any_operation_opens_nothing_and_heals(history in history(12)) {
        fail_through(history, OnFailure::Deny)?;
    }

    #[test]
    fn keeping_the_old_policy_on_failure_still_opens_nothing_that_neither_allows(history in history(8)) {
        fail_through(history, OnFailure::Keep)?;
    }

    #[test]
    fn a_history_of_failures_ends_right_once_they_stop(
        history in history(25),
        failing in proptest::collection::vec((0_usize..400, 1_usize..6), 0..20),
    ) {
        let (mut node, mut local) = (Node::new(Limits::default()), BTreeMap::new());
        node.maps.fail = failing.into_iter().map(|(first, length)| (first, first + length)).collect();
        for action in history {
            match action {
                Action::Event(event) => node.compiler.apply(event),
                Action::Local(slots) => {
                    local = slots.clone();
                    node.compiler.set_local(slots);
                }
                Action::Settle => while let Some(step) = node.compiler.next_step() {
                    node.carry_out(&step.touched);
                },
            }
        }
        node.maps.fail.clear();
        if node.applier.is_behind() {
            node.carry_out(&Touched::default());
        }
        node.settle();
        for question in questions().iter().filter(|question| local.contains_key(&question.slot)) {
            prop_assert_eq!(passes(&node.maps.now, question), node.judged(&local, question), "{:?}", question);
        }
    }
}

/// One pod under a policy that lets port 80 in from `role=peer` and from the block of that peer.
fn shop() -> Node {
    let objects = vec![
        Object::Pod(pod("x/web", "10.0.0.1", "app=web")),
        Object::Pod(pod("x/other", "10.0.0.3", "app=other")),
        Object::Pod(pod("x/peer", "10.0.0.2", "role=peer")),
        policy("x/web", "app=web", Some(vec![rule(pods("role=peer"), tcp(80, 80))]), None),
        policy("x/other", "app=other", Some(vec![rule(pods(""), tcp(80, 80))]), None),
    ];
    Node::with(objects, &["x/web", "x/other"])
}

fn with_broken(node: &mut Node, broken: fn(&Op) -> bool, object: Object) -> Outcome {
    node.maps.broken = Some(broken);
    node.compiler.apply(ClusterEvent::Apply(object));
    let step = node.compiler.next_step().expect("something changed");
    let outcome = node.carry_out(&step.touched);
    node.maps.broken = None;
    outcome
}

fn heal(node: &mut Node) {
    assert!(node.carry_out(&Touched::default()).complete);
    node.settle();
}

#[test]
fn a_failed_tightening_denies_the_pod_and_leaves_the_others_alone() {
    let mut node = shop();
    let outcome = with_broken(
        &mut node,
        |op| matches!(op, Op::WriteAllow(..)),
        policy("x/web", "app=web", Some(vec![rule(pods("role=peer"), tcp(81, 81))]), None),
    );
    assert_eq!(outcome.slots, BTreeMap::from([((1, Direction::Ingress), Fallback::Denied)]));
    assert!(!node.ingress(1, "10.0.0.2", 80) && !node.ingress(1, "10.0.0.2", 81));
    assert!(node.ingress(2, "10.0.0.2", 80));
    let said = outcome.problems(|slot| node.compiler.provenance().pod(slot).unwrap().to_string());
    assert!(said[0].to_string().contains("Pod x/web: cannot write"), "{}", said[0]);
    assert!(said[0].to_string().contains("all ingress is denied; it is tried again"), "{}", said[0]);
    heal(&mut node);
    assert!(node.ingress(1, "10.0.0.2", 81) && !node.ingress(1, "10.0.0.2", 80));
}

#[test]
fn a_failed_widening_keeps_the_old_policy() {
    let mut node = shop();
    let outcome = with_broken(
        &mut node,
        |op| matches!(op, Op::WritePortSet { .. }),
        policy("x/web", "app=web", Some(vec![rule(pods("role=peer"), tcp(80, 81))]), None),
    );
    assert_eq!(outcome.slots, BTreeMap::from([((1, Direction::Ingress), Fallback::Kept)]));
    assert!(node.ingress(1, "10.0.0.2", 80) && !node.ingress(1, "10.0.0.2", 81));
    heal(&mut node);
    assert!(node.ingress(1, "10.0.0.2", 81));
}

#[test]
fn what_is_replaced_is_dropped_only_once_the_maps_follow() {
    let mut node = shop();
    with_broken(
        &mut node,
        |op| matches!(op, Op::WritePortSet { .. }),
        policy("x/web", "app=web", Some(vec![rule(pods("role=peer"), tcp(80, 81))]), None),
    );
    let in_force = node.maps.now.clone();
    assert!(node.compiler.next_step().is_none(), "the slot has the old policy id still");
    assert!(node.carry_out(&Touched::default()).complete);
    let step = node.compiler.next_step().expect("the old policy id is dropped");
    assert!(node.carry_out(&step.touched).complete && node.maps.now != in_force);
    assert!(node.ingress(1, "10.0.0.2", 81) && node.compiler.next_step().is_none());
}

#[test]
fn an_address_that_cannot_pass_to_a_narrower_identity_is_removed() {
    let mut node = shop();
    let relabelled = Object::Pod(pod("x/peer", "10.0.0.2", "role=former"));
    let outcome = with_broken(&mut node, |op| matches!(op, Op::WriteAddress(..)), relabelled);
    assert!(outcome.removed.contains(&"10.0.0.2".parse().unwrap()) && outcome.slots.is_empty(), "{outcome:?}");
    assert!(!node.ingress(1, "10.0.0.2", 80) && !node.ingress(2, "10.0.0.2", 80));
    heal(&mut node);
    assert!(!node.ingress(1, "10.0.0.2", 80) && node.ingress(2, "10.0.0.2", 80));
}

#[test]
fn an_address_that_cannot_even_be_removed_denies_what_depends_on_it() {
    let mut node = shop();
    let relabelled = Object::Pod(pod("x/peer", "10.0.0.2", "role=former"));
    let outcome = with_broken(&mut node, |op| matches!(op, Op::WriteAddress(..) | Op::RemoveAddress(_)), relabelled);
    assert_eq!(outcome.slots, BTreeMap::from([((1, Direction::Ingress), Fallback::Denied)]));
    assert!(!node.ingress(1, "10.0.0.2", 80) && node.ingress(2, "10.0.0.2", 80));
    heal(&mut node);
    assert!(!node.ingress(1, "10.0.0.2", 80) && node.ingress(2, "10.0.0.2", 80));
}

#[test]
fn an_address_that_cannot_pass_to_a_wider_identity_stays() {
    let mut node = shop();
    let peer = Object::Pod(pod("x/new", "10.0.0.9", "role=peer"));
    let outcome = with_broken(&mut node, |op| matches!(op, Op::WriteAddress(..)), peer);
    assert!(outcome.stale.contains(&"10.0.0.9".parse().unwrap()) && outcome.slots.is_empty(), "{outcome:?}");
    assert!(!node.ingress(1, "10.0.0.9", 80));
    heal(&mut node);
    assert!(node.ingress(1, "10.0.0.9", 80));
}

#[test]
fn a_word_that_cannot_be_written_at_all_is_said_loudly() {
    let mut node = shop();
    let outcome = with_broken(
        &mut node,
        |op| matches!(op, Op::WritePolicyWord { .. }),
        policy("x/web", "app=web", Some(Vec::new()), None),
    );
    assert_eq!(outcome.slots, BTreeMap::from([((1, Direction::Ingress), Fallback::Stuck)]));
    assert!(outcome.problems(|_| "x/web".into())[0].effect.starts_with("MORE ingress IS ALLOWED"));
    heal(&mut node);
    assert!(!node.passes(1, Direction::Ingress, "10.0.0.2", Some((Protocol::Tcp, 80))));
    assert_eq!(node.compiler.provenance().pod(1), Some(&key("x/web")));
}
