//! One item of `ports` -> [`PortMatch`], or nothing. Also the protocol and port numbers of pods and services.

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::names::is_port_name;
use super::report::{Report, child, quote, typed};
use crate::cluster::model::{PortMatch, PortRange, Protocol};

const NOTHING: &str = "this port matches nothing";
pub(super) const PORT_NAME_SYNTAX: &str =
    "a port name is at most 15 lower-case letters, digits and single '-', with a letter";

/// Reads the port at `path`; `None` matches nothing.
pub(super) fn port(report: &mut Report, path: &str, value: &Value) -> Option<PortMatch> {
    let read = match typed::<NetworkPolicyPort>(path, value) {
        Ok(read) => read,
        Err(mismatch) => {
            report.refuse(&mismatch.path, mismatch.message, NOTHING);
            return None;
        }
    };
    for field in &read.unknown {
        report.refuse(field, "unknown field; a port has protocol, port and endPort", NOTHING);
    }
    let NetworkPolicyPort { end_port, port, protocol } = read.value;
    let protocol = protocol_of(report, &child(path, "protocol"), protocol.as_deref(), NOTHING);
    let ports = match (port, end_port) {
        (None, None) => Some(PortRange::All),
        (None, Some(_)) => {
            report.refuse(&child(path, "endPort"), "endPort without port; add port, the first of the range", NOTHING);
            None
        }
        (Some(IntOrString::Int(first)), last) => range(report, path, first, last),
        (Some(IntOrString::String(name)), last) => named(report, path, &name, last),
    };
    match (protocol, ports) {
        (Some(protocol), Some(ports)) if read.unknown.is_empty() => Some(PortMatch { protocol, ports }),
        _ => None,
    }
}

fn range(report: &mut Report, path: &str, first: i32, last: Option<i32>) -> Option<PortRange> {
    let from = number(report, &child(path, "port"), first, NOTHING);
    let Some(last) = last else {
        return from.map(|port| PortRange::Numbers(port, port));
    };
    let to = number(report, &child(path, "endPort"), last, NOTHING);
    let (from, to) = (from?, to?);
    if to < from {
        let message = format!("endPort {to} is below port {from}; swap them");
        report.refuse(&child(path, "endPort"), message, NOTHING);
        return None;
    }
    Some(PortRange::Numbers(from, to))
}

fn named(report: &mut Report, path: &str, name: &str, last: Option<i32>) -> Option<PortRange> {
    if last.is_some() {
        let message = format!("endPort with the named port {}; a range needs numbers", quote(name));
        report.refuse(&child(path, "endPort"), message, NOTHING);
        return None;
    }
    if !is_port_name(name) {
        let advice = if name.parse::<u16>().is_ok() { "write a plain number" } else { PORT_NAME_SYNTAX };
        report.refuse(&child(path, "port"), format!("bad port name {}: {advice}", quote(name)), NOTHING);
        return None;
    }
    Some(PortRange::Named(name.into()))
}

/// A port number, 1 to 65535.
pub(super) fn number(report: &mut Report, path: &str, port: i32, effect: &str) -> Option<u16> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Some(port),
        Ok(_) | Err(_) => {
            report.refuse(path, format!("port {port} is out of range; a port is 1 to 65535"), effect);
            None
        }
    }
}

/// A protocol; a missing one is TCP.
pub(super) fn protocol_of(report: &mut Report, path: &str, text: Option<&str>, effect: &str) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            report.refuse(path, format!("unknown protocol {}; use TCP, UDP or SCTP", quote(other)), effect);
            None
        }
    }
}
