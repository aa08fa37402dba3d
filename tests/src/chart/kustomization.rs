//! A kustomization, judged without kustomize: every file that it names is there, and every patch finds what it changes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use super::object::{Object, parse};

/// `deploy/` as overlays elsewhere name it, up to the version.
const BASE: &str = "https://github.com/netpol/netpol//deploy?ref=v";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default)]
    images: Vec<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Target,
    patch: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op: String,
    path: String,
    #[serde(default)]
    value: Option<Value>,
}

/// What is wrong with the kustomization in a directory; empty if nothing.
///
/// # Errors
/// If a file of it cannot be read.
pub fn faults(directory: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let _objects = build(directory, &mut faults)?;
    Ok(faults)
}

fn build(directory: &Path, faults: &mut Vec<String>) -> Result<Vec<Object>> {
    let path = directory.join("kustomization.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let it: Kustomization = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    if (it.api_version.as_str(), it.kind.as_str()) != ("kustomize.config.k8s.io/v1beta1", "Kustomization") {
        faults.push(format!("{}: it is {} {}", path.display(), it.api_version, it.kind));
    }
    let mut objects = Vec::new();
    for resource in &it.resources {
        // The released base is what lies beside us.
        let resource = match resource.strip_prefix(BASE) {
            Some(env!("CARGO_PKG_VERSION")) => super::deploy(),
            Some(version) => {
                faults.push(format!("{}: its base is of version {version}", path.display()));
                super::deploy()
            }
            None => directory.join(resource),
        };
        if resource.is_dir() {
            objects.extend(build(&resource, faults)?);
        } else {
            let text = std::fs::read_to_string(&resource).with_context(|| resource.display().to_string())?;
            objects.extend(parse(&text)?);
        }
    }
    for patch in &it.patches {
        let target = objects.iter().find(|it| it.kind == patch.target.kind && it.name == patch.target.name);
        let Some(target) = target else {
            faults.push(format!("{}: no {} {}", path.display(), patch.target.kind, patch.target.name));
            continue;
        };
        let operations: Vec<Operation> = serde_saphyr::from_str(&patch.patch)?;
        faults.extend(operations.iter().filter_map(|operation| fault(operation, &target.value)));
    }
    for image in &it.images {
        let name = image.get("name").cloned().unwrap_or_default();
        if !objects.iter().any(|object| object.text.contains(&format!("\"{name}:"))) {
            faults.push(format!("{}: no object has the image {name}", path.display()));
        }
    }
    Ok(objects)
}

/// Why an operation does nothing, or something else than meant.
fn fault(operation: &Operation, object: &Value) -> Option<String> {
    let Operation { op, path, value } = operation;
    let found = object.pointer(path);
    let why = match op.as_str() {
        "test" | "replace" if found.is_none() => "there is nothing at that path",
        "test" if found != value.as_ref() => "something else is at that path",
        "test" | "replace" => return None,
        "add" if path.ends_with("/-") => {
            let is_list = object.pointer(path.trim_end_matches("/-")).is_some_and(Value::is_array);
            return (!is_list).then(|| format!("{op} {path}: there is no list at that path"));
        }
        "add" => return None,
        _ => "this check does not know the operation",
    };
    Some(format!("{op} {path}: {why}"))
}
