//! Which pod is behind which interface, by the word of the CNI plugin: the one source that cannot be deceived by a pod.
//!
//! In: what the plugin told ([`Attachment`]), and every event of the source on its way to the enforcer. Out: the same events
//! with the addresses that pods of this node have *now* (status.podIPs come after the pod's first packet, and stay a while
//! after its last), and the [`NodeView`] with each interface bound to its pod. Pure: files are `cni::records`'.
//!
//! A record counts as long as it exists. Where it contradicts the API server the record is newer: a sandbox that was made
//! again has another address, and the address of one that is gone may be the next pod's already.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::is_live;
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod, PodKey};
use crate::cni::protocol::{Attachment, AttachmentKey};
use crate::node::view::NodeView;
use crate::problem::{Problem, Severity};

/// How long an interface may be without a word before that is an alarm: plugins before ours work meanwhile. It is held from
/// the first moment.
const WORD_DUE: Duration = Duration::from_secs(10);
/// How long a record may be without its interface: the kernel's notice of a new interface may come after the plugin.
const INTERFACE_DUE: Duration = Duration::from_secs(60);

/// How the agent came to know an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The plugin asked, and its runtime waited until the pod's policy was in force.
    Plugin,
    /// The runtime's cache of results: attached before the plugin was installed, or around it.
    Cache,
}

/// What is known of one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    attachment: Attachment,
    mac: [u8; 6],
    origin: Origin,
    /// Later ones count more.
    sequence: u64,
}

/// Why an attachment cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AttachmentError {
    /// Not an Ethernet address.
    #[error("{0:?} is no MAC address of six bytes")]
    Mac(String),
    /// Nothing to police.
    #[error("pod {0} has no address on its interface; its plugins gave none")]
    NoAddress(PodKey),
}

/// What an unknown interface counts as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Strangers {
    /// Addresses are looked for behind it (no plugin is installed).
    #[default]
    Located,
    /// Held, but for these, which were there before the plugin was installed.
    Held {
        /// Interface indexes.
        except: BTreeSet<u32>,
    },
}

/// The attachments of this node.
#[derive(Debug, Default)]
pub struct Attachments {
    /// Name of this node; empty: every pod may be here.
    node: Arc<str>,
    records: BTreeMap<AttachmentKey, Record>,
    /// Pods of this node as the source has them.
    pods: BTreeMap<PodKey, Pod>,
    strangers: Strangers,
    sequence: u64,
    /// Interfaces without a record that should have one, and since when.
    silent: BTreeMap<u32, Instant>,
    /// Those whose time is up.
    alarmed: BTreeSet<u32>,
    /// Interfaces that a DEL told of and that are still there.
    leaving: BTreeSet<String>,
    /// Records whose interface is not there, and since when.
    bodiless: BTreeMap<AttachmentKey, Instant>,
}

impl Attachments {
    /// None yet.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// Sets what interfaces without a record count as.
    pub fn set_strangers(&mut self, strangers: Strangers) {
        self.strangers = strangers;
    }

    /// Takes an event of the source and gives it on as this node knows better.
    pub fn take(&mut self, event: ClusterEvent) -> ClusterEvent {
        match event {
            ClusterEvent::Apply(Object::Pod(pod)) if self.is_here(&pod) => {
                self.pods.insert(pod.key.clone(), pod.clone());
                ClusterEvent::Apply(Object::Pod(self.corrected(pod)))
            }
            ClusterEvent::Apply(Object::Pod(pod)) => {
                self.pods.remove(&pod.key);
                ClusterEvent::Apply(Object::Pod(pod))
            }
            ClusterEvent::Delete(ObjectRef::Pod(key)) => {
                self.pods.remove(&key);
                ClusterEvent::Delete(ObjectRef::Pod(key))
            }
            other @ (ClusterEvent::Apply(_) | ClusterEvent::Delete(_)) => other,
        }
    }

    /// Takes an attachment in; returns what that changes about pods.
    ///
    /// # Errors
    /// If it names no usable MAC address, or no address at all.
    pub fn add(&mut self, attachment: Attachment, origin: Origin) -> Result<Vec<ClusterEvent>, AttachmentError> {
        let mac = usable_mac(&attachment)?;
        let before = self.effects();
        self.sequence += 1;
        let key = attachment.key.clone();
        self.records.insert(key, Record { attachment, mac, origin, sequence: self.sequence });
        Ok(self.changed_since(&before))
    }

    /// Forgets an attachment; returns what that changes about pods.
    pub fn remove(&mut self, key: &AttachmentKey) -> Vec<ClusterEvent> {
        let before = self.effects();
        if let Some(record) = self.records.remove(key) {
            self.leaving.insert(record.attachment.host_interface);
        }
        self.changed_since(&before)
    }

