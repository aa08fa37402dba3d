//! A node with more pods than the agent has room for: what does not fit is denied and named, never let through.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::IpAddr;

use netpol_tests::agent::{Agent, Options};
use netpol_tests::level::has_agent;
use netpol_tests::manifests::PodAddresses;
use netpol_tests::node::{Node, OUTSIDE};
use netpol_tests::probe::{Outcome, PATIENCE, Probe, SILENCE};
use netpol_tests::servers::Transport;

const PODS: [(&str, &str); 3] = [("x/a", "10.244.1.11"), ("x/b", "10.244.1.12"), ("x/c", "10.244.1.13")];
const PORT: u16 = 8080;

fn manifest(without: Option<&str>) -> String {
    let pod = |(key, address): &(&str, &str)| {
        let name = key.trim_start_matches("x/");
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x}}\nspec: {{containers: []}}\nstatus: \
             {{phase: Running, podIPs: [{{ip: {address}}}]}}\n"
        )
    };
    PODS.iter().filter(|(key, _)| Some(*key) != without).map(pod).collect::<Vec<_>>().join("---\n")
}

fn asks(node: &Node, from: &str, to: &str, expected: &Outcome) {
    let probe = Probe::new(node, from, (to, Transport::Tcp, PORT), false).unwrap();
    let limit = if *expected == Outcome::Silence { SILENCE } else { PATIENCE };
    let outcomes = node.probe_all(&[probe], limit).unwrap();
    assert_eq!(outcomes, std::slice::from_ref(expected), "{from} -> {to}");
}

#[test]
fn a_pod_without_a_slot_is_denied_named_and_let_in_when_there_is_one() {
    if !has_agent() {
        return;
    }
    let mut node = Node::start(&[]).unwrap();
    for (key, address) in PODS {
        node.add_pod(&PodAddresses::new(key, &[address.parse::<IpAddr>().unwrap()])).unwrap();
        node.serve(key, Transport::Tcp, [PORT]).unwrap();
    }
    node.serve(OUTSIDE, Transport::Tcp, [PORT]).unwrap();
    node.run().put_manifest("pods.yaml", &manifest(None)).unwrap();
    let arguments = ["--max-pods", "2"].map(ToOwned::to_owned).to_vec();
    let agent = Agent::start(&node, &Options { arguments, ..Options::default() }).unwrap();
    let status = agent.sync().unwrap();
    let named = |text: &str| status.problems.iter().any(|problem| problem.to_string().contains(text));
    assert!(named("--max-pods"), "{:?}", status.problems);
    // No policy anywhere, and which of the three has no slot is the order of interfaces.
    let without: Vec<&str> = status.endpoints.iter().filter(|it| it.slot == 0).map(|it| it.pod.as_str()).collect();
    assert_eq!(without, [""], "{:?}", status.endpoints);
    let served: Vec<&str> = status.endpoints.iter().filter(|it| it.slot != 0).map(|it| it.pod.as_str()).collect();
    let lacking = PODS.map(|(key, _)| key).into_iter().find(|key| !served.contains(key)).unwrap();
    asks(&node, served[0], served[1], &Outcome::Answered);
    asks(&node, served[0], OUTSIDE, &Outcome::Answered);
    for other in [served[0], OUTSIDE] {
        asks(&node, lacking, other, &Outcome::Silence);
        asks(&node, other, lacking, &Outcome::Silence);
    }
    node.remove_pod(served[0]).unwrap();
    node.run().put_manifest("pods.yaml", &manifest(Some(served[0]))).unwrap();
    agent.sync().unwrap();
    asks(&node, lacking, served[1], &Outcome::Answered);
    asks(&node, served[1], lacking, &Outcome::Answered);
}
