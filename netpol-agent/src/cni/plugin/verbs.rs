//! The verbs: what is asked of the agent, and what it means for the runtime.

use std::time::Duration;

use super::super::conflist::AgentAbsent;
use super::super::json::Json;
use super::super::protocol::{Attachment, AttachmentKey, CniAnswer, CniRequest};
use super::super::result::{self, Found};
use super::super::version::SpecVersion;
use super::super::{POD_INTERFACE, args::PodArgs};
use super::client::{Unanswered, ask};
use super::conf::{self, Conf};
use super::environment::{Call, Verb};
use super::error::PluginError;
use super::links::{self, Link};

/// The longest that a verb may take which a runtime calls in passing.
const BRIEF: Duration = Duration::from_secs(5);

/// Carries a call out; returns what goes to standard output.
pub(super) fn carry_out(
    call: &Call,
    json: Json,
    version: SpecVersion,
    notes: &mut Vec<String>,
) -> Result<String, PluginError> {
    let conf = Conf::of(&json)?;
    let not_in = |verb| Err(PluginError::Verb { verb, version });
    match call.verb {
        Verb::Add => add(call, &conf, json, version, notes),
        Verb::Del => {
            del(&call.key, &conf, notes);
            Ok(String::new())
        }
        Verb::Check if !version.has_check() => not_in("CHECK"),
        Verb::Check => check(call, &conf, notes),
        Verb::Gc if !version.has_gc_and_status() => not_in("GC"),
        Verb::Gc => gc(conf::valid_attachments(&json)?, &conf, notes),
        Verb::Status if !version.has_gc_and_status() => not_in("STATUS"),
        Verb::Status => status(&conf, notes),
        // Answered before there is a configuration.
        Verb::Version => Ok(String::new()),
    }
}

fn add(
    call: &Call,
    conf: &Conf,
    json: Json,
    version: SpecVersion,
    notes: &mut Vec<String>,
) -> Result<String, PluginError> {
    let mut result = conf::prev_result(&json).cloned().ok_or(PluginError::NotChained)?;
    if let Some(pod) = policed(call) {
        let found = result::read(&result, &call.key.ifname).map_err(|error| PluginError::Result(error.to_string()))?;
        let attachment = attachment(call, conf, pod, found)?;
        demand(ask(&conf.socket, &CniRequest::Add(attachment), conf.timeout), conf, notes)?;
    }
    result::as_version(&mut result, version);
    serde_json::to_string(&result).map_err(|error| PluginError::Result(error.to_string()))
}

/// Whatever the agent says or does not: a pod that goes must be able to go.
fn del(key: &AttachmentKey, conf: &Conf, notes: &mut Vec<String>) {
    if key.ifname != POD_INTERFACE {
        return;
    }
    match ask(&conf.socket, &CniRequest::Del(key.clone()), conf.timeout.min(BRIEF)) {
        Ok(CniAnswer::Done) => {}
        Ok(CniAnswer::Failed { message, .. }) => notes.push(format!("DEL {key}: {message}")),
        Err(why) => notes.push(format!("DEL {key}: {why}; the agent finds out by itself")),
    }
}

fn check(call: &Call, conf: &Conf, notes: &mut Vec<String>) -> Result<String, PluginError> {
    if policed(call).is_some() {
        demand(ask(&conf.socket, &CniRequest::Check(call.key.clone()), conf.timeout), conf, notes)?;
    }
    Ok(String::new())
}

fn gc(valid: Vec<AttachmentKey>, conf: &Conf, notes: &mut Vec<String>) -> Result<String, PluginError> {
    demand(ask(&conf.socket, &CniRequest::Gc { valid }, conf.timeout.min(BRIEF)), conf, notes)?;
    Ok(String::new())
}

fn status(conf: &Conf, notes: &mut Vec<String>) -> Result<String, PluginError> {
    let answer = ask(&conf.socket, &CniRequest::Status, conf.timeout.min(BRIEF));
    demand(answer, conf, notes).map_err(|error| {
        // The specification has a number of its own for this here.
        if let PluginError::Unanswered(why) = error { PluginError::Unavailable(why) } else { error }
    })?;
    Ok(String::new())
}