    /// Looks at the node anew, for what time tells: true if there is a new alarm.
    pub fn look(&mut self, view: &NodeView, now: Instant) -> bool {
        if let Strangers::Held { except } = &mut self.strangers {
            except.retain(|ifindex| view.interfaces.contains_key(ifindex));
        }
        let names: BTreeSet<&str> = view.interfaces.values().map(|interface| interface.name.as_str()).collect();
        self.leaving.retain(|name| names.contains(name.as_str()));
        let bodiless = self.records.values().map(|record| &record.attachment);
        let bodiless = bodiless.filter(|it| !names.contains(it.host_interface.as_str())).map(|it| it.key.clone());
        self.bodiless = bodiless.map(|key| (key.clone(), *self.bodiless.get(&key).unwrap_or(&now))).collect();
        let silent =
            view.interfaces.values().filter(|it| self.is_stranger(it.ifindex) && !self.is_spoken_for(&it.name));
        self.silent = silent.map(|it| (it.ifindex, *self.silent.get(&it.ifindex).unwrap_or(&now))).collect();
        let due = self.silent.iter().filter(|(_, since)| now.duration_since(**since) >= WORD_DUE);
        let alarmed = due.map(|(ifindex, _)| *ifindex).collect();
        let before = std::mem::replace(&mut self.alarmed, alarmed);
        !self.alarmed.is_subset(&before)
    }

    /// Interfaces, by index and name, that nobody told of: the runtime's cache may know whose they are.
    #[must_use]
    pub fn unspoken(&self, view: &NodeView) -> BTreeSet<(u32, String)> {
        let unspoken = view.interfaces.values().filter(|interface| !self.is_spoken_for(&interface.name));
        unspoken.map(|interface| (interface.ifindex, interface.name.clone())).collect()
    }

    /// Records that are without an interface for so long that it is gone.
    #[must_use]
    pub fn left_behind(&self, now: Instant) -> Vec<AttachmentKey> {
        let old = self.bodiless.iter().filter(|(_, since)| now.duration_since(**since) >= INTERFACE_DUE);
        old.map(|(key, _)| key.clone()).collect()
    }

    /// An attachment.
    #[must_use]
    pub fn get(&self, key: &AttachmentKey) -> Option<&Attachment> {
        self.records.get(key).map(|record| &record.attachment)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Attachment, Origin)> {
        self.records.values().map(|record| (&record.attachment, record.origin))
    }

    /// True if some record is of a pod of this name.
    #[must_use]
    pub fn is_attached(&self, pod: &PodKey) -> bool {
        self.records.values().any(|record| record.attachment.pod_key() == *pod)
    }

    /// True if a DEL told of this interface, which is there still: whoever knows it otherwise has not heard of that yet.
    #[must_use]
    pub fn is_leaving(&self, interface: &str) -> bool {
        self.leaving.contains(interface)
    }

    /// True if this pod is one that was attached, not only one of its name.
    #[must_use]
    pub fn has_pod(&self, pod: &Pod) -> bool {
        self.record_of(pod).is_some()
    }

    /// True if the source's pod of this name is the very one that was attached.
    #[must_use]
    pub fn knows_pod(&self, attachment: &Attachment) -> bool {
        self.pods.get(&attachment.pod_key()).is_some_and(|pod| is_of(attachment, pod))
    }

    /// Addresses of pods of this node, or that may be, whose place nobody told: to be looked for.
    #[must_use]
    pub fn unplaced(&self) -> BTreeSet<IpAddr> {
        let pods = self.pods.values().filter(|pod| is_live(pod) && self.record_of(pod).is_none());
        let recorded = self.addresses();
        pods.flat_map(|pod| pod.addresses.iter().copied()).filter(|address| !recorded.contains(address)).collect()
    }

