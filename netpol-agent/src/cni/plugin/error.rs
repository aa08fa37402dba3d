//! Errors as the CNI specification numbers and prints them.

use std::io;

use super::super::PLUGIN_TYPE;
use super::super::version::SpecVersion;
use super::ABOUT;

/// Why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    #[error("cniVersion {found:?} is not supported; netpol-cni speaks {}", SpecVersion::names())]
    Version { found: String },
    #[error("{verb} is not part of cniVersion {version}")]
    Verb { verb: &'static str, version: SpecVersion },
    #[error("CNI_COMMAND is not set. {ABOUT}. It is run by a container runtime and has no other use")]
    NoCommand,
    #[error("{variable} is {found:?}: {problem}")]
    Environment { variable: &'static str, found: String, problem: &'static str },
    #[error("{0}")]
    Arguments(String),
    #[error("cannot read the configuration from standard input: {0}")]
    Input(#[source] io::Error),
    #[error("the configuration on standard input is larger than {0} bytes")]
    TooLarge(u64),
    #[error("the configuration on standard input is no JSON object: {0}")]
    Json(String),
    #[error("the configuration's {field} is {found}: {problem}")]
    Configuration { field: &'static str, found: String, problem: &'static str },
    #[error(
        "there is no prevResult: {PLUGIN_TYPE} connects no pods and must be chained behind a plugin that does, last"
    )]
    NotChained,
    #[error("prevResult cannot be understood: {0}")]
    Result(String),
    #[error("prevResult has no {missing}, and {tried}")]
    Incomplete { missing: &'static str, tried: String },
    #[error("cannot ask the kernel about {what}: {source}")]
    Kernel { what: String, source: io::Error },
    #[error("{0}; the kubelet tries again")]
    Unanswered(String),
    #[error("netpol-agent cannot announce pods now: {0}")]
    Unavailable(String),
    #[error("{message}")]
    Agent { code: u32, message: String },
}

impl PluginError {
    /// Numbers below 100 are the specification's.
    fn code(&self) -> u32 {
        match self {
            Self::Version { .. } | Self::Verb { .. } => 1,
            Self::NoCommand | Self::Environment { .. } | Self::Arguments(_) => 4,
            Self::Input(_) => 5,
            Self::TooLarge(_) | Self::Json(_) => 6,
            Self::Configuration { .. } | Self::NotChained | Self::Result(_) => 7,
            Self::Unanswered(_) => 11,
            Self::Unavailable(_) => 50,
            Self::Incomplete { .. } => 100,
            Self::Kernel { .. } => 101,
            // No error has the number 0.
            Self::Agent { code, .. } => {
                if *code == 0 {
                    11
                } else {
                    *code
                }
            }
        }
    }

    /// For standard output.
    pub(super) fn to_json(&self, version: SpecVersion) -> String {
        let message = self.to_string();
        serde_json::json!({ "cniVersion": version.name(), "code": self.code(), "msg": message, "details": "" })
            .to_string()
    }
}
