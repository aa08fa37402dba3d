//! Requests of the CNI plugin: an ADD is answered when the pod's policy is in force on its interface.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netpol_common::abi::{Endpoint, EndpointFlags};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::asking::Answer;
use super::{Pipeline, say};
use crate::attachments::{Origin, Strangers};
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, PodKey};
use crate::cni::install::{CniInstaller, InstallOptions};
use crate::cni::protocol::{Attachment, AttachmentKey, CniAnswer, CniRequest};
use crate::cni::records::RecordError;
use crate::cni::{PLUGIN_TYPE, cache};
use crate::problem::chain;

/// How long an ADD waits; runtimes give up after minutes, and the kubelet tries again.
const ADD_LIMIT: Duration = Duration::from_secs(20);
/// "Try again later" (CNI spec 1.1, "Error").
const TRY_AGAIN: u32 = 11;
/// "The plugin is not available" (CNI spec 1.1, "STATUS").
const NOT_AVAILABLE: u32 = 50;

/// An ADD that waits for its pod.
pub(super) struct Waiting {
    key: AttachmentKey,
    answer: oneshot::Sender<Value>,
    deadline: Instant,
}

impl Pipeline {
    /// Serves a request of the plugin.
    pub(super) async fn serve_plugin(&mut self, request: CniRequest, answer: oneshot::Sender<Value>) {
        let outcome = match request {
            CniRequest::Add(attachment) => match self.attach(attachment).await {
                Ok(key) => {
                    self.waiting.push(Waiting { key, answer, deadline: Instant::now() + ADD_LIMIT });
                    self.answer_waiting();
                    return self.ask_for_pods();
                }
                Err(message) => Err((TRY_AGAIN, message)),
            },
            CniRequest::Del(key) => {
                self.let_go([key]);
                Ok(())
            }
            CniRequest::Check(key) => self.why_not_in_force(&key).map_or(Ok(()), |why| Err((TRY_AGAIN, why))),
            CniRequest::Gc { valid } => {
                self.collect(&valid.into_iter().collect());
                Ok(())
            }
            CniRequest::Status if self.begun => Ok(()),
            CniRequest::Status => Err((NOT_AVAILABLE, "netpol-agent has not seen the whole cluster yet".to_owned())),
        };
        tell(answer, outcome);
    }

    /// Records an attachment and makes the datapath follow.
    async fn attach(&mut self, attachment: Attachment) -> Result<AttachmentKey, String> {
        let key = attachment.key.clone();
        self.records.put(&attachment).map_err(|error| chain(&error))?;
        tracing::debug!(%key, pod = %attachment.pod_key(), interface = attachment.host_interface, "CNI ADD");
        let events = self.attachments.add(attachment, Origin::Plugin).map_err(|error| error.to_string())?;
        self.enforcer.take(events);
        // The interface was there before the plugin was asked: whatever netlink has not told yet it can tell now.
        self.node.catch_up().await;
        self.enforce();
        Ok(key)
    }

    /// Forgets attachments.
    fn let_go(&mut self, keys: impl IntoIterator<Item = AttachmentKey>) {
        for key in keys {
            if let Err(error) = self.records.remove(&key) {
                tracing::warn!(%key, "{}", chain(&error));
            }
            let pod = self.attachments.get(&key).map(Attachment::pod_key);
            let events = self.attachments.remove(&key);
            self.enforcer.take(events);
            // The source never saw it: nobody else would end it. An earlier sandbox's DEL, or an earlier pod's of the name, that
            // comes late does not.
            let is_last = |pod: &PodKey| !self.attachments.is_attached(pod);
            if let Some(unseen) = pod.filter(is_last).filter(|pod| self.asking.end(pod)) {
                let gone = self.attachments.take(ClusterEvent::Delete(ObjectRef::Pod(unseen)));
                self.enforcer.take([gone]);
            }
        }
        self.enforce();
    }

    /// Forgets what the runtime no longer has.
    fn collect(&mut self, valid: &BTreeSet<AttachmentKey>) {
        let is_awaited = |key: &AttachmentKey| self.waiting.iter().any(|waiting| waiting.key == *key);
        let of_plugin = self.attachments.iter().filter(|(_, origin)| *origin == Origin::Plugin);
        let keys = of_plugin.map(|(attachment, _)| attachment.key.clone());
        let gone: Vec<AttachmentKey> = keys.filter(|key| !valid.contains(key) && !is_awaited(key)).collect();
        if !gone.is_empty() {
            self.let_go(gone);
        }
    }

    /// Asks the API server for the pods that ADDs wait for: its word of them may be on its way to the source still.
    fn ask_for_pods(&mut self) {
        if !self.begun {
            return;
        }
        let Some(client) = self.feed.client() else { return };
        for waiting in &self.waiting {
            let attachment = self.attachments.get(&waiting.key);
            if let Some(attachment) = attachment.filter(|it| !self.attachments.knows_pod(it)) {
                self.asking.ask(&client, attachment.pod_key());
            }
        }
    }

    /// Takes in a pod that was asked for.
    pub(super) fn take_asked(&mut self, answer: Answer) {
        let Some(pod) = self.asking.take(answer) else { return };
        let event = self.attachments.take(ClusterEvent::Apply(Object::Pod(pod)));
        self.enforcer.take([event]);
        self.enforce();
    }

