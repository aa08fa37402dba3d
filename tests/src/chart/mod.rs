//! The Helm chart, judged as a cluster would: rendered by Helm itself, each object held against Kubernetes' types, flags and
//! verbs against those of the agent.
//!
//! In: `deploy/`, values. Out: [`Rendered`] objects and what is wrong with them, in words. Helm comes as a Python package that
//! `cargo xtask chart` puts under `target/`. Start at [`Helm`]; nothing here knows a cluster.

mod helm;
mod kustomization;
mod object;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use netpol_agent::access::Access;
use serde_json::Value;

pub use self::helm::{Answer, Helm, Request};
pub use self::kustomization::faults as kustomization_faults;
pub use self::object::{Object, parse};

/// Where everything about installing lies.
#[must_use]
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The chart's directory.
#[must_use]
pub fn chart() -> PathBuf {
    deploy().join("helm/netpol")
}

/// What a set of values comes to.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// What `kubectl apply` would be given, in the order in which Helm installs it.
    pub objects: Vec<Object>,
    /// What runs on an event of the release only.
    pub hooks: Vec<Object>,
    /// What Helm says to the user.
    pub notes: String,
}

impl Rendered {
    /// Reads what Helm rendered.
    ///
    /// # Errors
    /// If a document is no object that Kubernetes knows, or has fields that it does not know.
    pub fn read(templates: &BTreeMap<String, String>) -> Result<Self> {
        let (mut objects, mut notes) = (Vec::new(), String::new());
        for (name, text) in templates {
            if name.ends_with("NOTES.txt") {
                notes.clone_from(text);
                continue;
            }
            objects.extend(parse(text).with_context(|| name.clone())?);
        }
        // Helm's order of installing, as far as these kinds go.
        const ORDER: [&str; 10] = [
            "ServiceAccount",
            "ConfigMap",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "Service",
            "DaemonSet",
            "Job",
            "",
        ];
        let rank = |kind: &str| ORDER.iter().position(|it| *it == kind).unwrap_or(ORDER.len());
        objects.sort_by_key(|object| (rank(&object.kind), object.name.clone()));
        let (hooks, objects) = objects.into_iter().partition(Object::is_hook);
        Ok(Self { objects, hooks, notes })
    }

    /// The one object of this kind and name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, kind: &str, name: &str) -> Result<&Object> {
        let mut all = self.objects.iter().chain(&self.hooks);
        all.find(|object| object.kind == kind && object.name == name).with_context(|| format!("no {kind} {name}"))
    }

    /// The agent's container.
    ///
    /// # Errors
    /// If the DaemonSet is not there.
    pub fn agent(&self) -> Result<&Value> {
        let daemon_set = self.get("DaemonSet", "netpol")?;
        daemon_set.value.pointer("/spec/template/spec/containers/0").context("the DaemonSet has no container")
    }

    /// The flags of the agent's container.
    ///
    /// # Errors
    /// If the DaemonSet is not there.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let arguments = self.agent()?.get("args").and_then(Value::as_array).context("the container has no args")?;
        Ok(arguments.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// All objects that are applied as one file of YAML, as Helm wrote them.
    #[must_use]
    pub fn manifest(&self, head: &str) -> String {
        let documents: Vec<&str> = self.objects.iter().map(|object| object.text.trim()).collect();
        format!("{head}{}\n", documents.join("\n---\n"))
    }
}

/// How rules of a role differ from a table of what the code uses; empty if they do not.
///
/// # Errors
/// If the role is not what Kubernetes calls one.
pub fn access_faults(role: &Object, table: &[Access]) -> Result<Vec<String>> {
    let strings = |rule: &Value, name: &str| -> Vec<String> {
        let list = rule.get(name).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut granted: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let Some(rules) = role.value.get("rules").and_then(Value::as_array) else { bail!("{} has no rules", role.name) };
    for rule in rules {
        for group in strings(rule, "apiGroups") {
            for resource in strings(rule, "resources") {
                granted.entry((group.clone(), resource)).or_default().extend(strings(rule, "verbs"));
            }
        }
    }
    let mut faults = Vec::new();
    for row in table {
        let mut verbs = granted.remove(&(row.group.to_owned(), row.resource.to_owned())).unwrap_or_default();
        verbs.sort();
        if verbs != row.verbs {
            faults.push(format!("{}: used {:?}, granted {verbs:?}", row.resource, row.verbs));
        }
    }
    faults.extend(granted.into_iter().map(|(what, verbs)| format!("{what:?}: used not at all, granted {verbs:?}")));
    Ok(faults)
}
