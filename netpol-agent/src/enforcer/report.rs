//! How the enforcer's pods and devices fare, and what is not enforced as written: read only.

use super::Enforcer;
use crate::cluster::model::PodKey;
use crate::endpoints::Local;
use crate::flow::timestamp;
use crate::observe::answer::{EndpointReport, UplinkReport};
use crate::observe::report;
use crate::problem::Problem;

impl Enforcer {
    /// Everything that is not enforced as written, but for what the source knows.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.compiler.problems();
        problems.extend_from_slice(self.endpoints.problems());
        problems.extend(self.failed.values().chain(self.overtaken.values()).cloned());
        problems.extend(self.uplinks.problems().cloned());
        problems.extend(self.first.problem().cloned());
        problems.extend(self.backstop_problem.clone());
        problems.extend_from_slice(&self.apply_problems);
        problems.extend(self.role_problem.clone());
        problems
    }

    /// How each device fares that packets leave the node through.
    #[must_use]
    pub fn uplinks(&self) -> Vec<UplinkReport> {
        self.uplinks.statuses()
    }

    /// How each local pod fares.
    #[must_use]
    pub fn statuses(&self) -> Vec<EndpointReport> {
        let provenance = self.compiler.provenance();
        let status = |local: &Local| {
            let state = match &local.pod {
                _ if self.failed.contains_key(&local.ifindex) => "failed",
                Some(_) if self.attached.get(&local.ifindex) == Some(&local.endpoint) => "enforced",
                _ => "pending",
            };
            let word = self.applier.installed().word(local.slot);
            let since = self.since.get(&local.ifindex).map(|since| timestamp(*since));
            EndpointReport { since, ..report::endpoint(local, state, word, &provenance) }
        };
        self.endpoints.iter().map(status).collect()
    }

    /// What is missing until the policy of `pod` is in force on the interface of this name; nothing if it is.
    #[must_use]
    pub fn why_not_enforced(&self, interface: &str, pod: &PodKey) -> Option<String> {
        let Some(local) = self.endpoints.iter().find(|local| local.interface == interface) else {
            return Some(format!("interface {interface} is not there, or its name is not that of a pod's interface"));
        };
        if let Some(problem) = self.failed.get(&local.ifindex) {
            return Some(problem.to_string());
        }
        if local.pod.as_ref() != Some(pod) {
            let other = local.pod.as_ref().map_or_else(|| "nobody's".to_owned(), ToString::to_string);
            return Some(format!("interface {interface} is {other}, not {pod}'s"));
        }
        if self.attached.get(&local.ifindex) != Some(&local.endpoint) {
            return Some(format!("programs are not on interface {interface} yet"));
        }
        self.is_behind().then(|| "the kernel did not take all of the policy; see `netpol status`".to_owned())
    }
}