    /// Answers each ADD whose pod's policy is in force, or whose time is up.
    pub(super) fn answer_waiting(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            match self.why_not_in_force(&waiting.key) {
                None => tell(waiting.answer, Ok(())),
                Some(why) if now >= waiting.deadline => {
                    tell(waiting.answer, Err((TRY_AGAIN, format!("not in force within {ADD_LIMIT:?}: {why}"))));
                }
                // Its plugin was killed: the runtime sends a DEL.
                Some(_) if waiting.answer.is_closed() => {}
                Some(_) => self.waiting.push(waiting),
            }
        }
    }

    /// What is missing until a pod's policy is in force on its interface.
    fn why_not_in_force(&self, key: &AttachmentKey) -> Option<String> {
        let Some(attachment) = self.attachments.get(key) else {
            return Some(format!("no ADD of {key} is known here"));
        };
        let (pod, interface) = (attachment.pod_key(), &attachment.host_interface);
        if !self.begun {
            return Some("the agent has not seen the whole cluster yet; see `netpol status`".to_owned());
        }
        if !self.attachments.knows_pod(attachment) {
            return Some(format!("pod {pod} (UID {:?}) is not known from the cluster yet", attachment.uid));
        }
        self.enforcer.why_not_enforced(interface, &pod)
    }

    /// Takes in what the plugin told an earlier agent, and what the runtime knows of pods from before.
    pub(super) fn recall(&mut self) -> Result<(), RecordError> {
        let (attachments, problems) = self.records.load()?;
        problems.iter().for_each(say);
        for attachment in attachments {
            let key = attachment.key.clone();
            if let Err(error) = self.attachments.add(attachment, Origin::Plugin) {
                tracing::warn!(%key, %error, "cannot use the record of an attachment");
            }
        }
        self.ask_runtime();
        Ok(())
    }

    /// What an interface of a pod counts as that nobody told of. Those that were there before the plugin, or that an earlier
    /// agent had found, are looked for as before.
    pub(super) fn strangers(&self) -> Strangers {
        if self.cni.cni_conf_dir.is_none() {
            return Strangers::Located;
        }
        let is_bound = |endpoint: &Endpoint| endpoint.has(EndpointFlags::HAS_V4) || endpoint.has(EndpointFlags::HAS_V6);
        let found: BTreeSet<u32> =
            self.enforcer.endpoints().iter().filter(|it| is_bound(&it.endpoint)).map(|it| it.ifindex).collect();
        let before = self.node.view().interfaces.keys().copied();
        Strangers::Held { except: before.filter(|ifindex| !self.adopted || found.contains(ifindex)).collect() }
    }

    /// Looks into the runtime's cache of results for interfaces that nobody told of; true if it told something new.
    fn ask_runtime(&mut self) -> bool {
        let view = self.node.view();
        if !self.attachments.is_word_missing(view) {
            return false;
        }
        let names: BTreeSet<&str> = view.interfaces.values().map(|interface| interface.name.as_str()).collect();
        let directory = &self.cni.cni_cache;
        let cached = match cache::read(directory, |name| names.contains(name)) {
            Ok(cached) => cached,
            Err(error) => {
                let directory = directory.display();
                tracing::debug!(%directory, %error, "cannot read the runtime's cache of CNI results");
                return false;
            }
        };
        let mut is_news = false;
        for attachment in cached.attachments {
            let (key, interface) = (attachment.key.clone(), attachment.host_interface.as_str());
            // The runtime drops its result after the last plugin's DEL, and ours has the first.
            let is_there = names.contains(interface) && !self.attachments.is_leaving(interface);
            if !is_there || self.attachments.get(&key).is_some() {
                continue;
            }
            match self.attachments.add(attachment, Origin::Cache) {
                Ok(events) => {
                    self.enforcer.take(events);
                    is_news = true;
                }
                Err(error) => tracing::warn!(%key, %error, "cannot use a result of the runtime's cache"),
            }
        }
        is_news
    }

    /// Keeps plugin and configuration in place from now on.
    pub(super) fn install_plugin(&mut self) {
        let Some(conf_dir) = self.cni.cni_conf_dir.clone() else { return };
        let beside = || std::env::current_exe().map(|own| own.with_file_name(PLUGIN_TYPE));
        let plugin_binary = match self.cni.cni_plugin.clone().map_or_else(beside, Ok) {
            Ok(path) => path,
            Err(error) => {
                tracing::error!(%error, "cannot tell where netpol-cni is; give it with --cni-plugin");
                return;
            }
        };
        self.installer = Some(CniInstaller::start(InstallOptions {
            conf_dir,
            bin_dir: self.cni.cni_bin_dir.clone(),
            plugin_binary,
            socket: self.socket.clone(),
            agent_absent: self.cni.agent_absent,
            timeout_seconds: None,
            enter_namespace: !self.cni.cni_stay_outside,
        }));
        // What its first look found is no change: on a quiet node nothing else would say it.
        self.tell_problems();
    }

    /// What time brings: alarms about interfaces that nobody told of, records that nobody will end.
    pub(super) fn tend_attachments(&mut self) {
        let now = Instant::now();
        let is_alarm = self.attachments.look(self.node.view(), now);
        let left_behind = self.attachments.left_behind(now);
        if !left_behind.is_empty() {
            self.let_go(left_behind);
        } else if self.ask_runtime() || is_alarm {
            self.enforce();
        }
        self.answer_waiting();
        self.ask_for_pods();
    }
}

fn tell(answer: oneshot::Sender<Value>, outcome: Result<(), (u32, String)>) {
    let answered = match outcome {
        Ok(()) => CniAnswer::Done,
        Err((code, message)) => CniAnswer::Failed { code, message },
    };
    let value = serde_json::to_value(&answered)
        .unwrap_or_else(|error| json!({ "result": "failed", "code": TRY_AGAIN, "message": error.to_string() }));
    if answer.send(value).is_err() {
        tracing::debug!("a plugin did not wait for its answer");
    }
}
