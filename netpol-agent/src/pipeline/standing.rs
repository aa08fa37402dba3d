//! How things are, for those who are told every second: policies' authors and the metrics. Made anew only when it may have
//! changed, as it takes a look at every pod and policy.

use super::Pipeline;
use crate::observe::answer::{PodCounts, ProblemCounts};
use crate::observe::export::Exporter;
use crate::observe::report;
use crate::problem::Problem;

/// What was told last.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) pods: PodCounts,
    pub(super) problems: ProblemCounts,
    /// Problems that come and go by themselves.
    outside: Vec<Problem>,
}

impl Pipeline {
    /// What is wrong outside the agent, and may change without a word.
    pub(super) fn outside_problems(&self) -> Vec<Problem> {
        let mut problems = self.node.bridge_problems();
        problems.extend(self.flows.exporter().and_then(Exporter::problem));
        problems
    }

    /// Tells authors of policies and the metrics how things are, if that may have changed.
    pub(super) fn tell_standing(&mut self) {
        let outside = self.outside_problems();
        if self.standing.as_ref().is_some_and(|told| told.outside == outside) {
            return;
        }
        let (endpoints, problems) = (self.enforcer.statuses(), self.all_problems());
        if let Some(events) = self.policy_events.as_ref().filter(|_| self.begun) {
            events.tell(report::troubles(self.enforcer.cluster(), &endpoints, &problems));
        }
        self.standing = Some(Standing {
            pods: report::pod_counts(&endpoints),
            problems: report::problem_counts(&problems),
            outside,
        });
    }
}
