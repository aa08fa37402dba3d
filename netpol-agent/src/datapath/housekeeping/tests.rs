use netpol_common::abi::{Direction, FlowState, FlowWord};

use super::*;
use crate::datapath::loader::{LoadOptions, default_config, open};
use crate::datapath::sizing::Sizing;
use crate::testing::{has_object, in_sandbox};

fn key(port: u16, protocol: u8) -> FlowKey<V4> {
    let (pod, peer) = (V4::from_octets([10, 244, 1, 2]), V4::from_octets([10, 244, 2, 3]));
    FlowKey { pod, peer, pod_port: port, peer_port: 80, protocol, pad: 0, slot: 3 }
}

#[test]
fn entries_that_are_long_over_are_taken_away_and_no_others() {
    if !has_object() {
        return;
    }
    in_sandbox(|sandbox| {
        let config = default_config().unwrap();
        let sizing = Sizing { slots: 16, flows_per_pod: 64, unanswered_per_pod: 64, ..Sizing::default() };
        let datapath = open(&LoadOptions { bpffs: sandbox.bpffs.clone(), config, sizing }).unwrap();
        let mut keeper = Housekeeper::open(&datapath.pins, datapath.config, Jiffies::open().unwrap()).unwrap();
        assert_eq!(keeper.sweep().unwrap(), Swept::default());
        let now = keeper.clock.now().unwrap();
        // A datagram that nobody answered lives for 30 s, a connection for five days; each has a minute's grace.
        for (at, seconds) in (0..).zip([0, 29, 31, 3600, 85, 95]) {
            for (protocol, state) in [(17, FlowState::Opening), (6, FlowState::Established)] {
                let word = FlowWord::new(state, Direction::Egress, 0, 1);
                let flow = flow::opened(word, now.wrapping_sub(seconds * config.hz), 0);
                keeper.v4[1].insert(key(1000 + at, protocol), flow, 0).unwrap();
            }
        }
        // A program stamps while the tables are looked through.
        let ahead = flow::opened(FlowWord::new(FlowState::Opening, Direction::Egress, 0, 1), now.wrapping_add(500), 0);
        keeper.v4[1].insert(key(1006, 17), ahead, 0).unwrap();
        assert_eq!(keeper.sweep().unwrap(), Swept { seen: 13, removed: 2 });
        let mut left: Vec<u16> =
            keeper.v4[1].keys().map(Result::unwrap).filter(|key| key.protocol == 17).map(|key| key.pod_port).collect();
        left.sort_unstable();
        assert_eq!(left, [1000, 1001, 1002, 1004, 1006], "an hour and 95 seconds are over");
    });
}
