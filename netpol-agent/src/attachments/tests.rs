//! Whose interface is whose, and which addresses a pod has, by the plugin's word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{AttachmentError, Attachments, Origin, Strangers};
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod, PodKey};
use crate::cni::protocol::{Attachment, AttachmentKey};
use crate::node::view::{NodeView, PodInterface};

const MAC: &str = "0a:58:0a:00:00:01";

fn pod(name: &str, uid: &str, addresses: &[&str]) -> Pod {
    Pod {
        key: PodKey::new("x", name),
        uid: uid.into(),
        static_uid: "".into(),
        labels: BTreeMap::new().into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        named_ports: Vec::new(),
        host_ports: Vec::new(),
        node: "here".into(),
        host_network: false,
        terminal: false,
        workload: None,
    }
}

fn attachment(id: &str, name: &str, uid: &str, addresses: &[&str]) -> Attachment {
    Attachment {
        key: AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() },
        namespace: "x".to_owned(),
        pod: name.to_owned(),
        uid: uid.to_owned(),
        host_interface: format!("veth-{id}"),
        mac: MAC.to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

fn taken(attachments: &mut Attachments, pod: &Pod) -> Vec<String> {
    addresses(&[attachments.take(ClusterEvent::Apply(Object::Pod(pod.clone())))], &pod.key)
}

fn addresses(events: &[ClusterEvent], of: &PodKey) -> Vec<String> {
    let found = events.iter().find_map(|event| {
        let ClusterEvent::Apply(Object::Pod(pod)) = event else { return None };
        (pod.key == *of).then_some(pod)
    });
    let pod = found.unwrap_or_else(|| panic!("nothing about {of} in {events:?}"));
    pod.addresses.iter().map(ToString::to_string).collect()
}

fn view(interfaces: &[(u32, &str, &[&str])]) -> NodeView {
    let interface = |&(ifindex, name, addresses): &(u32, &str, &[&str])| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (ifindex, PodInterface { ifindex, name: name.to_owned(), mac: None, addresses })
    };
    NodeView { interfaces: interfaces.iter().map(interface).collect(), ..NodeView::default() }
}

