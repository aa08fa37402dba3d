//! Our entry in a network configuration, as libcni hands it over: with the network's name and version, and the result of
//! the plugins before.

use std::path::PathBuf;
use std::time::Duration;

use super::super::conflist::AgentAbsent;
use super::super::json::Json;
use super::super::protocol::AttachmentKey;
use super::super::version::SpecVersion;
use super::error::PluginError;

const DEFAULT_SOCKET: &str = "/run/netpol/netpol.sock";
/// A pod that is new to the API server's watch takes a moment; the kubelet gives a sandbox four minutes.
const DEFAULT_TIMEOUT: u64 = 30;
const LONGEST_TIMEOUT: u64 = 200;
/// Before version 1.1.0 was out, the second name.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// What the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Conf {
    pub(super) socket: PathBuf,
    pub(super) agent_absent: AgentAbsent,
    pub(super) timeout: Duration,
    pub(super) enter_namespace: bool,
}

/// The configuration as JSON.
pub(super) fn parse(text: &[u8]) -> Result<Json, PluginError> {
    let json: Json = serde_json::from_slice(text).map_err(|error| PluginError::Json(error.to_string()))?;
    if json.as_object().is_none() {
        return Err(PluginError::Json("it is another kind of value".to_owned()));
    }
    Ok(json)
}

/// The version that the runtime speaks. Without one it is 0.1.0, by the specification.
pub(super) fn version(json: &Json) -> Result<SpecVersion, PluginError> {
    let found = match json.get("cniVersion") {
        None | Some(Json::Null) => "0.1.0",
        Some(Json::Text(text)) => text.as_str(),
        Some(other) => return Err(PluginError::Json(format!("cniVersion is {}, not a string", shown(other)))),
    };
    SpecVersion::of(found).ok_or_else(|| PluginError::Version { found: found.to_owned() })
}

impl Conf {
    pub(super) fn of(json: &Json) -> Result<Self, PluginError> {
        Ok(Self {
            socket: socket(json)?,
            agent_absent: agent_absent(json)?,
            timeout: timeout(json)?,
            enter_namespace: match json.get("enterNamespace") {
                None => true,
                Some(Json::Bool(value)) => *value,
                Some(other) => return Err(wrong("enterNamespace", other, "it must be true or false")),
            },
        })
    }
}

/// What the plugins before us made; none if there are none.
pub(super) fn prev_result(json: &Json) -> Option<&Json> {
    json.get("prevResult").filter(|result| **result != Json::Null)
}

/// What the runtime still has. A list that is not there must not be taken for an empty one, by which all would be gone.
pub(super) fn valid_attachments(json: &Json) -> Result<Vec<AttachmentKey>, PluginError> {
    let [field, _] = VALID_ATTACHMENTS;
    let list = VALID_ATTACHMENTS.iter().find_map(|field| json.get(field)).unwrap_or(&Json::Null);
    let problem = "it must be a list of objects with containerID and ifname";
    let list = list.as_list().ok_or_else(|| wrong(field, list, problem))?;
    let text =
        |entry: &Json, key| entry.get(key).and_then(Json::as_text).filter(|it| !it.is_empty()).map(str::to_owned);
    let key = |entry: &Json| {
        Some(AttachmentKey { container_id: text(entry, "containerID")?, ifname: text(entry, "ifname")? })
    };
    list.iter().map(|entry| key(entry).ok_or_else(|| wrong(field, entry, problem))).collect()
}

fn socket(json: &Json) -> Result<PathBuf, PluginError> {
    match json.get("socket") {
        None => Ok(DEFAULT_SOCKET.into()),
        Some(Json::Text(path)) if path.starts_with('/') && !path.contains('\0') => Ok(path.into()),
        Some(other) => Err(wrong("socket", other, "it must be an absolute path")),
    }
}

fn agent_absent(json: &Json) -> Result<AgentAbsent, PluginError> {
    match json.get("agentAbsent") {
        None => Ok(AgentAbsent::Fail),
        Some(Json::Text(text)) if text == "fail" => Ok(AgentAbsent::Fail),
        Some(Json::Text(text)) if text == "allow" => Ok(AgentAbsent::Allow),
        Some(other) => Err(wrong("agentAbsent", other, "it must be \"fail\" or \"allow\"")),
    }
}

fn timeout(json: &Json) -> Result<Duration, PluginError> {
    let seconds = match json.get("timeoutSeconds") {
        None => Some(DEFAULT_TIMEOUT),
        Some(Json::Number(number)) => number.as_u64().filter(|seconds| (1..=LONGEST_TIMEOUT).contains(seconds)),
        Some(_) => None,
    };
    let found = json.get("timeoutSeconds").unwrap_or(&Json::Null);
    seconds.map(Duration::from_secs).ok_or_else(|| wrong("timeoutSeconds", found, "it must be 1 to 200"))
}

fn wrong(field: &'static str, found: &Json, problem: &'static str) -> PluginError {
    PluginError::Configuration { field, found: shown(found), problem }
}

/// As much of a value as a message can hold.
fn shown(json: &Json) -> String {
    let text = serde_json::to_string(json).unwrap_or_default();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