/// The pod that the agent must know of, if the call is about one's interface.
fn policed(call: &Call) -> Option<&PodArgs> {
    call.pod.as_ref().filter(|_| call.key.ifname == POD_INTERFACE)
}

/// An answer must be good. If there is none, the configuration decides.
fn demand(answer: Result<CniAnswer, Unanswered>, conf: &Conf, notes: &mut Vec<String>) -> Result<(), PluginError> {
    match answer {
        Ok(CniAnswer::Done) => Ok(()),
        Ok(CniAnswer::Failed { code, message }) => Err(PluginError::Agent { code, message }),
        Err(why) if conf.agent_absent == AgentAbsent::Allow => {
            notes.push(format!("{why}; goes on without it, as agentAbsent is \"allow\""));
            Ok(())
        }
        Err(why) => Err(PluginError::Unanswered(why.to_string())),
    }
}

/// The pod's interface: as the plugins before us say, and where they do not, as the kernel does.
fn attachment(call: &Call, conf: &Conf, pod: &PodArgs, found: Found) -> Result<Attachment, PluginError> {
    let mut veths = Vec::new();
    for name in &found.on_host {
        let link = links::by_name(name).map_err(kernel(&format!("the interface {name}")))?;
        veths.extend(link.filter(|link| link.is_veth));
    }
    let said = match (<[Link; 1]>::try_from(veths), found.mac) {
        (Ok([veth]), Some(mac)) if !found.addresses.is_empty() => Ok((veth.name, mac, found.addresses)),
        (Err(_none_or_many), _) => Err(("interface on the host that is a veth, or several", found.addresses)),
        (Ok(_), None) => Err(("MAC address of the pod", found.addresses)),
        (Ok(_), Some(_)) => Err(("address of the pod", found.addresses)),
    };
    let (host_interface, mac, addresses) = match said {
        Ok(said) => said,
        Err((missing, _)) if !conf.enter_namespace => {
            let tried = "enterNamespace is false, so nobody looks for it in the pod".to_owned();
            return Err(PluginError::Incomplete { missing, tried });
        }
        Err((missing, addresses)) => looked_up(call, missing, addresses)?,
    };
    Ok(Attachment {
        key: call.key.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.pod.clone(),
        uid: pod.uid.clone(),
        host_interface,
        mac,
        addresses,
    })
}

type Said = (String, String, Vec<std::net::IpAddr>);

/// What the kernel says of the pod's interface, seen from inside.
fn looked_up(call: &Call, missing: &'static str, said: Vec<std::net::IpAddr>) -> Result<Said, PluginError> {
    let netns = call.netns.display().to_string();
    let not = |tried: String| PluginError::Incomplete { missing, tried };
    let name = &call.key.ifname;
    let inside = links::inside(&call.netns, name).map_err(kernel(&format!("{name} in {netns}")))?;
    let inside = inside.ok_or_else(|| not(format!("{netns} has no {name} either")))?;
    let peer = inside.link.peer.ok_or_else(|| not(format!("{name} in {netns} has no other end: it is no veth")))?;
    let host = links::by_index(peer).map_err(kernel(&format!("the interface of index {peer}")))?;
    // Indexes are those of their namespace: the other end may be elsewhere, and ours somebody else's.
    let host = host.filter(|host| inside.link.is_veth && host.is_veth && host.peer == Some(inside.link.index));
    let host = host.ok_or_else(|| not(format!("the other end of {name} in {netns} is no veth of this node")))?;
    let mac = inside.link.mac.ok_or_else(|| not(format!("{name} in {netns} has no MAC address")))?;
    let addresses = if said.is_empty() { inside.addresses } else { said };
    if addresses.is_empty() {
        return Err(not(format!("{name} in {netns} has no address")));
    }
    Ok((host.name, mac, addresses))
}

fn kernel(what: &str) -> impl FnOnce(std::io::Error) -> PluginError {
    move |source| PluginError::Kernel { what: what.to_owned(), source }
}
