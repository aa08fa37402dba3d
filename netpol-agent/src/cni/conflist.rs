//! The network configuration with our plugin in it, derived from somebody else's.
//!
//! In: the configuration that the runtime would use without us (Flannel's, as a rule), and what our plugin is to be told.
//! Out: the text of [`FILE_NAME`], which sorts before it: the same network, same order, same fields, our plugin last. Pure:
//! no file is touched here. Start at [`derive`]. What is deliberately changed of the source is listed there.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::PLUGIN_TYPE;
use super::json::{Json, Object};
use super::version::SpecVersion;

/// Our file in the runtime's directory of configurations. Runtimes take the first in byte order.
pub const FILE_NAME: &str = "00-netpol.conflist";
/// What libcni and containerd take for a configuration: the last extension, in lower case only.
const EXTENSIONS: [&str; 3] = [".conf", ".conflist", ".json"];
/// Written by hand on many nodes; connects no pods.
const LOOPBACK: &str = "loopback";

/// What becomes of a pod's start while the agent does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AgentAbsent {
    /// It is put off: the kubelet tries again.
    #[default]
    Fail,
    /// It goes on. Until the agent is back, nothing polices the pod.
    Allow,
}

/// What our plugin is told in its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The agent's socket, as the host sees it.
    pub socket: &'a Path,
    /// What becomes of a pod's start while the agent does not answer.
    pub agent_absent: AgentAbsent,
    /// How long the plugin waits for the agent; none is the plugin's own choice.
    pub timeout_seconds: Option<u32>,
    /// Whether the plugin may look into the pod's network namespace for what the other plugins do not say.
    pub enter_namespace: bool,
}

/// A configuration that the runtime would use without us.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its file name.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Texts of the files `*.conf` in the directory [`plugin_folder`], in byte order of their names.
    pub folder: &'a [String],
}

/// Why nothing can be derived.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// It is half written, or never was JSON.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A member is missing or of another type.
    #[error("{0}")]
    Shape(&'static str),
    /// A plugin without name.
    #[error("plugin {0} has no type")]
    NoType(usize),
    /// Plugins cannot be chained in that version, or nobody knows yet how.
    #[error("cniVersion is {found:?}, and netpol-cni speaks {}: set one of these", SpecVersion::names())]
    Version {
        /// As written; empty if it is not.
        found: String,
    },
    /// Nothing but the loopback plugin.
    #[error("it has the loopback plugin only, which connects no pods")]
    OnlyLoopback,
}

/// True if runtimes take a file of this name for a configuration.
#[must_use]
pub fn is_configuration(name: &str) -> bool {
    // As Go's filepath.Ext: from the last dot on, wherever that is.
    name.rfind('.').and_then(|dot| name.get(dot..)).is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// Of the names of configurations: those that runtimes use before ours, and the one that they would use without it.
#[must_use]
pub fn choose<'a>(names: &[&'a str]) -> (Vec<&'a str>, Option<&'a str>) {
    let mut names = names.to_vec();
    names.sort_unstable();
    let before = names.iter().copied().filter(|name| *name < FILE_NAME).collect();
    (before, names.into_iter().find(|name| *name > FILE_NAME))
}

/// Name of the directory beside the file from which newer libcni takes plugins that run after those of the file; none if
/// the configuration says not to, or cannot have one.
#[must_use]
pub fn plugin_folder(source: &str, text: &str) -> Option<String> {
    let parsed: Json = serde_json::from_str(text).ok()?;
    let is_off = parsed.get("loadOnlyInlinedPlugins").is_some_and(is_true);
    let name = parsed.get("name").and_then(Json::as_text)?;
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    (source.ends_with(".conflist") && !is_off && is_plain).then(|| name.to_owned())
}

/// True if a configuration calls our plugin somewhere: in its own chain, or in one that it delegates to.
#[must_use]
pub fn calls_us(text: &str) -> bool {
    fn any(json: &Json) -> bool {
        match json {
            Json::Object(object) => {
                object.get("type").and_then(Json::as_text) == Some(PLUGIN_TYPE) || object.values().any(any)
            }
            Json::List(list) => list.iter().any(any),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => false,
        }
    }
    serde_json::from_str(text).is_ok_and(|json| any(&json))
}

