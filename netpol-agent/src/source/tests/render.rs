//! Objects of the cluster model as one line of text each, to be compared and read.

use crate::cluster::model::{
    IpBlock, NetworkPolicy, Object, Peer, Peers, Pod, PortMatch, PortRange, Ports, Protocol, Requirement, Rule,
    Selector, Service,
};

pub(super) fn object(object: &Object) -> String {
    let what = object.reference();
    match object {
        Object::Namespace(namespace) => {
            format!("{what} {}", list(namespace.labels.iter().map(|(key, value)| format!("{key}={value}"))))
        }
        Object::Pod(own) => format!("{what} {}", pod(own)),
        Object::NetworkPolicy(own) => format!("{what} {}", policy(own)),
        Object::Service(own) => format!("{what} {}", service(own)),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn pod(pod: &Pod) -> String {
    let labels = list(pod.labels.iter().map(|(key, value)| format!("{key}={value}")));
    let addresses = list(pod.addresses.iter().map(ToString::to_string));
    let ports = pod.named_ports.iter();
    let ports = list(ports.map(|port| format!("{}={}/{}", port.name, protocol(port.protocol), port.port)));
    let flags = [(pod.host_network, " hostNetwork"), (pod.terminal, " terminal")];
    let flags: String = flags.into_iter().filter_map(|(set, text)| set.then_some(text)).collect();
    let node = if pod.node.is_empty() { String::new() } else { format!(" on {}", pod.node) };
    format!("{labels} at {addresses} ports {ports}{node}{flags}")
}

fn service(service: &Service) -> String {
    let ports = list(service.ports.iter().map(|port| {
        let node_port = port.node_port.map_or_else(String::new, |number| format!(" nodePort {number}"));
        format!("{}/{}{node_port}", protocol(port.protocol), port.port)
    }));
    format!("at {} ports {ports}", list(service.addresses.iter().map(ToString::to_string)))
}

fn policy(policy: &NetworkPolicy) -> String {
    let direction = |rules: &Option<Vec<Rule>>| match rules {
        None => "not isolated".to_owned(),
        Some(rules) => list(rules.iter().map(rule)),
    };
    let (ingress, egress) = (direction(&policy.ingress), direction(&policy.egress));
    format!("selects {}; ingress {ingress}; egress {egress}", selector(&policy.subjects))
}

fn rule(rule: &Rule) -> String {
    let peers = match &rule.peers {
        Peers::Everyone => "everyone".to_owned(),
        Peers::AnyOf(peers) if peers.is_empty() => "nobody".to_owned(),
        Peers::AnyOf(peers) => peers.iter().map(peer).collect::<Vec<_>>().join(" or "),
    };
    let ports = match &rule.ports {
        Ports::Everything => "everything".to_owned(),
        Ports::AnyOf(ports) if ports.is_empty() => "nothing".to_owned(),
        Ports::AnyOf(ports) => ports.iter().map(port).collect::<Vec<_>>().join(" "),
    };
    format!("{peers}: {ports}")
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces: None, pods } => format!("pods {}", selector(pods)),
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            format!("pods {} of namespaces {}", selector(pods), selector(namespaces))
        }
        Peer::IpBlock(IpBlock { cidr, except }) if except.is_empty() => cidr.to_string(),
        Peer::IpBlock(IpBlock { cidr, except }) => {
            format!("{cidr} except {}", except.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

fn port(port: &PortMatch) -> String {
    let ports = match &port.ports {
        PortRange::All => "*".to_owned(),
        PortRange::Numbers(first, last) if first == last => first.to_string(),
        PortRange::Numbers(first, last) => format!("{first}-{last}"),
        PortRange::Named(name) => name.to_string(),
    };
    format!("{}/{ports}", protocol(port.protocol))
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn selector(selector: &Selector) -> String {
    let requirement = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) if values.len() == 1 => format!("{key}={}", values.join("")),
        Requirement::In(key, values) => format!("{key} in ({})", values.join(" ")),
        Requirement::NotIn(key, values) => format!("{key} notin ({})", values.join(" ")),
        Requirement::Exists(key) => key.to_string(),
        Requirement::DoesNotExist(key) => format!("!{key}"),
    };
    format!("{{{}}}", selector.requirements.iter().map(requirement).collect::<Vec<_>>().join(", "))
}
