//! Pods' interfaces: an endpoint in the maps and programs on the interface, in the order that lets nothing through.
//!
//! In: [`Local`]s that the view has, or has no longer. Out: what is attached, and a problem for each that could not be. A
//! failure is kept by interface and tried again by the next pass.

use std::time::SystemTime;

use netpol_common::abi::Endpoint;

use super::Enforcer;
use crate::datapath::attach::{AttachError, Role};
use crate::endpoints::Local;
use crate::problem::{Problem, Severity};

impl Enforcer {
    /// Attaches interfaces that are not yet, with the endpoint that denies until the pod's policy is in the maps; where an
    /// earlier agent's programs run they go on.
    pub(super) fn hold_new(&mut self) {
        let is_new =
            |local: &&Local| !self.attached.contains_key(&local.ifindex) && !self.live.contains(&local.ifindex);
        let new: Vec<Local> = self.endpoints.iter().filter(is_new).cloned().collect();
        for local in new {
            let endpoint = Endpoint { slot: local.slot, flags: self.endpoints.pending_flag(), ..Endpoint::default() };
            self.put(&local, endpoint);
        }
    }

    /// Writes whom marks speak of: pods whose hooks an earlier agent's programs still have may mark already.
    pub(super) fn write_pods(&mut self) {
        let locals: Vec<Local> = self.endpoints.iter().cloned().collect();
        for local in locals {
            if let Err(error) = self.store.write_pod(&local.endpoint) {
                self.fail(&local, &error.to_string());
            }
        }
    }

    /// Writes endpoints that changed. A slot's policy is in the maps by now.
    pub(super) fn write_endpoints(&mut self) {
        let changed: Vec<Local> =
            self.endpoints.iter().filter(|it| self.attached.get(&it.ifindex) != Some(&it.endpoint)).cloned().collect();
        for local in changed {
            self.put(&local, local.endpoint);
            if let Some(pod) = &local.pod {
                tracing::info!(%pod, interface = local.interface, slot = local.slot, "enforcing");
            }
        }
    }

    pub(super) fn put(&mut self, local: &Local, endpoint: Endpoint) {
        // Before its hook: a mark must never speak of a pod that nobody knows.
        if let Err(error) = self.store.write_pod(&endpoint) {
            self.fail(local, &error.to_string());
            return;
        }
        if let Err(error) = self.store.write_endpoint(local.ifindex, &endpoint) {
            self.fail(local, &error.to_string());
            return;
        }
        if !self.attached.contains_key(&local.ifindex) {
            match self.hooks.attach(local.ifindex, Role::Pod) {
                Ok(attachment) if attachment.ahead.is_empty() => {}
                Ok(attachment) => {
                    let message = format!("other programs run before ours: {:?}", attachment.ahead);
                    self.overtaken.insert(local.ifindex, not_as_written(local, &message));
                }
                Err(AttachError::Gone { .. }) => return,
                Err(error) => {
                    self.fail(local, &error.to_string());
                    return;
                }
            }
        }
        if self.attached.insert(local.ifindex, endpoint) != Some(endpoint) {
            self.since.insert(local.ifindex, SystemTime::now());
        }
        self.failed.remove(&local.ifindex);
    }

    pub(super) fn detach(&mut self, local: &Local) {
        self.attached.remove(&local.ifindex);
        self.since.remove(&local.ifindex);
        self.live.remove(&local.ifindex);
        self.failed.remove(&local.ifindex);
        self.overtaken.remove(&local.ifindex);
        if let Err(error) = self.hooks.detach(local.ifindex) {
            tracing::warn!(interface = local.interface, %error, "cannot clean up after an interface that is gone");
        }
        let removed = self.store.remove_endpoint(local.ifindex).and_then(|()| self.store.remove_pod(local.slot));
        if let Err(error) = removed {
            tracing::warn!(interface = local.interface, %error, "cannot clean up after an interface that is gone");
        }
    }

    fn fail(&mut self, local: &Local, message: &str) {
        self.failed.insert(local.ifindex, not_as_written(local, message));
    }
}

fn not_as_written(local: &Local, message: &str) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: "node".to_owned(),
        object: format!("interface {}", local.interface),
        field: String::new(),
        message: message.to_owned(),
        effect: "policy is not enforced there as written until this is mended".to_owned(),
    }
}
