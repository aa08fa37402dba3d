//! Tables as people see them.

use super::*;
use crate::client::ask::NodeAnswer;
use crate::observe::answer::{
    EndpointList, EndpointReport, Isolation, KindReport, PeerReport, PodCounts, PolicyAnswer, PolicyList, PolicyReport,
    PolicySummary, ProblemCounts, RuleReport, SelectedPod, SourceReport, Status,
};
use crate::problem::{Problem, Severity};

const PLAIN: Sight = Sight { colour: false };

fn answers<T>(all: Vec<(&str, Result<T, &str>)>) -> Answers<T> {
    let nodes = all.into_iter().map(|(node, result)| NodeAnswer::of(node, result.map_err(str::to_owned))).collect();
    Answers { nodes }
}

fn kubernetes(stale_for_seconds: Option<u64>) -> SourceReport {
    let kinds = vec![KindReport { kind: "pods".into(), synced: true, stale_for_seconds, ..KindReport::default() }];
    SourceReport { kind: "kubernetes".into(), synced: true, kinds, ..SourceReport::default() }
}

fn problem() -> Problem {
    let (origin, object) = (String::new(), "NetworkPolicy a/x".to_owned());
    let (field, message, effect) = ("spec".to_owned(), "wrong\n\u{1b}[2J".to_owned(), "none".to_owned());
    Problem { severity: Severity::Refused, origin, object, field, message, effect }
}

fn node(settled: bool, source: SourceReport) -> Status {
    Status {
        version: "1.0".into(),
        settled,
        source,
        pods: PodCounts { enforced: 9, pending: 1, failed: 0 },
        policies: 12,
        problem_counts: ProblemCounts { refused: 1, notes: 0 },
        problems: vec![problem()],
        ..Status::default()
    }
}

#[test]
fn each_node_is_a_row_and_each_problem_is_told_once() {
    let behind = Status { generation: 4, enforced: 3, ..node(false, kubernetes(Some(70))) };
    let starting = node(false, SourceReport { synced: false, ..kubernetes(None) });
    let all = answers(vec![
        ("a", Ok(node(true, kubernetes(None)))),
        ("b", Ok(behind)),
        ("c", Ok(starting)),
        ("d", Err("it is gone")),
    ]);
    let expected = "\
NODE  STATE      PODS  PENDING  FAILED  POLICIES  PROBLEMS  SOURCE                     VERSION
a     enforced   9     1        0       12        1         kubernetes                 1.0
b     applying   9     1        0       12        1         kubernetes, stale for 70s  1.0
c     starting   9     1        0       12        1         kubernetes, not read yet   1.0
d     no answer  it is gone

Not enforced as written (1):
  NetworkPolicy a/x: spec: wrong  [2J
    effect: none
    on a, b, c
";
    assert_eq!(status(&all, PLAIN), expected);
}

#[test]
fn a_pod_is_open_isolated_denied_or_not_known() {
    let by = |names: &[&str]| Isolation {
        isolated: true,
        by: names.iter().map(ToString::to_string).collect(),
        policy_id: 2,
    };
    let pod = |pod: &str, state: &str, ingress: Isolation| EndpointReport {
        pod: pod.into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        interface: "veth0".into(),
        slot: 3,
        state: state.into(),
        ingress,
        ..EndpointReport::default()
    };
    let endpoints_of_a =
        vec![pod("n/b", "enforced", by(&["x", "y"])), pod("n/a", "failed", by(&[])), pod("", "pending", by(&[]))];
    let list = EndpointList { endpoints: endpoints_of_a, ..EndpointList::default() };
    let expected = "\
NODE  POD              ADDRESSES  INTERFACE  SLOT  STATE     INGRESS     EGRESS
a     (not known yet)  10.0.0.1   veth0      3     pending   -           -
a     n/a              10.0.0.1   veth0      3     failed    all denied  open
a     n/b              10.0.0.1   veth0      3     enforced  x,y         open
";
    assert_eq!(endpoints(&answers(vec![("a", Ok(list))]), PLAIN), expected);
    assert_eq!(endpoints(&answers(vec![("a", Ok(EndpointList::default()))]), PLAIN), "no pods\n");
}

fn summary(name: &str, pods: &[(&str, &str)]) -> PolicySummary {
    let pod = |(name, state): &(&str, &str)| SelectedPod { name: (*name).into(), state: (*state).into() };
    PolicySummary {
        namespace: "n".into(),
        name: name.into(),
        policy_types: vec!["Ingress".into()],
        pods: pods.iter().map(pod).collect(),
        ..PolicySummary::default()
    }
}

#[test]
fn policies_of_all_nodes_are_joined() {
    let list = |policies| PolicyList { policies, ..PolicyList::default() };
    let all = answers(vec![
        ("a", Ok(list(vec![summary("x", &[("p", "enforced"), ("q", "pending")]), summary("y", &[])]))),
        ("b", Ok(list(vec![PolicySummary { problems: vec![problem()], ..summary("x", &[("r", "enforced")]) }]))),
        ("c", Err("it is gone")),
    ]);
    let expected = "\
NAMESPACE  NAME  TYPES    PODS                NODES  PROBLEMS
n          x     Ingress  3 (1 not enforced)  2/2    1
n          y     Ingress  0                   1/2    0
c: no answer: it is gone
";
    assert_eq!(policies(&all, PLAIN), expected);
    assert_eq!(policies(&answers(vec![("a", Ok(list(vec![])))]), PLAIN), "no NetworkPolicies\n");
}

#[test]
fn a_policy_is_told_in_words() {
    let peer = |who: &str, pods, addresses| PeerReport { who: who.into(), pods, addresses };
    let ingress = vec![
        RuleReport {
            peers: Some(vec![peer("pods app=a", Some(2), Some(4)), peer("ipBlock 10.0.0.0/8", None, None)]),
            ports: Some(vec!["TCP 80".into(), "UDP 53".into()]),
        },
        RuleReport::default(),
        RuleReport { peers: Some(vec![]), ports: Some(vec![]) },
    ];
    let report = PolicyReport {
        summary: summary("x", &[("p", "enforced")]),
        selects: "{}".into(),
        ingress: Some(ingress),
        egress: Some(vec![]),
    };
    let all = answers(vec![
        ("a", Ok(PolicyAnswer { policy: Some(report), ..PolicyAnswer::default() })),
        ("b", Ok(PolicyAnswer::default())),
    ]);
    let expected = "\
NetworkPolicy n/x
Isolates for  Ingress
Selects       all pods in namespace n
Pods          p on a: enforced

Ingress, allowed only:
  [0] from pods app=a (2 pods, 4 addresses)
      or   ipBlock 10.0.0.0/8
      on TCP 80, UDP 53
  [1] from everyone
      on everything, ICMP too
  [2] from nobody (no peer of this rule could be used)
      on nothing (no port of this rule could be used)

Egress, allowed only:
  nothing

b does not know this policy (yet)
";
    assert_eq!(policy(&all, PLAIN), expected);
    let similar = PolicyAnswer { similar: vec!["n/y".into(), "n/z".into()], ..PolicyAnswer::default() };
    assert_eq!(hint(&answers(vec![("a", Ok(similar))])), " (did you mean one of n/y, n/z?)");
}
