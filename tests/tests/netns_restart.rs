//! Agents come and go under continuous traffic, by SIGTERM and by kill -9: no verdict changes, no allowed packet is lost.

use std::time::Duration;

use netpol_tests::agent::{Agent, Options};
use netpol_tests::level::{has_agent, is_full};
use netpol_tests::shop::{Shop, case};
use netpol_tests::traffic::Traffic;

/// Restarts in the quick tier, and in the full one.
const RESTARTS: (u32, u32) = (6, 100);

#[test]
fn restarts_lose_and_leak_nothing() {
    if !has_agent() {
        return;
    }
    let case = case("shop");
    let after = Shop::expectation(&case, "after").unwrap();
    let shop = Shop::build(&case, &[&after]).unwrap();
    let mut agent = Some(Agent::start(&shop.node, &Options::default()).unwrap());
    shop.put_policies().unwrap();
    agent.as_ref().unwrap().sync().unwrap();

    let restarts = if is_full() { RESTARTS.1 } else { RESTARTS.0 };
    let traffic = Traffic::of_the_shop(&shop).unwrap();
    let ((), report) = traffic.during(|| {
        for round in 0..restarts {
            let old = agent.take().unwrap();
            if round % 2 == 0 {
                old.stop().unwrap()
            } else {
                old.kill().unwrap()
            };
            agent = Some(Agent::start(&shop.node, &Options::default()).unwrap());
        }
    });
    println!("{restarts} restarts: {} exchanged, {} refused", report.exchanged, report.refused);
    assert_eq!(report.lost, [""; 0], "lost");
    assert_eq!(report.leaked, [""; 0], "leaked");
    assert!(report.exchanged > u64::from(restarts) && report.refused > u64::from(restarts), "{report:?}");
    let (measured, _odd) = shop.measure(&after, false).unwrap();
    assert_eq!(after.differences(&measured), []);
}

#[test]
fn a_second_agent_on_the_same_node_refuses() {
    if !has_agent() {
        return;
    }
    let case = case("shop");
    let after = Shop::expectation(&case, "after").unwrap();
    let shop = Shop::build(&case, &[&after]).unwrap();
    let first = Agent::start(&shop.node, &Options::default()).unwrap();
    shop.put_policies().unwrap();
    first.sync().unwrap();
    let second = Agent::spawn(&shop.node, &Options::default()).unwrap();
    let refusal = second.log().wait_for(0, Duration::from_secs(10), |line| line.contains("ERROR"));
    let refusal = refusal.expect("the second agent says why it ends");
    assert!(refusal.contains("another") && refusal.contains("netpol"), "{refusal}");
    assert_eq!(second.stop().unwrap().code(), Some(1));
    assert!(first.sync().unwrap().settled, "the first agent goes on");
    let (measured, _odd) = shop.measure(&after, false).unwrap();
    assert_eq!(after.differences(&measured), []);
}
