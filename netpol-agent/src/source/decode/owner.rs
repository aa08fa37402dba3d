//! Who made a pod: its controller, or what is known to make such controllers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::cluster::model::{Labels, Workload};

/// The label by which a Deployment's ReplicaSets end their names.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Digits that a CronJob puts behind its Jobs' names: minutes since 1970, seconds in older versions.
const CRON_DIGITS: std::ops::RangeInclusive<usize> = 8..=10;

/// The controller in an object's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    kind: String,
    name: String,
}

impl Owner {
    /// The controller of an object that has a generated name; a pod that somebody named has no workload to speak of.
    pub(super) fn of(generated: Option<String>, references: Option<Vec<OwnerReference>>) -> Option<Self> {
        generated.filter(|prefix| !prefix.is_empty())?;
        let controller = references?.into_iter().find(|it| it.controller == Some(true))?;
        Some(Self { kind: controller.kind, name: controller.name })
    }
}

/// The workload behind a controller: a ReplicaSet's Deployment, a Job's CronJob, by their names.
pub(super) fn workload(owner: &Owner, labels: &Labels) -> Option<Workload> {
    let Owner { kind, name } = owner;
    if kind.is_empty() || name.is_empty() {
        return None;
    }
    let (kind, name) = match kind.as_str() {
        "ReplicaSet" => match labels.get(TEMPLATE_HASH).and_then(|hash| name.strip_suffix(&**hash)) {
            Some(deployment) => ("Deployment", deployment.strip_suffix('-').unwrap_or(deployment)),
            None => (kind.as_str(), name.as_str()),
        },
        "Job" => match name.rsplit_once('-').filter(|(_, time)| is_time(time)) {
            Some((cron_job, _)) => ("CronJob", cron_job),
            None => (kind.as_str(), name.as_str()),
        },
        _ => (kind.as_str(), name.as_str()),
    };
    Some(Workload { kind: kind.into(), name: name.into() })
}

fn is_time(text: &str) -> bool {
    CRON_DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: &str, name: &str, hash: Option<&str>) -> String {
        let labels = hash.map(|hash| (TEMPLATE_HASH.into(), hash.into())).into_iter().collect();
        let owner = Owner { kind: kind.to_owned(), name: name.to_owned() };
        workload(&owner, &labels).map(|it| format!("{} {}", it.kind, it.name)).unwrap_or_default()
    }

    #[test]
    fn a_workload_is_what_people_wrote_and_not_what_a_controller_made_of_it() {
        assert_eq!(found("ReplicaSet", "web-6d4cf56db6", Some("6d4cf56db6")), "Deployment web");
        assert_eq!(found("ReplicaSet", "web", None), "ReplicaSet web");
        assert_eq!(found("StatefulSet", "db", None), "StatefulSet db");
        assert_eq!(found("Job", "cron-29384567", None), "CronJob cron");
        assert_eq!(found("Job", "once-1", None), "Job once-1");
    }

    #[test]
    fn only_the_controller_of_a_pod_with_a_generated_name_counts() {
        let reference = |controller| OwnerReference {
            kind: "ReplicaSet".to_owned(),
            name: "web-1".to_owned(),
            controller,
            ..OwnerReference::default()
        };
        assert_eq!(Owner::of(None, Some(vec![reference(Some(true))])), None);
        assert_eq!(Owner::of(Some("web-1-".to_owned()), Some(vec![reference(None)])), None);
        assert!(Owner::of(Some("web-1-".to_owned()), Some(vec![reference(None), reference(Some(true))])).is_some());
    }
}
