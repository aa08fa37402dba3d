//! The variables that a runtime calls a plugin with, and what they must look like.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::super::args::{self, PodArgs};
use super::super::protocol::AttachmentKey;
use super::error::PluginError;

const COMMAND: &str = "CNI_COMMAND";
const CONTAINER_ID: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IFNAME: &str = "CNI_IFNAME";
const ARGS: &str = "CNI_ARGS";
/// As the kernel has it, without the final zero.
const LONGEST_INTERFACE_NAME: usize = 15;

/// The variables of a call, as they came.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<&'static str, OsString>);

impl Environment {
    /// This process's.
    #[must_use]
    pub fn of_process() -> Self {
        let names = [COMMAND, CONTAINER_ID, NETNS, IFNAME, ARGS];
        Self(names.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect())
    }

    /// These, for tests.
    #[must_use]
    pub fn of(variables: &[(&'static str, &OsStr)]) -> Self {
        Self(variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect())
    }

    /// Empty is as good as absent, as it is for other plugins.
    fn get(&self, variable: &'static str) -> Result<Option<&str>, PluginError> {
        let Some(value) = self.0.get(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| wrong(variable, &value.to_string_lossy(), "it is no UTF-8"))
    }

    fn required(&self, variable: &'static str) -> Result<&str, PluginError> {
        self.get(variable)?.ok_or_else(|| wrong(variable, "", "the runtime must set it"))
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    const fn is_about_a_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// A call, checked.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    /// Empty for verbs that are about no container.
    pub(super) key: AttachmentKey,
    /// The container's network namespace; empty where it may be gone.
    pub(super) netns: PathBuf,
    /// None if the container is no pod's.
    pub(super) pod: Option<PodArgs>,
}

impl Call {
    pub(super) fn of(environment: &Environment) -> Result<Self, PluginError> {
        let command = environment.get(COMMAND)?.ok_or(PluginError::NoCommand)?;
        let verb = Verb::of(command)
            .ok_or_else(|| wrong(COMMAND, command, "it must be ADD, DEL, CHECK, GC, STATUS or VERSION"))?;
        let mut call = Self {
            verb,
            key: AttachmentKey { container_id: String::new(), ifname: String::new() },
            netns: PathBuf::new(),
            pod: None,
        };
        if !verb.is_about_a_container() {
            return Ok(call);
        }
        let container_id = environment.required(CONTAINER_ID)?;
        let ifname = environment.required(IFNAME)?;
        check_container_id(container_id)?;
        check_ifname(ifname)?;
        call.key = AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
        if verb != Verb::Del {
            call.netns = environment.required(NETNS)?.into();
            // To remove a container nobody needs to know whose it was.
            call.pod = pod(environment.get(ARGS)?.unwrap_or_default())?;
        }
        Ok(call)
    }
}

fn pod(text: &str) -> Result<Option<PodArgs>, PluginError> {
    let found = args::pairs(text).and_then(args::pod);
    found.map_err(|error| PluginError::Arguments(error.to_string()))
}

fn check_container_id(id: &str) -> Result<(), PluginError> {
    let is_plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if is_plain && id.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(wrong(CONTAINER_ID, id, "it must be letters, digits, '_', '.' and '-', and begin with a letter or digit"))
}

fn check_ifname(name: &str) -> Result<(), PluginError> {
    if name.len() > LONGEST_INTERFACE_NAME {
        return Err(wrong(IFNAME, name, "an interface's name has 15 bytes at most"));
    }
    if name == "." || name == ".." || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0') {
        return Err(wrong(IFNAME, name, "no interface can have this name"));
    }
    Ok(())
}

fn wrong(variable: &'static str, found: &str, problem: &'static str) -> PluginError {
    PluginError::Environment { variable, found: found.to_owned(), problem }
}
