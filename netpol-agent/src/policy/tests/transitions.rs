//! After every single operation of every plan, each packet gets the answer from before the plan or from after it.

use netpol_common::abi::Direction;
use proptest::prelude::*;

use super::generated::{Action, config, history, judged_questions};
use super::judge::Question;
use super::node::{Node, passes};
use crate::policy::Limits;

/// Takes the next step and checks it, operation by operation. False if there was none.
fn step(node: &mut Node) -> Result<bool, TestCaseError> {
    let before = node.maps.now.clone();
    let (state, provenance) = (node.compiler.state().clone(), node.compiler.provenance());
    let Some(step) = node.compiler.next_step() else { return Ok(false) };
    // A pod's traffic to itself is not judged, and a changed pod is both ends of it.
    let asked = judged_questions((&state, &provenance), &node.compiler);
    node.maps.history = Some(Vec::new());
    let outcome = node.carry_out(&step.touched);
    prop_assert!(outcome.complete);
    let history = node.maps.history.take().unwrap();
    let after = node.maps.now.clone();
    for question in &asked {
        let (old, new) = (passes(&before, question), passes(&after, question));
        let mut turned = 0;
        let mut last = old;
        for maps in &history {
            let now = passes(maps, question);
            prop_assert!(now == old || now == new, "{question:?}: {old} -> {now} -> {new}");
            turned += usize::from(now != last);
            last = now;
        }
        prop_assert!(turned <= 1, "{question:?} was answered differently {turned} times");
        if old && !new {
            let revision = |maps: &crate::datapath::installed::Installed| maps.word(question.slot).revision();
            prop_assert!(revision(&before) != revision(&after), "open connections of {question:?} would go on");
        }
    }
    Ok(true)
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn no_packet_ever_sees_half_a_change(history in history(20)) {
        let mut node = Node::new(Limits::default());
        for action in history {
            match action {
                Action::Event(event) => node.compiler.apply(event),
                Action::Local(slots) => node.compiler.set_local(slots),
                Action::Settle => while step(&mut node)? {},
            }
        }
    }
}

#[test]
fn a_policy_that_goes_away_never_makes_its_peers_unknown_to_the_slots_that_still_have_it() {
    use super::node::{pod, pods, policy, rule, tcp};
    use crate::cluster::model::{Object, ObjectRef};
    let objects = vec![
        Object::Pod(pod("x/web", "10.0.0.1", "app=web")),
        Object::Pod(pod("x/peer", "10.0.0.2", "role=peer")),
        policy("x/narrow", "app=web", Some(vec![rule(pods("role=peer"), tcp(80, 80))]), None),
        policy("x/wide", "app=web", Some(vec![rule(pods(""), tcp(80, 80))]), None),
    ];
    let mut node = Node::with(objects, &["x/web"]);
    let question = Question {
        slot: 1,
        direction: Direction::Ingress,
        peer: "10.0.0.2".parse().unwrap(),
        port: Some((crate::cluster::model::Protocol::Tcp, 80)),
    };
    node.compiler
        .apply(crate::cluster::model::ClusterEvent::Delete(ObjectRef::NetworkPolicy(super::node::key("x/narrow"))));
    node.maps.history = Some(Vec::new());
    node.settle();
    let history = node.maps.history.take().unwrap();
    assert!(history.len() > 2);
    assert!(history.iter().all(|maps| passes(maps, &question)));
}
