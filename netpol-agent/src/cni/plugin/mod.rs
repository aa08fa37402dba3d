//! The chained CNI plugin `netpol-cni`: what a container runtime runs for each pod, after the plugins that connect it.
//!
//! In: the CNI environment, a configuration on standard input, the agent's answer. Out: the previous plugins' result as it
//! came, or an error of the CNI specification, as JSON on standard output; notes on standard error. One process a call:
//! it blocks, with deadlines, and starts no runtime. Start at [`call`].
//!
//! Passed on without asking the agent: containers that are no pods (of nerdctl, ctr: no K8S_POD_* in CNI_ARGS) and second
//! interfaces (of Multus: CNI_IFNAME is not `eth0`).

mod client;
mod conf;
mod environment;
mod error;
mod links;
mod verbs;

use std::io::{Read, Write as _};
use std::process::ExitCode;

pub use self::environment::Environment;
use self::environment::{Call, Verb};
use self::error::PluginError;
use super::json::Json;
use super::version::SpecVersion;

/// What the program is; also how one of ours is known.
pub const ABOUT: &str = "netpol-cni: announces pods to netpol-agent, chained behind the plugins that connect them";

/// A pod's configuration is a few kilobytes; the list of valid attachments of GC some more.
const LARGEST_INPUT: u64 = 4 << 20;

/// What a call came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output: a result, an error, or nothing.
    pub output: String,
    /// For standard error, a line each.
    pub notes: Vec<String>,
    /// Whether it succeeded.
    pub is_success: bool,
}

/// Runs the plugin with this process's environment and streams.
#[must_use]
pub fn run() -> ExitCode {
    let outcome = call(&Environment::of_process(), std::io::stdin().lock());
    let notes: String = outcome.notes.iter().map(|note| format!("netpol-cni: {note}\n")).collect();
    // Notes are for whoever reads the runtime's log; without them the outcome is the same.
    let said = std::io::stderr().write_all(notes.as_bytes());
    let mut stdout = std::io::stdout().lock();
    let printed = stdout.write_all(outcome.output.as_bytes()).and_then(|()| stdout.flush());
    drop(said);
    if outcome.is_success && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Answers one call of a runtime.
#[must_use]
pub fn call(environment: &Environment, input: impl Read) -> Outcome {
    let mut version = SpecVersion::NEWEST;
    let mut notes = Vec::new();
    match answer(environment, input, &mut version, &mut notes) {
        Ok(output) => Outcome { output, notes, is_success: true },
        Err(error) => Outcome { output: error.to_json(version), notes, is_success: false },
    }
}

/// `version` is that of an error, as far as it is known.
fn answer(
    environment: &Environment,
    input: impl Read,
    version: &mut SpecVersion,
    notes: &mut Vec<String>,
) -> Result<String, PluginError> {
    let call = Call::of(environment)?;
    let text = read(input);
    if call.verb == Verb::Version {
        // Older runtimes give no input here; whatever it is, the answer is the same.
        let asked = text.ok().and_then(|text| serde_json::from_slice::<Json>(&text).ok());
        return Ok(supported(asked.as_ref()));
    }
    let json = conf::parse(&text?)?;
    *version = conf::version(&json)?;
    verbs::carry_out(&call, json, *version, notes)
}

fn read(input: impl Read) -> Result<Vec<u8>, PluginError> {
    let mut text = Vec::new();
    input.take(LARGEST_INPUT + 1).read_to_end(&mut text).map_err(PluginError::Input)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > LARGEST_INPUT) {
        return Err(PluginError::TooLarge(LARGEST_INPUT));
    }
    Ok(text)
}

fn supported(asked: Option<&Json>) -> String {
    let asked = asked.and_then(|json| json.get("cniVersion")).and_then(Json::as_text).and_then(SpecVersion::of);
    let version = asked.unwrap_or(SpecVersion::NEWEST);
    serde_json::json!({
        "cniVersion": version.name(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::name),
    })
    .to_string()
}

#[cfg(test)]
mod tests;
