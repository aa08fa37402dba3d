//! What is translated: Services and their endpoints, and host ports, out of the same manifests that the agent reads.
//!
//! In: objects as JSON (Service, Pod, EndpointSlice; all others are passed over). Out: a [`Table`]. The endpoints of a service
//! are the pods its selector matches and those that EndpointSlices list for it. Unready pods, session affinity and
//! `externalTrafficPolicy: Local` are not known here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort as ApiPort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::judge::Protocol;

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`, for comments and names of chains.
    pub name: String,
    /// Transport.
    pub transport: Protocol,
    /// Port at the virtual addresses.
    pub port: u16,
    /// `spec.clusterIPs`.
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.externalIPs`, and those of load balancers.
    pub external_addresses: Vec<IpAddr>,
    /// Port at the nodes' own addresses.
    pub node_port: Option<u16>,
    /// Backends.
    pub endpoints: Vec<SocketAddr>,
}

/// A port of a node that is a pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `namespace/name` of the pod.
    pub pod: String,
    /// `spec.nodeName`.
    pub node: String,
    /// Transport.
    pub transport: Protocol,
    /// Port at the node's addresses.
    pub port: u16,
    /// The pod.
    pub endpoints: Vec<SocketAddr>,
}

/// Everything that is translated anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Ports of services.
    pub services: Vec<ServicePort>,
    /// Host ports.
    pub host_ports: Vec<HostPort>,
}

impl Table {
    /// Reads what the manifests come to.
    ///
    /// # Errors
    /// If an object cannot be read; nobody but the tests writes these.
    pub fn read(objects: &[Value]) -> Result<Self> {
        let of_kind =
            |kind: &'static str| objects.iter().filter(move |object| object.get("kind").is_some_and(|it| it == kind));
        let pods: Vec<Backend> = of_kind("Pod").map(Backend::of_pod).collect::<Result<_>>()?;
        let slices: Vec<EndpointSlice> = of_kind("EndpointSlice").map(read).collect::<Result<_>>()?;
        let mut table = Self::default();
        for service in of_kind("Service") {
            let service: Service = read(service)?;
            table.add(&service, &pods, &slices).with_context(|| format!("service {}", key(&service.metadata)))?;
        }
        table.host_ports = pods.iter().flat_map(Backend::host_ports).collect();
        Ok(table)
    }

    fn add(&mut self, service: &Service, pods: &[Backend], slices: &[EndpointSlice]) -> Result<()> {
        let name = key(&service.metadata);
        let Some(spec) = &service.spec else { bail!("no spec") };
        let cluster = spec.cluster_ips.clone().or_else(|| Some(vec![spec.cluster_ip.clone()?])).unwrap_or_default();
        let cluster_addresses = addresses(cluster.iter().filter(|ip| *ip != "None"))?;
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let balanced =
            balancer.and_then(|it| it.ingress.as_ref()).into_iter().flatten().filter_map(|it| it.ip.as_ref());
        let external_addresses = addresses(spec.external_ips.iter().flatten().chain(balanced))?;
        for port in spec.ports.iter().flatten() {
            let transport = transport(port.protocol.as_deref())?;
            let selected =
                pods.iter().filter(|pod| pod.is_selected(&service.metadata.namespace, spec.selector.as_ref()));
            let mut endpoints: Vec<SocketAddr> = selected.flat_map(|pod| pod.endpoints(port, transport)).collect();
            for slice in slices.iter().filter(|slice| is_of(slice, &service.metadata)) {
                endpoints.extend(listed(slice, port)?);
            }
            self.services.push(ServicePort {
                name: format!("{name}:{}", port.name.as_deref().unwrap_or(super::keyword(transport))),
                transport,
                port: number(port.port)?,
                cluster_addresses: cluster_addresses.clone(),
                external_addresses: external_addresses.clone(),
                node_port: port.node_port.map(number).transpose()?,
                endpoints,
            });
        }
        Ok(())
    }
}

/// A pod as services see it.
struct Backend {
    pod: Pod,
    addresses: Vec<IpAddr>,
}

