//! After any history, the maps say what the judge says, and hold what a fresh compiler would put there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::generated::{Action, config, history, questions};
use super::node::{Node, objects, passes};
use crate::cluster::model::{ClusterEvent, PodKey};
use crate::datapath::desired::DesiredDatapath;
use crate::policy::{Limits, Provenance};

/// The desired datapath with numbers replaced by what they stand for.
fn without_numbers(desired: &DesiredDatapath, provenance: &Provenance) -> Vec<String> {
    let policy = |id: u16| format!("{:?} {:?}", provenance.direction(id), provenance.explain(id, 0, 6, 0));
    let identity = |id: u32| {
        let mut words: Vec<String> = provenance.peer(id).unwrap().iter().map(ToString::to_string).collect();
        words.sort();
        words.join(" & ")
    };
    let tables = &desired.tables;
    let set = |field: u16| {
        tables.port_sets.get(&field).map_or(format!("{field}"), |bits| format!("{:?}", ports(bits.as_slice())))
    };
    let mut lines: Vec<String> = Vec::new();
    lines.extend(tables.addresses.iter().map(|(address, id)| format!("{address}: {}", identity(*id))));
    lines.extend(tables.cidrs.iter().map(|(region, id)| format!("{region}: {}", identity(*id))));
    lines.extend(desired.words.iter().map(|(slot, ids)| {
        let of = |id: u16| if id < 2 { id.to_string() } else { policy(id) };
        format!("slot {slot}: {} / {}", of(ids.ingress), of(ids.egress))
    }));
    let mut entries: Vec<String> = tables
        .allow_entries()
        .map(|(key, value)| {
            let ports = [value.tcp, value.udp, value.sctp].map(set);
            format!("{} {}: {ports:?} {}", policy(key.policy), identity(key.identity), value.other)
        })
        .collect();
    entries.sort();
    lines.extend(entries);
    lines
}

fn ports(bits: &[u8]) -> Vec<usize> {
    (0..65_536).filter(|port| bits[port / 8] & 1 << (port % 8) != 0).take(500).collect()
}

fn fresh(node: &Node, local: &BTreeMap<u16, PodKey>) -> Node {
    let mut fresh = Node::new(Limits::default());
    for object in objects(node.compiler.state()) {
        fresh.compiler.apply(ClusterEvent::Apply(object));
    }
    fresh.compiler.set_local(local.clone());
    fresh.compiler.settle();
    fresh
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn the_maps_follow_any_history_and_end_as_if_built_afresh(history in history(25)) {
        let (mut node, mut local) = (Node::new(Limits::default()), BTreeMap::new());
        let questions = questions();
        for action in history {
            match action {
                Action::Event(event) => node.compiler.apply(event),
                Action::Local(slots) => {
                    local = slots.clone();
                    node.compiler.set_local(slots);
                }
                Action::Settle => {
                    node.settle();
                    for question in questions.iter().filter(|question| local.contains_key(&question.slot)) {
                        prop_assert_eq!(
                            passes(&node.maps.now, question), node.judged(&local, question),
                            "{:?} with {:#?}", question, node.compiler.state()
                        );
                    }
                }
            }
        }
        let fresh = fresh(&node, &local);
        prop_assert_eq!(
            without_numbers(node.compiler.desired(), &node.compiler.provenance()),
            without_numbers(fresh.compiler.desired(), &fresh.compiler.provenance())
        );
        let desired = node.compiler.desired();
        prop_assert_eq!(&node.maps.now.tables.addresses, &desired.tables.addresses);
        prop_assert_eq!(&node.maps.now.tables.cidrs, &desired.tables.cidrs);
        prop_assert!(node.maps.now.tables.allow_entries().eq(desired.tables.allow_entries()));
    }

    #[test]
    fn when_everything_is_gone_nothing_is_left(history in history(15)) {
        let mut node = Node::new(Limits::default());
        for action in history {
            match action {
                Action::Event(event) => node.compiler.apply(event),
                Action::Local(slots) => node.compiler.set_local(slots),
                Action::Settle => node.settle(),
            }
        }
        node.compiler.set_local(BTreeMap::new());
        node.settle();
        prop_assert!(node.maps.now.tables.addresses.is_empty() && node.maps.now.tables.cidrs.is_empty());
        prop_assert_eq!(node.maps.now.tables.allow_entries().count(), 0);
        prop_assert!(node.compiler.desired().tables.port_sets.is_empty());
        prop_assert_eq!(node.compiler.criteria_in_use(), 0);
    }
}
