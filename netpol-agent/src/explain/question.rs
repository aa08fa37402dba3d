//! What was typed -> [`Question`]. Knows the notation and nothing of the cluster.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::cluster::model::{ObjectKey, Protocol};

/// Who is meant by one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A pod.
    Pod(ObjectKey),
    /// A service: what is behind it.
    Service(ObjectKey),
    /// A node.
    Node(String),
    /// An address: a pod's, a service's, a node's, or of a host outside.
    Address(IpAddr),
}

/// Which ports are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Whatever the destination declares.
    Declared,
    /// One port.
    Number(Protocol, u16),
    /// The port that the destination declares under this name.
    Named(Protocol, String),
    /// ICMP, and what else has no ports.
    Icmp,
}

/// Who wants to reach whom, on which port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who.
    pub source: Target,
    /// Whom.
    pub destination: Target,
    /// Where.
    pub ports: Ports,
}

/// What cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// No pod, address, service or node.
    #[error("{0:?} is no pod (NAMESPACE/NAME), address, svc/NAMESPACE/NAME or node/NAME")]
    Target(String),
    /// No port.
    #[error("{0:?} is no port; write 8080, 8080/UDP, http, http/TCP or icmp")]
    Port(String),
    /// A protocol that policies do not name.
    #[error("{0:?} is no protocol of a NetworkPolicy; write TCP, UDP or SCTP (or icmp in place of a port)")]
    Protocol(String),
}

impl Question {
    /// Reads `SRC` and `DST[:PORT[/PROTO]]`; a name without namespace is in `namespace`.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn parse(source: &str, destination: &str, namespace: &str) -> Result<Self, QuestionError> {
        let (destination, ports) = split(destination)?;
        Ok(Self { source: target(source, namespace)?, destination: target(destination, namespace)?, ports })
    }
}

/// Cuts the port off; colons of an IPv6 address need brackets if there is one.
fn split(text: &str) -> Result<(&str, Ports), QuestionError> {
    if IpAddr::from_str(text).is_ok() {
        return Ok((text, Ports::Declared));
    }
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return Ok(match rest.strip_prefix(':') {
            Some(port) => (address, ports(port)?),
            None if rest.is_empty() => (address, Ports::Declared),
            None => return Err(QuestionError::Target(text.to_owned())),
        });
    }
    Ok(match text.rsplit_once(':') {
        Some((host, port)) => (host, ports(port)?),
        None => (text, Ports::Declared),
    })
}

fn ports(text: &str) -> Result<Ports, QuestionError> {
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, protocol_of(protocol)?),
        None if text.eq_ignore_ascii_case("icmp") => return Ok(Ports::Icmp),
        None => (text, Protocol::Tcp),
    };
    let refused = || QuestionError::Port(text.to_owned());
    if port.chars().all(|c| c.is_ascii_digit()) {
        let number: u16 = port.parse().map_err(|_no_port| refused())?;
        return if number == 0 { Err(refused()) } else { Ok(Ports::Number(protocol, number)) };
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if port.chars().all(is_name) { Ok(Ports::Named(protocol, port.to_owned())) } else { Err(refused()) }
}

fn protocol_of(text: &str) -> Result<Protocol, QuestionError> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(QuestionError::Protocol(text.to_owned())),
    }
}

fn target(text: &str, namespace: &str) -> Result<Target, QuestionError> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(Target::Address(address));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let is_name = |part: &&str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
    };
    if !parts.iter().all(is_name) {
        return Err(QuestionError::Target(text.to_owned()));
    }
    match parts.as_slice() {
        ["node", name] => Ok(Target::Node((*name).to_owned())),
        ["svc" | "service", namespace, name] => Ok(Target::Service(ObjectKey::new(namespace, name))),
        ["svc" | "service", name] => Ok(Target::Service(ObjectKey::new(namespace, name))),
        ["pod", namespace, name] | [namespace, name] => Ok(Target::Pod(ObjectKey::new(namespace, name))),
        [name] => Ok(Target::Pod(ObjectKey::new(namespace, name))),
        _ => Err(QuestionError::Target(text.to_owned())),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Service(key) => write!(f, "svc/{key}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_ports_are_read_as_people_write_them() {
        let pod = |namespace, name| Target::Pod(ObjectKey::new(namespace, name));
        let tcp = |port| Ports::Number(Protocol::Tcp, port);
        for (text, target, ports) in [
            ("web", pod("shop", "web"), Ports::Declared),
            ("x/web:8080", pod("x", "web"), tcp(8080)),
            ("x/web:53/udp", pod("x", "web"), Ports::Number(Protocol::Udp, 53)),
            ("pod/x/web:http", pod("x", "web"), Ports::Named(Protocol::Tcp, "http".to_owned())),
            ("x/web:icmp", pod("x", "web"), Ports::Icmp),
            ("svc/x/api:80", Target::Service(ObjectKey::new("x", "api")), tcp(80)),
            ("svc/api", Target::Service(ObjectKey::new("shop", "api")), Ports::Declared),
            ("node/n1:10250", Target::Node("n1".to_owned()), tcp(10_250)),
            ("10.0.0.1:443/TCP", Target::Address("10.0.0.1".parse().unwrap()), tcp(443)),
            ("fd00::1", Target::Address("fd00::1".parse().unwrap()), Ports::Declared),
            ("[fd00::1]:443", Target::Address("fd00::1".parse().unwrap()), tcp(443)),
        ] {
            let question = Question::parse("a", text, "shop").unwrap();
            assert_eq!((question.destination, question.ports), (target, ports), "{text}");
            assert_eq!(question.source, pod("shop", "a"));
        }
    }

    #[test]
    fn what_is_no_end_or_port_is_refused_by_name() {
        for (text, error) in [
            ("a/b/c/d:80", QuestionError::Target("a/b/c/d".to_owned())),
            ("web:0", QuestionError::Port("0".to_owned())),
            ("web:70000", QuestionError::Port("70000".to_owned())),
            ("web:80/icmp", QuestionError::Protocol("icmp".to_owned())),
            ("we b:80", QuestionError::Target("we b".to_owned())),
            ("web:", QuestionError::Port(String::new())),
        ] {
            assert_eq!(Question::parse("a", text, "x"), Err(error), "{text}");
        }
    }
}
