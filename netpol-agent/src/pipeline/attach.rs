//! Requests of the CNI plugin: an ADD is answered when the pod's policy is in force on its interface.

use std::collections::BTreeSet;
use std::time::Instant;

use netpol_common::abi::{Endpoint, EndpointFlags};
use serde_json::Value;
use tokio::sync::oneshot;

use super::asking::Answer;
use super::waiting::{Progress, TRY_AGAIN, Waiting, tell};
use super::{Pipeline, say};
use crate::attachments::{Origin, Strangers, usable_mac};
use crate::cluster::model::{ClusterEvent, Object, PodKey};
use crate::cni::PLUGIN_TYPE;
use crate::cni::install::{CniInstaller, InstallOptions};
use crate::cni::protocol::{Attachment, AttachmentKey, CniRequest};
use crate::cni::records::RecordError;
use crate::problem::chain;

/// "The plugin is not available" (CNI spec 1.1, "STATUS").
const NOT_AVAILABLE: u32 = 50;

impl Pipeline {
    /// Serves a request of the plugin.
    pub(super) fn serve_plugin(&mut self, request: CniRequest, answer: oneshot::Sender<Value>) {
        let outcome = match request {
            CniRequest::Add(attachment) => match self.attach(attachment) {
                Ok(key) => {
                    // The interface was there before the plugin was asked: whatever netlink has not told yet it can tell now.
                    let look = self.node.look_anew();
                    self.waiting.push(Waiting::new(key, answer, (Instant::now(), look)));
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

    /// Records an attachment; the datapath follows once the node was looked at.
    fn attach(&mut self, attachment: Attachment) -> Result<AttachmentKey, String> {
        let key = attachment.key.clone();
        // One that cannot be used leaves no file behind.
        usable_mac(&attachment).map_err(|error| error.to_string())?;
        self.records.put(&attachment).map_err(|error| chain(&error))?;
        tracing::debug!(%key, pod = %attachment.pod_key(), interface = attachment.host_interface, "CNI ADD");
        let events = self.attachments.add(attachment, Origin::Plugin).map_err(|error| error.to_string())?;
        self.enforcer.take(events);
        Ok(key)
    }

    /// Forgets attachments.
    fn let_go(&mut self, keys: impl IntoIterator<Item = AttachmentKey>) {
        for key in keys {
            self.forget_record(&key);
            self.runtime.ended(&key);
            let pod = self.attachments.get(&key).map(Attachment::pod_key);
            let events = self.attachments.remove(&key);
            self.enforcer.take(events);
            // The source never saw it: nobody else would end it. An earlier sandbox's DEL, or an earlier pod's of the name, that
            // comes late does not.
            let is_last = |pod: &PodKey| !self.attachments.is_attached(pod);
            if let Some(left) = pod.filter(is_last).and_then(|pod| self.asking.end(&pod)) {
                self.take_events(vec![left]);
            }
        }
        self.enforce();
    }

    fn forget_record(&self, key: &AttachmentKey) {
        if let Err(error) = self.records.remove(key) {
            tracing::warn!(%key, "{}", chain(&error));
        }
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
        let attachments = &self.attachments;
        let Some(pod) = self.asking.take(answer, |pod| attachments.has_pod(pod)) else { return };
        self.take_events(vec![ClusterEvent::Apply(Object::Pod(pod))]);
        self.enforce();
    }

    /// Answers each ADD whose pod's policy is in force, or whose time is up.
    pub(super) fn answer_waiting(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            let progress = Progress { looks: self.node.looks(), missing: self.why_not_in_force(&waiting.key) };
            self.waiting.extend(waiting.judge(progress, now));
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
    pub(super) async fn recall(&mut self) -> Result<(), RecordError> {
        let (attachments, problems) = self.records.load()?;
        problems.iter().for_each(say);
        for attachment in attachments {
            let key = attachment.key.clone();
            if let Err(error) = self.attachments.add(attachment, Origin::Plugin) {
                tracing::warn!(%key, %error, "the record of an attachment cannot be used, and is removed");
                self.forget_record(&key);
            }
        }
        self.ask_runtime();
        let found = self.runtime.finish().await;
        self.take_cached(found);
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

    /// Has the runtime's cache of results looked into for interfaces that nobody told of.
    fn ask_runtime(&mut self) {
        let view = self.node.view();
        let names = view.interfaces.values().map(|interface| interface.name.clone()).collect();
        self.runtime.look(self.attachments.unspoken(view), names, Instant::now());
    }

    /// Takes in what the runtime's cache holds, and enforces it if it is something new.
    pub(super) fn take_found(&mut self, found: Vec<Attachment>) {
        if self.take_cached(found) {
            self.enforce();
        }
    }

    fn take_cached(&mut self, found: Vec<Attachment>) -> bool {
        let view = self.node.view();
        let names: BTreeSet<&str> = view.interfaces.values().map(|interface| interface.name.as_str()).collect();
        let mut is_news = false;
        for attachment in found {
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
        let overdue = self.asking.overdue(now);
        let is_behind = is_alarm || !overdue.is_empty();
        self.take_events(overdue);
        if !left_behind.is_empty() {
            self.let_go(left_behind);
        } else if is_behind {
            self.enforce();
        }
        self.ask_runtime();
        self.answer_waiting();
        self.ask_for_pods();
    }
}
