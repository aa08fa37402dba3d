//! Documents of YAML -> objects, each read by Kubernetes' own type for its kind: a field that the type does not have is an
//! error, as a misspelt one would be lost without a word.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One object of a manifest.
#[derive(Clone, Debug)]
pub struct Object {
    /// `DaemonSet` and so on.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace, empty if it has none.
    pub namespace: String,
    /// All of it.
    pub value: Value,
    /// The document as it was written.
    pub text: String,
}

impl Object {
    /// True for what Helm runs on an event of the release, and `kubectl apply` must not get.
    #[must_use]
    pub fn is_hook(&self) -> bool {
        self.value.pointer("/metadata/annotations/helm.sh~1hook").is_some()
    }
}

/// Reads every document.
///
/// # Errors
/// The first that is not an object, is of an unknown kind, or does not fit its type.
pub fn parse(text: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for document in documents(text) {
        let value: Value = serde_saphyr::from_str(&document).with_context(|| format!("no YAML:\n{document}"))?;
        if value.is_null() {
            continue;
        }
        let part = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api, kind, name) = (part("/apiVersion"), part("/kind"), part("/metadata/name"));
        check(&api, &kind, &value).with_context(|| format!("{kind} {name}"))?;
        objects.push(Object { kind, name, namespace: part("/metadata/namespace"), text: document, value });
    }
    Ok(objects)
}

/// Cut at lines that are `---`; those with nothing but comments are left out.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let is_empty = |it: &String| it.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    documents.into_iter().filter(|it| !is_empty(it)).collect()
}

fn check(api: &str, kind: &str, value: &Value) -> Result<()> {
    match (api, kind) {
        ("v1", "ServiceAccount") => fits::<ServiceAccount>(value),
        ("v1", "Service") => fits::<Service>(value),
        ("v1", "ConfigMap") => fits::<ConfigMap>(value),
        ("apps/v1", "DaemonSet") => fits::<DaemonSet>(value),
        ("batch/v1", "Job") => fits::<Job>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => fits::<ClusterRole>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => fits::<ClusterRoleBinding>(value),
        ("rbac.authorization.k8s.io/v1", "Role") => fits::<Role>(value),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => fits::<RoleBinding>(value),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => fits::<prometheus::ServiceMonitor>(value),
        ("monitoring.coreos.com/v1", "PrometheusRule") => fits::<prometheus::PrometheusRule>(value),
        _ => bail!("{api} {kind} is no kind that the chart is known to have: add its type here"),
    }
}

fn fits<T: DeserializeOwned>(value: &Value) -> Result<()> {
    let mut unknown = Vec::new();
    // From text: a type of the API server's reads no less than `Value` would.
    let text = value.to_string();
    let mut reader = serde_json::Deserializer::from_str(&text);
    let _object: T = serde_ignored::deserialize(&mut reader, |path| {
        // An optional field is a step of its own.
        unknown.push(path.to_string().replace(".?", ""));
    })?;
    if unknown.is_empty() { Ok(()) } else { bail!("fields that its kind does not have: {}", unknown.join(", ")) }
}

/// The Prometheus operator's kinds, as far as the chart uses them.
mod prometheus {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct ServiceMonitor {
        #[serde(rename = "apiVersion")]
        _api_version: String,
        #[serde(rename = "kind")]
        _kind: String,
        #[serde(rename = "metadata")]
        _metadata: ObjectMeta,
        #[serde(rename = "spec")]
        _spec: MonitorSpec,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct MonitorSpec {
        #[serde(rename = "selector")]
        _selector: LabelSelector,
        #[serde(rename = "namespaceSelector")]
        _namespaces: Namespaces,
        #[serde(rename = "endpoints")]
        _endpoints: Vec<Endpoint>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Namespaces {
        #[serde(rename = "matchNames")]
        _names: Vec<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Endpoint {
        #[serde(rename = "port")]
        _port: String,
        #[serde(rename = "path")]
        _path: String,
        #[serde(rename = "interval")]
        _interval: String,
        #[serde(rename = "scrapeTimeout", default)]
        _timeout: Option<String>,
        #[serde(rename = "relabelings", default)]
        _relabelings: Vec<Value>,
        #[serde(rename = "metricRelabelings", default)]
        _metric_relabelings: Vec<Value>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct PrometheusRule {
        #[serde(rename = "apiVersion")]
        _api_version: String,
        #[serde(rename = "kind")]
        _kind: String,
        #[serde(rename = "metadata")]
        _metadata: ObjectMeta,
        #[serde(rename = "spec")]
        _spec: RuleSpec,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct RuleSpec {
        #[serde(rename = "groups")]
        _groups: Vec<Group>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Group {
        #[serde(rename = "name")]
        _name: String,
        #[serde(rename = "interval", default)]
        _interval: Option<String>,
        #[serde(rename = "rules")]
        _rules: Vec<Rule>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        #[serde(rename = "alert", default)]
        _alert: Option<String>,
        #[serde(rename = "record", default)]
        _record: Option<String>,
        #[serde(rename = "expr")]
        _expression: Value,
        #[serde(rename = "for", default)]
        _hold: Option<String>,
        #[serde(rename = "keep_firing_for", default)]
        _keep: Option<String>,
        #[serde(rename = "labels", default)]
        _labels: Value,
        #[serde(rename = "annotations", default)]
        _annotations: Value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_a_kind_does_not_have_is_named() {
        let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}\nspec:\n  template:\n    spec:\n      hostnetwork: true\n";
        let error = format!("{:#}", parse(job).unwrap_err());
        assert!(error.contains("Job x") && error.contains("spec.template.spec.hostnetwork"), "{error}");
        assert_eq!(parse(&job.replace("hostnetwork", "hostNetwork")).unwrap().len(), 1);
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        let text = "# nothing\n---\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n---\n\n";
        let found = parse(text).unwrap();
        assert_eq!(found.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a"]);
        assert!(parse("apiVersion: v1\nkind: Gadget\n").is_err());
    }
}