fn behind(view: &NodeView, ifindex: u32) -> Vec<String> {
    view.interfaces[&ifindex].addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_pod_has_its_address_before_its_status_says_so() {
    let mut attachments = Attachments::new("here");
    let (web, key) = (pod("web", "u1", &[]), PodKey::new("x", "web"));
    assert!(taken(&mut attachments, &web).is_empty());
    let events = attachments.add(attachment("c1", "web", "u1", &["10.0.0.1", "fd00::1"]), Origin::Plugin).unwrap();
    assert_eq!(addresses(&events, &key), ["10.0.0.1", "fd00::1"]);
    // Whichever comes first.
    assert_eq!(taken(&mut attachments, &web), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn a_sandbox_that_was_made_again_counts_before_the_old_status_and_the_old_sandbox() {
    let mut attachments = Attachments::new("here");
    let web = pod("web", "u1", &["10.0.0.1"]);
    taken(&mut attachments, &web);
    attachments.add(attachment("c9", "web", "u1", &["10.0.0.1"]), Origin::Plugin).unwrap();
    let events = attachments.add(attachment("c1", "web", "u1", &["10.0.0.2"]), Origin::Plugin).unwrap();
    assert_eq!(addresses(&events, &web.key), ["10.0.0.2"]);
    // The DEL of the first comes late and changes nothing.
    assert!(attachments.remove(&attachment("c9", "", "", &[]).key).is_empty());
}

#[test]
fn the_next_pod_of_a_name_is_not_the_one_that_was_attached() {
    let mut attachments = Attachments::new("here");
    let old = attachment("c1", "db-0", "old", &["10.0.0.1"]);
    attachments.add(old.clone(), Origin::Plugin).unwrap();
    let next = pod("db-0", "new", &[]);
    assert!(taken(&mut attachments, &next).is_empty(), "it has no address yet");
    assert!(!attachments.knows_pod(&old));
    let attached = attachment("c2", "db-0", "new", &["10.0.0.2"]);
    assert_eq!(addresses(&attachments.add(attached.clone(), Origin::Plugin).unwrap(), &next.key), ["10.0.0.2"]);
    assert!(attachments.knows_pod(&attached));
}

#[test]
fn a_static_pod_is_known_by_the_uid_that_its_mirror_names() {
    let mut attachments = Attachments::new("here");
    let mirror = Pod { static_uid: "hash".into(), ..pod("dns", "u1", &[]) };
    taken(&mut attachments, &mirror);
    let events = attachments.add(attachment("c1", "dns", "hash", &["10.0.0.1"]), Origin::Plugin).unwrap();
    assert_eq!(addresses(&events, &mirror.key), ["10.0.0.1"]);
}

#[test]
fn an_address_is_the_next_pods_once_it_is_attached_there() {
    let mut attachments = Attachments::new("here");
    let gone = pod("gone", "u1", &["10.0.0.1"]);
    taken(&mut attachments, &gone);
    taken(&mut attachments, &pod("next", "u2", &[]));
    let next = attachment("c2", "next", "u2", &["10.0.0.1"]);
    let events = attachments.add(next.clone(), Origin::Plugin).unwrap();
    assert!(addresses(&events, &gone.key).is_empty(), "its sandbox is gone, its status is late");
    assert_eq!(addresses(&events, &PodKey::new("x", "next")), ["10.0.0.1"]);
    // And back: nobody but the status speaks of it then.
    assert_eq!(addresses(&attachments.remove(&next.key), &gone.key), ["10.0.0.1"]);
}

#[test]
fn pods_of_other_nodes_and_the_host_network_are_as_the_source_says() {
    let mut attachments = Attachments::new("here");
    attachments.add(attachment("c1", "web", "u1", &["10.0.0.1"]), Origin::Plugin).unwrap();
    let elsewhere = Pod { node: "there".into(), ..pod("web", "u1", &["10.0.0.1"]) };
    assert_eq!(taken(&mut attachments, &elsewhere), ["10.0.0.1"]);
    let host = Pod { host_network: true, ..pod("proxy", "u2", &["10.0.0.1"]) };
    assert_eq!(taken(&mut attachments, &host), ["10.0.0.1"]);
    let gone = ClusterEvent::Delete(ObjectRef::Pod(elsewhere.key));
    assert_eq!(attachments.take(gone.clone()), gone);
}

#[test]
fn only_what_nobody_told_is_looked_for() {
    let mut attachments = Attachments::new("here");
    let elsewhere = Pod { node: "there".into(), ..pod("far", "u1", &["10.0.1.1"]) };
    let anywhere = Pod { node: "".into(), ..pod("any", "u2", &["10.0.0.2"]) };
    let over = Pod { terminal: true, ..pod("job", "u3", &["10.0.0.3"]) };
    for pod in [pod("web", "u4", &["10.0.0.4", "fd00::4"]), pod("api", "u5", &["10.0.0.5"]), elsewhere, anywhere, over]
    {
        taken(&mut attachments, &pod);
    }
    attachments.add(attachment("c1", "web", "u4", &["10.0.0.4"]), Origin::Plugin).unwrap();
    let unplaced: Vec<String> = attachments.unplaced().iter().map(ToString::to_string).collect();
    assert_eq!(unplaced, ["10.0.0.2", "10.0.0.5"]);
}

#[test]
fn an_interface_is_the_recorded_pods_whoever_answers_there() {
    let mut attachments = Attachments::new("here");
    attachments.add(attachment("c1", "web", "u1", &["10.0.0.1"]), Origin::Plugin).unwrap();
    let seen = view(&[(7, "veth-c1", &["10.0.0.9"]), (8, "veth-c2", &["10.0.0.1", "10.0.0.2"])]);
    let bound = attachments.bind(&seen);
    assert_eq!(behind(&bound, 7), ["10.0.0.1"]);
    assert_eq!(bound.interfaces[&7].mac, Some([0x0a, 0x58, 0x0a, 0, 0, 1]));
    assert_eq!(behind(&bound, 8), ["10.0.0.2"], "found by asking, as no plugin is installed");
    assert!(bound.problems.is_empty());
}

#[test]
fn with_the_plugin_in_place_a_stranger_is_held_and_told() {
    let mut attachments = Attachments::new("here");
    attachments.add(attachment("c1", "web", "u1", &["10.0.0.1"]), Origin::Cache).unwrap();
    attachments.set_strangers(Strangers::Held { except: BTreeSet::from([9]) });
    let seen = view(&[(7, "veth-c1", &[]), (8, "veth8", &["10.0.0.2"]), (9, "veth9", &["10.0.0.3"])]);
    let start = Instant::now();
    assert!(!attachments.look(&seen, start));
    let bound = attachments.bind(&seen);
    assert!(behind(&bound, 8).is_empty(), "held at once");
    assert_eq!(bound.problems.len(), 1, "the plugin may be about to speak: {:?}", bound.problems);
    assert_eq!(attachments.unspoken(&seen), BTreeSet::from([(8, "veth8".to_owned()), (9, "veth9".to_owned())]));
    assert!(attachments.look(&seen, start + Duration::from_secs(10)));
    let bound = attachments.bind(&seen);
    assert_eq!(behind(&bound, 7), ["10.0.0.1"], "the runtime's cache is root's word, if not the plugin's");
    assert!(behind(&bound, 8).is_empty());
    assert_eq!(behind(&bound, 9), ["10.0.0.3"], "it was there before");
    let objects: Vec<&str> = bound.problems.iter().map(|problem| problem.object.as_str()).collect();
    assert_eq!(objects, ["interface veth-c1", "interface veth8"]);
}

#[test]
fn a_pod_is_attached_until_the_last_sandbox_of_its_name_is_gone() {
    let mut attachments = Attachments::new("here");
    let (earlier, later) = (attachment("c1", "web", "u1", &["10.0.0.1"]), attachment("c2", "web", "u2", &["10.0.0.2"]));
    attachments.add(earlier.clone(), Origin::Plugin).unwrap();
    attachments.add(later.clone(), Origin::Plugin).unwrap();
    // Its DEL comes late.
    attachments.remove(&earlier.key);
    assert!(attachments.is_attached(&later.pod_key()));
    attachments.remove(&later.key);
    assert!(!attachments.is_attached(&later.pod_key()));
}

#[test]
fn an_interface_that_is_about_to_go_is_no_stranger() {
    let mut attachments = Attachments::new("here");
    attachments.set_strangers(Strangers::Held { except: BTreeSet::new() });
    let web = attachment("c1", "web", "u1", &["10.0.0.1"]);
    attachments.add(web.clone(), Origin::Plugin).unwrap();
    assert!(!attachments.is_leaving("veth-c1"));
    attachments.remove(&web.key);
    assert!(attachments.is_leaving("veth-c1"), "the runtime's cache may have it still");
    let (start, seen) = (Instant::now(), view(&[(7, "veth-c1", &[])]));
    attachments.look(&seen, start);
    assert!(!attachments.look(&seen, start + Duration::from_secs(60)));
    assert!(attachments.bind(&seen).problems.is_empty());
    // Once it is gone its name is anybody's.
    attachments.look(&view(&[]), start);
    assert!(!attachments.is_leaving("veth-c1"));
    attachments.look(&seen, start);
    assert!(attachments.look(&seen, start + Duration::from_secs(60)));
}

#[test]
fn a_record_without_its_interface_is_left_behind_in_time() {
    let mut attachments = Attachments::new("here");
    let web = attachment("c1", "web", "u1", &["10.0.0.1"]);
    attachments.add(web.clone(), Origin::Plugin).unwrap();
    let start = Instant::now();
    attachments.look(&view(&[]), start);
    assert!(attachments.left_behind(start + Duration::from_secs(59)).is_empty());
    assert_eq!(attachments.left_behind(start + Duration::from_secs(60)), [web.key]);
    attachments.look(&view(&[(7, "veth-c1", &[])]), start);
    assert!(attachments.left_behind(start + Duration::from_secs(60)).is_empty());
}

#[test]
fn an_attachment_that_cannot_be_policed_is_refused() {
    let mut attachments = Attachments::new("here");
    for mac in
        ["", "0a:58:0a:00:00", "0a:58:0a:00:00:01:02", "0a:58:0a:00:00:zz", "a:58:0a:00:00:01", "+a:58:0a:00:00:01"]
    {
        let broken = Attachment { mac: mac.to_owned(), ..attachment("c1", "web", "u1", &["10.0.0.1"]) };
        assert_eq!(attachments.add(broken, Origin::Plugin), Err(AttachmentError::Mac(mac.to_owned())));
    }
    let bare = attachments.add(attachment("c1", "web", "u1", &[]), Origin::Plugin);
    assert!(matches!(bare, Err(AttachmentError::NoAddress(_))), "{bare:?}");
    assert_eq!(attachments.iter().count(), 0);
}
