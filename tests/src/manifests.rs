//! Just enough of a manifest directory to build its cluster: which pods there are, and under which addresses.
//!
//! YAML and JSON, several documents a file, `List`s. What the agent makes of the same files is the agent's affair.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// A pod by name and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// `namespace/name`.
    pub key: String,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<String>,
}

impl PodAddresses {
    /// A pod of these addresses, on whatever node.
    #[must_use]
    pub fn new(key: &str, addresses: &[IpAddr]) -> Self {
        Self { key: key.to_owned(), addresses: addresses.to_vec(), node: None }
    }
}

/// Every manifest file of a directory, by name.
///
/// # Errors
/// If the directory cannot be read.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json"));
    paths.sort();
    Ok(paths)
}

/// The objects of a file.
///
/// # Errors
/// If it cannot be read, or is not YAML.
pub fn objects(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("{} is not YAML", path.display()))?;
    Ok(documents.into_iter().flat_map(flatten).collect())
}

/// The pods of a directory that have an address of their own.
///
/// # Errors
/// If a file cannot be read, or an address is none.
pub fn pods(directory: &Path) -> Result<Vec<PodAddresses>> {
    let mut pods = Vec::new();
    for path in files(directory)? {
        for object in objects(&path)?.iter().filter(|object| text(object, "/kind") == "Pod") {
            if object.pointer("/spec/hostNetwork").and_then(Value::as_bool) != Some(true) {
                pods.push(pod(object).with_context(|| format!("a pod in {}", path.display()))?);
            }
        }
    }
    Ok(pods)
}

fn pod(object: &Value) -> Result<PodAddresses> {
    let key = format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    let listed = object.pointer("/status/podIPs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let addresses = listed
        .iter()
        .map(|entry| text(entry, "/ip").parse().with_context(|| format!("podIPs of {key}: {entry}")))
        .collect::<Result<_>>()?;
    let node = Some(text(object, "/spec/nodeName")).filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(PodAddresses { key, addresses, node })
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn flatten(mut object: Value) -> Vec<Value> {
    if !text(&object, "/kind").ends_with("List") {
        return vec![object];
    }
    match object.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items.into_iter().flat_map(flatten).collect(),
        _ => Vec::new(),
    }
}
