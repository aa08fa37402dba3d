//! What addresses are to this node, and which of its ports are services': written when services, pods that matter, or the
//! node's own addresses change.

use super::Enforcer;
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, Pod, PodKey};
use crate::node::view::NodeView;
use crate::problem::{Problem, Severity};
use crate::services;

impl Enforcer {
    /// True if what addresses are to this node may change: by services, by pods in nodes' networks and those that nodes' ports
    /// lead to. Most pods are neither, and looking through all pods for each that changes would not scale.
    pub(super) fn concerns_roles(&self, event: &ClusterEvent) -> bool {
        let concerns = |pod: &Pod| pod.host_network || !pod.host_ports.is_empty();
        let known = |key: &PodKey| self.compiler.state().pod(key).is_some_and(|pod| concerns(pod));
        match event {
            ClusterEvent::Apply(Object::Pod(pod)) => concerns(pod) || known(&pod.key),
            ClusterEvent::Delete(ObjectRef::Pod(key)) => known(key),
            ClusterEvent::Apply(Object::Service(_)) | ClusterEvent::Delete(ObjectRef::Service(_)) => true,
            ClusterEvent::Apply(_) | ClusterEvent::Delete(_) => false,
        }
    }

    pub(super) fn write_roles(&mut self, view: &NodeView) {
        if !self.roles_due && self.own_addresses == view.own_addresses {
            return;
        }
        let roles = services::address_roles(self.compiler.state(), &view.own_addresses);
        let ports = services::node_ports(self.compiler.state());
        let mut written = self.store.sync_address_roles(&roles);
        if written.is_ok() && self.node_ports.as_ref() != Some(&ports) {
            written = self.store.write_node_ports(&ports);
            self.node_ports = written.is_ok().then_some(ports);
        }
        let problem = written.err().map(|error| Problem {
            severity: Severity::Refused,
            origin: "node".to_owned(),
            object: "services and own addresses".to_owned(),
            field: String::new(),
            message: error.to_string(),
            effect: "egress to those that are missing is judged by their own address, not by the backend".to_owned(),
        });
        if let Some(problem) = problem.as_ref().filter(|it| self.role_problem.as_ref() != Some(it)) {
            tracing::error!("{problem}");
        }
        self.roles_due = problem.is_some();
        self.own_addresses.clone_from(&view.own_addresses);
        self.role_problem = problem;
    }
}
