//! What the churn of the netns level is worth: whatever edit comes, the oracle allows what must pass and nothing else.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_tests::churn::{
    ALLOWED, Churn, DENIED, Edit, PODS, STRANGER, STRANGER_ADDRESSES, TCP_PORT, UDP_PORT, addresses_of,
};
use netpol_tests::judge::{Change, Judge as _, Objects, Probe, Protocol, Side};
use netpol_tests::node::{OUTSIDE, OUTSIDE_ADDRESSES};
use netpol_tests::oracle::Oracle;
use netpol_tests::servers::Transport;
use serde_json::Value;

fn side(place: &str, family: usize) -> Side {
    let bare = |addresses: [IpAddr; 2]| Side { address: addresses[family], pod: None };
    match place {
        OUTSIDE => bare(OUTSIDE_ADDRESSES),
        STRANGER => bare(STRANGER_ADDRESSES),
        pod => {
            let (_, host) = PODS.iter().find(|(key, _)| *key == pod).unwrap();
            let (namespace, name) = pod.split_once('/').unwrap();
            Side { pod: Some((namespace.to_owned(), name.to_owned())), ..bare(addresses_of(*host)) }
        }
    }
}

fn items(file: &Value) -> Vec<Value> {
    file["items"].as_array().unwrap().clone()
}

fn oracle_of(files: &BTreeMap<String, Value>) -> Oracle {
    let mut objects = Objects::default();
    for object in files.values().flat_map(items) {
        objects.change(&Change::Apply(object));
    }
    let mut oracle = Oracle::default();
    oracle.change(&objects.creation()).unwrap();
    oracle
}

#[test]
fn no_edit_takes_from_those_who_may_or_gives_to_those_who_may_not() {
    let mut kinds = BTreeSet::new();
    for seed in 0..8 {
        let mut churn = Churn::new(seed);
        let mut files = BTreeMap::new();
        let beginning = churn.beginning();
        let edits = (0..400).map(|_| churn.next_edit()).collect::<Vec<Edit>>();
        for (number, edit) in beginning.iter().chain(&edits).enumerate() {
            match edit.clone() {
                Edit::Put(name, object) => _ = files.insert(name, object),
                Edit::Remove(name) => assert!(files.remove(&name).is_some(), "{name} is not there"),
            }
            if number + 1 < beginning.len() {
                continue;
            }
            kinds.extend(files.keys().cloned());
            let oracle = oracle_of(&files);
            for family in [0, 1] {
                for (from, to) in ALLOWED {
                    for (protocol, port) in [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)] {
                        let probe = Probe { source: side(from, family), destination: side(to, family), protocol, port };
                        assert!(oracle.judge(&probe).allowed(), "seed {seed}, edit {number}: {probe}: {edit:?}");
                    }
                }
                for (from, to, transport, port) in DENIED {
                    let protocol = if transport == Transport::Tcp { Protocol::Tcp } else { Protocol::Udp };
                    let probe = Probe { source: side(from, family), destination: side(to, family), protocol, port };
                    assert!(!oracle.judge(&probe).allowed(), "seed {seed}, edit {number}: {probe}: {edit:?}");
                }
            }
        }
    }
    // Two files for each of five wards, and five more.
    assert_eq!(kinds.len(), 15, "{kinds:?}");
}