impl Backend {
    fn of_pod(object: &Value) -> Result<Self> {
        let pod: Pod = read(object)?;
        let listed = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|it| &it.ip);
        let addresses = addresses(listed).with_context(|| format!("podIPs of {}", key(&pod.metadata)))?;
        Ok(Self { pod, addresses })
    }

    fn is_selected(&self, namespace: &Option<String>, selector: Option<&BTreeMap<String, String>>) -> bool {
        let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return false };
        let labels = self.pod.metadata.labels.as_ref();
        self.pod.metadata.namespace == *namespace
            && selector.iter().all(|(name, value)| labels.is_some_and(|labels| labels.get(name) == Some(value)))
    }

    fn endpoints(&self, port: &ApiPort, transport: Protocol) -> Vec<SocketAddr> {
        let target = match &port.target_port {
            None => u16::try_from(port.port).ok(),
            Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
            Some(IntOrString::String(name)) => self.named_port(name, transport),
        };
        target.into_iter().flat_map(|port| self.addresses.iter().map(move |&ip| SocketAddr::new(ip, port))).collect()
    }

    fn ports(&self) -> impl Iterator<Item = &k8s_openapi::api::core::v1::ContainerPort> {
        let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
        containers.flat_map(|container| container.ports.iter().flatten())
    }

    fn named_port(&self, name: &str, wanted: Protocol) -> Option<u16> {
        let is_wanted = |protocol: Option<&str>| transport(protocol).is_ok_and(|it| it == wanted);
        let found = self.ports().find(|it| it.name.as_deref() == Some(name) && is_wanted(it.protocol.as_deref()))?;
        u16::try_from(found.container_port).ok()
    }

    fn host_ports(&self) -> Vec<HostPort> {
        let spec = self.pod.spec.as_ref();
        if spec.and_then(|spec| spec.host_network) == Some(true) {
            return Vec::new();
        }
        let node = spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let made = self.ports().filter_map(|port| {
            let inner = u16::try_from(port.container_port).ok()?;
            Some(HostPort {
                pod: key(&self.pod.metadata),
                node: node.clone(),
                transport: transport(port.protocol.as_deref()).ok()?,
                port: u16::try_from(port.host_port?).ok()?,
                endpoints: self.addresses.iter().map(|&ip| SocketAddr::new(ip, inner)).collect(),
            })
        });
        made.collect()
    }
}

/// The endpoints that a slice has for one port of its service.
fn listed(slice: &EndpointSlice, port: &ApiPort) -> Result<Vec<SocketAddr>> {
    let mut endpoints = Vec::new();
    for listed in slice.ports.iter().flatten() {
        // A service with one port may leave it without a name; the API server writes an empty one then.
        if listed.name.as_deref().unwrap_or_default() != port.name.as_deref().unwrap_or_default() {
            continue;
        }
        let number = number(listed.port.context("a port of an EndpointSlice without number")?)?;
        for endpoint in slice.endpoints.iter().flatten() {
            endpoints.extend(addresses(&endpoint.addresses)?.into_iter().map(|ip| SocketAddr::new(ip, number)));
        }
    }
    Ok(endpoints)
}

fn is_of(slice: &EndpointSlice, service: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> bool {
    let labels = slice.metadata.labels.as_ref();
    slice.metadata.namespace == service.namespace
        && labels.and_then(|labels| labels.get("kubernetes.io/service-name")) == service.name.as_ref()
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    format!("{}/{}", meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
}

fn read<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T> {
    serde_json::from_value(object.clone()).with_context(|| format!("cannot read {object}"))
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<IpAddr>> {
    texts.into_iter().map(|ip| ip.parse().with_context(|| format!("no address: {ip:?}"))).collect()
}

fn number(port: i32) -> Result<u16> {
    u16::try_from(port).with_context(|| format!("no port: {port}"))
}

fn transport(protocol: Option<&str>) -> Result<Protocol> {
    match protocol {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => bail!("protocol {other} is not known here"),
    }
}
