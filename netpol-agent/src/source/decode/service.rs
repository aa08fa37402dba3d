//! Service -> [`Service`]: the addresses that hide a backend.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, ServicePort as ApiPort, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value};

use super::Head;
use super::pod::unicast;
use super::port::{number, protocol_of};
use super::report::{Report, child, index, quote};
use super::section::{read_section, stray_fields};
use crate::cluster::model::{Service, ServicePort, TargetPort};

/// Effect of refusing a service.
pub(super) const NO_SERVICE: &str = "the service is not known: egress to its addresses is judged by those addresses";
const NO_ADDRESS: &str = "egress to this address is judged by the address, not by the backend";
const NO_PORT: &str = "egress to this port is judged by the service's address, not by the backend";

const READ: [&str; 10] =
    ["spec", "status", "type", "clusterIP", "clusterIPs", "externalIPs", "ports", "loadBalancer", "ingress", "ipMode"];

/// Reads a service; `None` if it cannot be taken at all.
pub(super) fn service(report: &mut Report, head: Head, object: &Map<String, Value>) -> Option<Service> {
    let sound = stray_fields(report, object, &READ, NO_SERVICE);
    let spec = read_section::<ServiceSpec>(report, object, "spec", (&READ, NO_SERVICE))?;
    let status = read_section::<ServiceStatus>(report, object, "status", (&READ, NO_SERVICE))?;
    if !sound {
        return None;
    }
    let mut addresses = Vec::new();
    for (path, text) in given(&spec, &status) {
        match unicast(text) {
            Some(address) if addresses.contains(&address) => {}
            Some(address) => addresses.push(address),
            None => report.refuse(&path, format!("bad address {}; write one IP address", quote(text)), NO_ADDRESS),
        }
    }
    note_addressless(report, &spec, &addresses);
    let selector = spec.selector.filter(|labels| !labels.is_empty());
    let selector = selector.map(|labels| labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect());
    let ports = spec.ports.unwrap_or_default();
    let ports = ports.iter().enumerate().filter_map(|(at, p)| port(report, &index("spec.ports", at), p)).collect();
    Some(Service { key: head.key, addresses, ports, selector })
}

/// The addresses as written, each with its path.
fn given<'s>(spec: &'s ServiceSpec, status: &'s ServiceStatus) -> Vec<(String, &'s str)> {
    let own = |ip: &&str| !ip.is_empty() && *ip != "None";
    let mut given = Vec::new();
    // An ExternalName service is a DNS alias and has no address, whatever is left in its fields.
    if spec.type_.as_deref() != Some("ExternalName") {
        let cluster = list("spec.clusterIPs", spec.cluster_ips.as_deref());
        if cluster.is_empty() {
            given.extend(spec.cluster_ip.as_deref().map(|ip| ("spec.clusterIP".to_owned(), ip)));
        }
        given.extend(cluster);
        given.retain(|(_, ip)| own(ip));
    }
    given.extend(list("spec.externalIPs", spec.external_ips.as_deref()));
    let balanced = status.load_balancer.as_ref().and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    for (at, LoadBalancerIngress { ip, ip_mode, .. }) in balanced.iter().enumerate() {
        // In Proxy mode packets to the address leave the node, and come back from the balancer.
        if ip_mode.as_deref() != Some("Proxy") {
            let path = child(&index("status.loadBalancer.ingress", at), "ip");
            given.extend(ip.as_deref().filter(|ip| !ip.is_empty()).map(|ip| (path, ip)));
        }
    }
    given
}

fn list<'s>(path: &str, items: Option<&'s [String]>) -> Vec<(String, &'s str)> {
    items.unwrap_or_default().iter().enumerate().map(|(at, ip)| (index(path, at), ip.as_str())).collect()
}

/// Hand-written services often have no clusterIP; the API server would have given one.
fn note_addressless(report: &mut Report, spec: &ServiceSpec, addresses: &[IpAddr]) {
    let headless = spec.cluster_ip.as_deref() == Some("None") || spec.type_.as_deref() == Some("ExternalName");
    if addresses.is_empty() && !headless && !report.refused() {
        report.note(
            "spec.clusterIPs",
            "the service has no address",
            "none: pods reach its backends by their own addresses",
        );
    }
}

fn port(report: &mut Report, path: &str, port: &ApiPort) -> Option<ServicePort> {
    let number_ = number(report, &child(path, "port"), port.port, NO_PORT);
    let protocol = protocol_of(report, &child(path, "protocol"), port.protocol.as_deref(), NO_PORT);
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(node_port) => number(report, &child(path, "nodePort"), node_port, NO_PORT),
    };
    // Only explained, never enforced: one that cannot be read is the service's own, as a missing one is.
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => TargetPort::Named(name.as_str().into()),
        Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(*target).unwrap_or(number_?)),
        None => TargetPort::Number(number_?),
    };
    Some(ServicePort { protocol: protocol?, port: number_?, node_port, target })
}