/// The text of our file. What differs from the source: our plugin comes last, and nowhere else; a single plugin becomes a
/// list, as libcni makes it one; `cniVersions` loses what we do not speak; plugins of the folder stand in the list, as
/// they would otherwise run after ours.
///
/// # Errors
/// If the source is half written, is no configuration, or is of a version without chains.
pub fn derive(source: &Source<'_>, entry: &Entry<'_>) -> Result<String, DeriveError> {
    let Json::Object(mut list) = serde_json::from_str(source.text)? else {
        return Err(DeriveError::Shape("it is no JSON object"));
    };
    if !source.name.ends_with(".conflist") {
        list = list_of_one(list)?;
    }
    if list.get("name").and_then(Json::as_text).is_none_or(str::is_empty) {
        return Err(DeriveError::Shape("it has no name"));
    }
    keep_our_versions(&mut list)?;
    let mut plugins = match list.get("plugins") {
        Some(Json::List(plugins)) => plugins.clone(),
        // Newer libcni: they all come from the folder.
        None if !source.folder.is_empty() => Vec::new(),
        Some(_) | None => return Err(DeriveError::Shape("its plugins are not a list")),
    };
    for text in source.folder {
        plugins.push(serde_json::from_str(text)?);
    }
    let types = plugins.iter().enumerate().map(|(at, plugin)| type_of(plugin).ok_or(DeriveError::NoType(at)));
    let types = types.collect::<Result<Vec<_>, _>>()?;
    if types.iter().all(|it| it == PLUGIN_TYPE) {
        return Err(DeriveError::Shape("it has no plugins"));
    }
    if types.iter().all(|it| it == PLUGIN_TYPE || it == LOOPBACK) {
        return Err(DeriveError::OnlyLoopback);
    }
    plugins.retain(|plugin| type_of(plugin).is_none_or(|it| it != PLUGIN_TYPE));
    plugins.push(Json::Object(own_entry(entry)));
    list.set("plugins", Json::List(plugins));
    if !source.folder.is_empty() {
        list.set("loadOnlyInlinedPlugins", Json::Bool(true));
    }
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

fn list_of_one(plugin: Object) -> Result<Object, DeriveError> {
    if plugin.get("type").and_then(Json::as_text).is_none_or(str::is_empty) {
        return Err(DeriveError::Shape("it has no type; a list of plugins belongs into a file NAME.conflist"));
    }
    let mut list = Object::default();
    for key in ["cniVersion", "name"] {
        if let Some(value) = plugin.get(key) {
            list.set(key, value.clone());
        }
    }
    list.set("plugins", Json::List(vec![Json::Object(plugin)]));
    Ok(list)
}

/// libcni uses the newest version of `cniVersions` and `cniVersion` that it knows itself: none may be unknown to us.
fn keep_our_versions(list: &mut Object) -> Result<(), DeriveError> {
    let found = list.get("cniVersion").and_then(Json::as_text).unwrap_or_default().to_owned();
    let Some(Json::List(all)) = list.get("cniVersions") else {
        return if SpecVersion::of(&found).is_some() { Ok(()) } else { Err(DeriveError::Version { found }) };
    };
    let ours: Vec<SpecVersion> = all.iter().filter_map(Json::as_text).filter_map(SpecVersion::of).collect();
    if ours.len() != all.len() {
        list.set("cniVersions", Json::List(ours.iter().map(|version| Json::text(version.name())).collect()));
    }
    if SpecVersion::of(&found).is_none() {
        let newest = ours.into_iter().max().ok_or(DeriveError::Version { found })?;
        list.set("cniVersion", Json::text(newest.name()));
    }
    Ok(())
}

fn own_entry(entry: &Entry<'_>) -> Object {
    let mut own = Object::default();
    own.set("type", Json::text(PLUGIN_TYPE));
    own.set("socket", Json::Text(entry.socket.display().to_string()));
    own.set("agentAbsent", Json::text(if entry.agent_absent == AgentAbsent::Fail { "fail" } else { "allow" }));
    if let Some(seconds) = entry.timeout_seconds {
        own.set("timeoutSeconds", Json::Number(seconds.into()));
    }
    if !entry.enter_namespace {
        own.set("enterNamespace", Json::Bool(false));
    }
    own
}

fn type_of(plugin: &Json) -> Option<String> {
    plugin.get("type").and_then(Json::as_text).filter(|it| !it.is_empty()).map(str::to_owned)
}

/// libcni takes the words too.
fn is_true(json: &Json) -> bool {
    *json == Json::Bool(true) || json.as_text().is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests;
