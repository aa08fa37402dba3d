//! What a flow comes to in Hubble's messages, and the numbers of label sets.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use netpol_common::abi::{Direction, Reason};

use super::convert::{Stamp, messages};
use super::filter::LabelSelector;
use super::identity::{Identities, labels_of};
use super::proto::flow as hubble;
use crate::cluster::model::{ObjectKey, Pod, Workload};
use crate::flow::{End, Flow, Headers, Match, Who};

fn pod(name: &str, labels: &[(&str, &str)]) -> Arc<Pod> {
    Arc::new(Pod {
        key: ObjectKey::new("shop", name),
        uid: "".into(),
        static_uid: "".into(),
        labels: Arc::new(labels.iter().map(|&(key, value)| (key.into(), value.into())).collect()),
        addresses: Vec::new(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "".into(),
        host_network: false,
        terminal: false,
        workload: Some(Workload { kind: "Deployment".into(), name: "web".into() }),
    })
}

fn end(ip: &str, who: Who) -> End {
    End { ip: Some(ip.parse().unwrap()), port: Some(80), pod: None, who, service: None }
}

fn flow(reason: Reason, direction: Direction) -> Flow {
    Flow {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
        pod: Some(ObjectKey::new("shop", "web-1")),
        direction,
        reason,
        drop_reason: reason.hubble(),
        source: end("10.0.0.1", Who::Pod(pod("web-1", &[("app", "web"), ("pod-template-hash", "abc")]))),
        destination: end("203.0.113.7", Who::World),
        protocol: "TCP".to_owned(),
        summary: String::new(),
        policies: vec![ObjectKey::new("shop", "deny-all"), ObjectKey::new("shop", "web")],
        isolated_for: Some(direction),
        allowed_by: Vec::new(),
        matched: Match::None,
        headers: Headers { ether_type: 0x0800, protocol: 6, tcp_flags: 0x12, ..Headers::default() },
        slot: 7,
        hint: "port is open in x but not to this peer".to_owned(),
        length: 60,
        suppressed: 3,
        ifindex: 9,
    }
}

fn converted(flow: &Flow) -> Vec<hubble::Flow> {
    messages(flow, &Stamp { node: "n".to_owned(), version: "1".to_owned() }, &mut Identities::default())
}

fn names(policies: &[hubble::Policy]) -> Vec<&str> {
    policies.iter().map(|it| it.name.as_str()).collect()
}

#[test]
#[expect(deprecated, reason = "what old clients read")]
fn a_denied_packet_is_a_verdict_and_a_drop_and_both_name_the_policies() {
    let both = converted(&flow(Reason::PolicyDenied, Direction::Egress));
    let types: Vec<_> = both.iter().map(|it| it.event_type.map(|it| (it.r#type, it.sub_type))).collect();
    assert_eq!(types, [Some((5, 0)), Some((1, 133))]);
    for message in &both {
        assert_eq!(
            (message.verdict(), message.drop_reason, message.drop_reason_desc),
            (hubble::Verdict::Dropped, 133, 133)
        );
        assert_eq!(names(&message.egress_denied_by), ["deny-all", "web"]);
        assert_eq!((message.ingress_denied_by.len(), message.is_reply), (0, Some(false)));
        assert_eq!(message.summary, "TCP Flags: SYN, ACK");
        let source = message.source.clone().unwrap();
        assert_eq!(
            (source.id, source.pod_name.as_str(), source.workloads[0].kind.as_str()),
            (7, "web-1", "Deployment")
        );
        assert_eq!(source.labels, ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]);
        assert_eq!(message.destination.clone().unwrap().identity, 2);
        assert!(message.l7.is_none() && message.interface.clone().unwrap().index == 9);
    }
}

#[test]
fn other_drops_are_drops_alone_and_new_flows_verdicts() {
    let spoofed = converted(&flow(Reason::SpoofedAddress, Direction::Egress));
    assert_eq!((spoofed.len(), spoofed[0].drop_reason_desc), (1, 132));
    assert!(spoofed[0].egress_denied_by.is_empty() && spoofed[0].is_reply.is_none());
    let allowed = Flow {
        allowed_by: vec![ObjectKey::new("shop", "web")],
        matched: Match::PeerAndPort,
        ..flow(Reason::AllowedByPolicy, Direction::Ingress)
    };
    let allowed = converted(&allowed);
    assert_eq!((allowed.len(), allowed[0].verdict(), allowed[0].policy_match_type), (1, hubble::Verdict::Forwarded, 2));
    assert_eq!((names(&allowed[0].ingress_allowed_by), allowed[0].is_reply), (vec!["web"], Some(false)));
    assert!(allowed[0].ingress_denied_by.is_empty() && allowed[0].drop_reason_desc == 0);
}

#[test]
fn a_reply_on_a_revoked_flow_names_who_isolates_for_the_openers_direction() {
    let revoked = Flow { isolated_for: Some(Direction::Ingress), ..flow(Reason::FlowRevoked, Direction::Egress) };
    let message = converted(&revoked).remove(0);
    assert_eq!((names(&message.ingress_denied_by), message.is_reply), (vec!["deny-all", "web"], Some(true)));
    assert_eq!(message.traffic_direction(), hubble::TrafficDirection::Egress);
}

#[test]
fn a_label_set_has_one_number_wherever_it_is_seen_and_no_other_set_has_it() {
    let mut identities = Identities::default();
    let one = labels_of(&pod("a", &[("app", "web"), ("pod-template-hash", "1")]));
    let same = labels_of(&pod("b", &[("app", "web"), ("pod-template-hash", "2")]));
    assert_eq!(identities.number(&one), identities.number(&same));
    assert_eq!(identities.number(&one), Identities::default().number(&one), "from the set alone");
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..20_000 {
        let number = identities.number(&labels_of(&pod("a", &[("app", &number.to_string())])));
        assert!((256..1 << 24).contains(&number) && seen.insert(number));
    }
}

#[test]
fn selectors_are_read_as_kubernetes_reads_them() {
    let labels = ["k8s:app=web".to_owned(), "k8s:example.com/tier=3".to_owned(), "reserved:host".to_owned()];
    let matches = |text: &str| LabelSelector::parse(text).map(|selector| selector.matches(&labels));
    for text in [
        "",
        "app",
        "app=web",
        "app==web",
        "k8s:app = web",
        "any:app=web",
        "app in (db, web)",
        "app notin (db)",
        "app!=db",
        "!missing",
        "missing!=x",
        "missing notin (x)",
        "reserved:host",
        "app=web,example.com/tier",
        "example.com/tier>2",
        "example.com/tier<4",
        " app , !missing ",
    ] {
        assert_eq!(matches(text), Ok(true), "{text:?}");
    }
    for text in [
        "app=db",
        "container:app=web",
        "app notin (web)",
        "!app",
        "missing",
        "app=web,app=db",
        "reserved:world",
        "example.com/tier>3",
        "app>1",
    ] {
        assert_eq!(matches(text), Ok(false), "{text:?}");
    }
    for text in ["app=web,", "=web", "app in web", "app in (web", "app=a=b", "app is web", "a b", "app>x", ","] {
        assert!(matches(text).is_err(), "{text:?}");
    }
}