    /// Addresses that records tell the place of.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.records.values().flat_map(|record| record.attachment.addresses.iter().copied()).collect()
    }

    /// The view with each interface bound as the records say, and what is wrong.
    #[must_use]
    pub fn bind(&self, view: &NodeView) -> NodeView {
        let mut bound = view.clone();
        let recorded = self.addresses();
        for interface in bound.interfaces.values_mut() {
            let mut of_interface = self.records.values().filter(|it| it.attachment.host_interface == interface.name);
            if let Some(record) = latest(&mut of_interface) {
                interface.mac = Some(record.mac);
                interface.addresses = record.attachment.addresses.iter().copied().collect();
                if record.origin == Origin::Cache && self.is_stranger(interface.ifindex) {
                    bound.problems.push(around_the_plugin(&interface.name, &record.attachment));
                }
                continue;
            }
            // An address that a record binds is not behind another interface, whoever answers for it there.
            interface.addresses.retain(|address| !recorded.contains(address));
            if self.is_stranger(interface.ifindex) {
                interface.addresses.clear();
                if self.alarmed.contains(&interface.ifindex) {
                    bound.problems.push(stranger(&interface.name));
                }
            }
        }
        bound.unresolved.retain(|address| !recorded.contains(address));
        bound
    }

    /// True if the interface should have come by way of the plugin.
    fn is_stranger(&self, ifindex: u32) -> bool {
        match &self.strangers {
            Strangers::Located => false,
            Strangers::Held { except } => !except.contains(&ifindex),
        }
    }

    /// True if a record says whose interface this is, or said so until its DEL.
    fn is_spoken_for(&self, interface: &str) -> bool {
        let is_recorded = self.records.values().any(|record| record.attachment.host_interface == interface);
        is_recorded || self.leaving.contains(interface)
    }

    fn is_here(&self, pod: &Pod) -> bool {
        !pod.host_network && (self.node.is_empty() || pod.node.is_empty() || pod.node == self.node)
    }

    /// The pod with the addresses that it has by the records.
    fn corrected(&self, mut pod: Pod) -> Pod {
        if let Some(record) = self.record_of(&pod) {
            pod.addresses.clone_from(&record.attachment.addresses);
            return pod;
        }
        let others = self.records.values().filter(|record| record.attachment.pod_key() != pod.key);
        let taken: BTreeSet<IpAddr> = others.flat_map(|record| record.attachment.addresses.iter().copied()).collect();
        pod.addresses.retain(|address| !taken.contains(address));
        pod
    }

    fn record_of(&self, pod: &Pod) -> Option<&Record> {
        latest(&mut self.records.values().filter(|record| is_of(&record.attachment, pod)))
    }

    fn effects(&self) -> BTreeMap<PodKey, Pod> {
        self.pods.iter().map(|(key, pod)| (key.clone(), self.corrected(pod.clone()))).collect()
    }

    fn changed_since(&self, before: &BTreeMap<PodKey, Pod>) -> Vec<ClusterEvent> {
        let after = self.effects().into_iter();
        let changed = after.filter(|(key, pod)| before.get(key) != Some(pod));
        changed.map(|(_, pod)| ClusterEvent::Apply(Object::Pod(pod))).collect()
    }
}

fn latest<'r>(records: &mut dyn Iterator<Item = &'r Record>) -> Option<&'r Record> {
    records.max_by_key(|record| record.sequence)
}

/// A pod of the same name may be an earlier or a later one: then its UID differs. A runtime that tells no UID is taken at
/// the name. The kubelet gives a static pod's own UID, which its mirror pod carries beside another of its own.
fn is_of(attachment: &Attachment, pod: &Pod) -> bool {
    let uid = attachment.uid.as_str();
    attachment.pod == *pod.key.name
        && attachment.namespace == *pod.key.namespace
        && (uid.is_empty() || pod.uid.is_empty() || *pod.uid == *uid || *pod.static_uid == *uid)
}

/// The MAC address of an attachment that can be used.
///
/// # Errors
/// As [`Attachments::add`].
pub fn usable_mac(attachment: &Attachment) -> Result<[u8; 6], AttachmentError> {
    if attachment.addresses.is_empty() {
        return Err(AttachmentError::NoAddress(attachment.pod_key()));
    }
    parse_mac(&attachment.mac).ok_or_else(|| AttachmentError::Mac(attachment.mac.clone()))
}

/// Six bytes in hexadecimal with colons.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let mut parts = text.split(':').map(|part| is_byte(part).then(|| u8::from_str_radix(part, 16).ok()).flatten());
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = parts.next()??;
    }
    parts.next().is_none().then_some(mac)
}

fn stranger(interface: &str) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: "node".to_owned(),
        object: format!("interface {interface}"),
        field: String::new(),
        message:
            "appeared without a word of the CNI plugin netpol-cni, and the runtime's cache does not know it; see which \
                  CNI configuration the runtime uses, or who made the interface"
                .to_owned(),
        effect: "its traffic is denied".to_owned(),
    }
}

fn around_the_plugin(interface: &str, attachment: &Attachment) -> Problem {
    Problem {
        severity: Severity::Note,
        origin: "node".to_owned(),
        object: format!("interface {interface}"),
        field: String::new(),
        message: format!(
            "pod {} was attached without netpol-cni; see which CNI configuration the runtime uses",
            attachment.pod_key()
        ),
        effect: "its policy is in force now; its first packets may have gone before it was".to_owned(),
    }
}
