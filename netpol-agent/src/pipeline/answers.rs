//! What the pipeline answers on its socket: collects what its parts know, and has `observe::report` make answers of it.

use std::time::Instant;

use serde_json::{Value, json};

use super::Pipeline;
use crate::cluster::model::PolicyKey;
use crate::datapath::backstop;
use crate::observe::answer::{BackstopReport, CniReport, EndpointList, PolicyAnswer, PolicyList, Status};
use crate::observe::report;
use crate::observe::translation::Translation;
use crate::problem::{Problem, Severity};

impl Pipeline {
    /// Tells the health checks that the loop turns, and how things are.
    pub(super) fn beat(&self) {
        let source = self.feed.report();
        let behind = self.enforcer.is_behind().then(|| {
            let refused = self.enforcer.problems().into_iter().find(|problem| problem.severity == Severity::Refused);
            refused.map_or_else(|| "the kernel refused something".to_owned(), |problem| problem.to_string())
        });
        let begun = self.begun;
        self.vitals.send_modify(|vitals| {
            vitals.beat = Some(Instant::now());
            vitals.applied_once |= begun && source.synced && behind.is_none();
            vitals.source = source;
            vitals.behind = behind;
        });
    }

    pub(super) fn status(&self) -> Value {
        let endpoints = self.enforcer.statuses();
        let problems = self.all_problems();
        let lost = self.enforcer.store().events_lost().ok();
        answer(&Status {
            node: self.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settled: self.is_settled(),
            generation: self.enforcer.generation(),
            enforced: self.enforcer.enforced_generation(),
            unresolved: self.node.view().unresolved.iter().copied().collect(),
            source: self.feed.report(),
            pods: report::pod_counts(&endpoints),
            policies: self.enforcer.cluster().policies().count(),
            problem_counts: report::problem_counts(&problems),
            endpoints,
            uplinks: self.enforcer.uplinks(),
            backstop: backstop_report(),
            cni: self.cni_report(),
            problems,
            events: self.flows.counts(lost),
        })
    }

    pub(super) fn endpoint_list(&self) -> Value {
        answer(&EndpointList { node: self.node_name.clone(), endpoints: self.enforcer.statuses() })
    }

    pub(super) fn policy_list(&self) -> Value {
        let policies = report::policies(self.enforcer.cluster(), &self.enforcer.statuses(), &self.all_problems());
        answer(&PolicyList {
            node: self.node_name.clone(),
            settled: self.is_settled(),
            generation: self.enforcer.generation(),
            enforced: self.enforcer.enforced_generation(),
            unresolved: self.node.view().unresolved.iter().copied().collect(),
            source: self.feed.report(),
            policies,
        })
    }

    pub(super) fn policy(&self, namespace: &str, name: &str) -> Value {
        let (state, key) = (self.enforcer.cluster(), PolicyKey::new(namespace, name));
        let policy = report::policy(state, &key, &self.enforcer.statuses(), &self.all_problems());
        let similar = if policy.is_some() { Vec::new() } else { report::similar(state, &key) };
        answer(&PolicyAnswer { node: self.node_name.clone(), policy, similar })
    }

    fn cni_report(&self) -> CniReport {
        let problem =
            self.installer.as_ref().and_then(|installer| installer.problems().iter().max_by_key(|it| it.severity));
        let state = match (&self.installer, problem.map(|problem| problem.severity)) {
            (None, _) if self.cni.cni_conf_dir.is_none() => "off",
            (None, _) | (Some(_), Some(Severity::Note)) => "waiting",
            (Some(_), Some(Severity::Refused)) => "failed",
            (Some(_), None) => "installed",
        };
        CniReport { state: state.to_owned(), message: problem.map(|problem| problem.message.clone()) }
    }

    fn is_settled(&self) -> bool {
        self.begun && !self.enforcer.is_behind() && self.node.view().unresolved.is_empty()
    }

    /// What the source could not take, and what could not be enforced.
    pub(super) fn all_problems(&self) -> Vec<Problem> {
        let mut problems = self.source_problems.clone();
        problems.extend(self.problems());
        problems
    }

    pub(super) fn counters(&self) -> Value {
        let mut counters = Vec::new();
        let mut translation = Vec::new();
        let mut total = Translation::default();
        for local in self.enforcer.endpoints().iter() {
            let Ok(of_slot) = self.enforcer.store().counters(local.slot) else {
                return json!({ "error": format!("cannot read the counters of slot {}", local.slot) });
            };
            let of_pod = Translation::of(&of_slot);
            total = total.plus(of_pod);
            let pod = local.pod.as_ref().map(ToString::to_string).unwrap_or_default();
            if of_pod != Translation::default() {
                translation.push(json!({ "pod": pod, "packets": of_pod }));
            }
            for ((direction, reason), counter) in of_slot {
                counters.push(json!({
                    "pod": pod,
                    "direction": direction.name(),
                    "reason": reason.name(),
                    "packets": counter.packets,
                    "bytes": counter.bytes,
                }));
            }
        }
        json!({ "counters": counters, "translation": { "pods": translation, "total": total } })
    }
}

fn answer(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value)
        .unwrap_or_else(|error| json!({ "error": format!("cannot be written as JSON: {error}") }))
}

fn backstop_report() -> BackstopReport {
    let (state, dropped, error) = match backstop::dropped() {
        Ok(Some(dropped)) => ("in-force", serde_json::to_value(dropped).ok(), None),
        Ok(None) => ("missing", None, None),
        Err(error) => ("missing", None, Some(error.to_string())),
    };
    BackstopReport { state: state.to_owned(), dropped, error }
}
