//! Traffic that stays allowed, while labels and policies change around it as fast as the agent can follow: nothing is lost.
//!
//! TCP hides a lost packet, so the proof is the datapath's own count: no packet of any pod was dropped.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use netpol_common::abi::Reason;
use netpol_tests::agent::{Agent, Options};
use netpol_tests::level::{has_agent, is_full};
use netpol_tests::shop::{Shop, case};
use netpol_tests::traffic::Traffic;

/// Changes in the quick tier, and in the full one.
const CHANGES: (u32, u32) = (200, 1_000);

/// The payment service reaches the database whatever its tier: by this policy, or by this and the shop's own.
const BY_NAME: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: database-by-name, namespace: production}
spec:
  podSelector: {matchLabels: {app: postgresql}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: payment-service}}}]
      ports: [{protocol: TCP, port: 5432}]
";

/// A policy that comes and goes: it selects everybody in the traffic and takes nothing from them.
const COMES_AND_GOES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: comes-and-goes, namespace: production}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/28]}}]
  egress:
    - to: [{namespaceSelector: {matchLabels: {churn: odd}}}]
      ports: [{port: 1234, endPort: 2345}]
";

fn drops(agent: &Agent) -> Vec<(String, u64)> {
    let counters = agent.counters().unwrap();
    let is_drop = |reason: &str| Reason::ALL.iter().any(|it| it.name() == reason && it.is_drop() && !it.is_quiet());
    let dropped = counters.into_iter().filter(|it| is_drop(&it.reason));
    dropped.map(|it| (format!("{} {} {}", it.pod, it.direction, it.reason), it.packets)).collect()
}

/// The cluster's pods, with labels that change from round to round and keep all traffic of this test allowed.
fn relabelled(pods: &str, round: u32) -> String {
    let even = round.is_multiple_of(2);
    let parity = if even { "even" } else { "odd" };
    let payment = "app: payment-service\n    tier: backend";
    assert!(pods.contains(payment), "the payment service is not as this test knows it");
    let tier = if even { "backend" } else { "moving" };
    pods.replace(
        payment,
        &format!("app: payment-service\n    tier: {tier}\n    churn: {parity}\n    round: \"{round}\""),
    )
    .replace("app: prometheus", &format!("app: prometheus\n    churn: {parity}"))
}

#[test]
fn allowed_traffic_loses_no_packet_while_labels_and_policies_change() {
    if !has_agent() {
        return;
    }
    let case = case("shop");
    let after = Shop::expectation(&case, "after").unwrap();
    let shop = Shop::build(&case, &[&after]).unwrap();
    let agent = Agent::start(&shop.node, &Options::default()).unwrap();
    shop.put_policies().unwrap();
    shop.put_text("85-by-name.yaml", BY_NAME).unwrap();
    agent.sync().unwrap();
    let before = drops(&agent);

    let traffic = Traffic::of_the_shop(&shop).unwrap().allowed_only();
    let (rounds, report) = traffic.during(|| churn(&shop, &agent, &case));
    assert_eq!(report.lost, [""; 0]);
    assert_eq!(report.leaked, [""; 0]);
    assert!(report.exchanged > u64::from(rounds), "too little traffic to mean anything: {report:?}");
    assert_eq!(drops(&agent), before, "something was dropped; {:?}", agent.drops().last(5));
}

fn churn(shop: &Shop, agent: &Agent, case: &Path) -> u32 {
    let pods = std::fs::read_to_string(case.join("cluster/pods.yaml")).unwrap();
    let rounds = if is_full() { CHANGES.1 } else { CHANGES.0 };
    for round in 1..=rounds {
        shop.put_text("pods.yaml", &relabelled(&pods, round)).unwrap();
        match round % 4 {
            0 => shop.put_text("90-comes-and-goes.yaml", COMES_AND_GOES).unwrap(),
            2 if round > 4 => shop.remove("90-comes-and-goes.yaml").unwrap(),
            _ => {}
        }
        agent.sync().unwrap();
    }
    rounds
}
