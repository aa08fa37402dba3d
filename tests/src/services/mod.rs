//! A case whose pods reach each other by services: a cluster of two nodes, kube-proxy's rules, a server behind each service.
//!
//! In: `tests/cases/services/cluster/` and a [`Form`]. Out: a [`Services`], which knows every address by which a backend
//! can be reached ([`Way`]) and who answers there; [`Policed`] adds an agent on each node. Used by the tests of the netns
//! level; must not know what policies mean.

mod policed;

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

pub use self::policed::{Policed, egress, ingress, policy};
use crate::cluster::{Cluster, OUTSIDE};
use crate::kube_proxy::{Form, HostPort, ServicePort, Table};
use crate::manifests;
use crate::probe::Probe;
use crate::servers::Transport;

/// The nodes.
pub const NODES: [&str; 2] = ["node-1", "node-2"];
/// Where backends serve, whatever the port of the service.
const BACKEND_PORTS: [(Transport, u16); 2] = [(Transport::Tcp, 8080), (Transport::Udp, 5353)];
/// The backend of the service `away`.
const AWAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7))];

/// By which address a backend is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Its own.
    Direct,
    /// The service's cluster IP.
    ClusterIp,
    /// The service's external IP.
    ExternalIp,
    /// A node port at this node.
    NodePort(&'static str),
    /// A host port at the backend's node.
    HostPort,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("its own address"),
            Self::ClusterIp => f.write_str("the cluster IP"),
            Self::ExternalIp => f.write_str("the external IP"),
            Self::NodePort(node) => write!(f, "the node port at {node}"),
            Self::HostPort => f.write_str("the host port"),
        }
    }
}

/// The case, up and serving.
#[derive(Debug)]
pub struct Services {
    form: Form,
    table: Table,
    /// The nodes and pods.
    pub cluster: Cluster,
}

impl Services {
    /// Builds the cluster with its servers and kube-proxy's rules, and puts its manifests where agents read.
    ///
    /// # Errors
    /// If a manifest, the kernel or a program that loads rules refuses.
    pub fn build(form: Form) -> Result<Self> {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/services/cluster");
        let mut cluster = Cluster::start(&NODES, &AWAY)?;
        let mut objects: Vec<Value> = Vec::new();
        for file in manifests::files(&case)? {
            objects.extend(manifests::objects(&file)?);
            let name = file.file_name().and_then(|name| name.to_str()).context("a manifest has a name")?;
            cluster.run().put_manifest(name, &fs::read_to_string(&file)?)?;
        }
        for pod in manifests::pods(&case)? {
            let node = pod.node.as_deref().with_context(|| format!("{} is on no node", pod.key))?;
            cluster.add_pod(node, &pod)?;
        }
        let serving = cluster.places().filter(|place| !place.ends_with("-mute"));
        let places: Vec<String> = serving.map(str::to_owned).collect();
        for place in places {
            for (transport, port) in BACKEND_PORTS {
                cluster.serve(&place, transport, [port])?;
            }
        }
        let table = Table::read(&objects)?;
        cluster.kube_proxy(form).sync(&table)?;
        Ok(Self { form, table, cluster })
    }

    /// The form of kube-proxy's rules.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// What kube-proxy translates.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The place that answers for a backend: a pod, or the host whose address it has.
    #[must_use]
    pub fn place(backend: &str) -> String {
        match backend {
            "host-near" => NODES[0].to_owned(),
            "host-far" => NODES[1].to_owned(),
            "away" => OUTSIDE.to_owned(),
            pod => format!("shop/{pod}"),
        }
    }

    /// Where a backend is found.
    ///
    /// # Errors
    /// If there is no such way to it.
    pub fn at(&self, backend: &str, way: Way, transport: Transport, ipv6: bool) -> Result<SocketAddr> {
        let service = self.service(backend, transport)?;
        let of_family = |all: &[IpAddr]| all.iter().copied().find(|ip| ip.is_ipv6() == ipv6);
        let at = match way {
            Way::Direct => service.endpoints.iter().copied().find(|endpoint| endpoint.is_ipv6() == ipv6),
            Way::ClusterIp => of_family(&service.cluster_addresses).map(|ip| SocketAddr::new(ip, service.port)),
            Way::ExternalIp => of_family(&service.external_addresses).map(|ip| SocketAddr::new(ip, service.port)),
            Way::NodePort(node) => {
                let ip = self.cluster.address(node, ipv6)?;
                service.node_port.map(|port| SocketAddr::new(ip, port))
            }
            Way::HostPort => match self.host_port(backend, transport) {
                Some(it) => Some(SocketAddr::new(self.cluster.address(&it.node, ipv6)?, it.port)),
                None => None,
            },
        };
        at.with_context(|| format!("{backend} has no such address: {way}"))
    }

    /// The question of a place to a backend.
    ///
    /// # Errors
    /// If there is no such way to it.
    pub fn probe(&self, from: &str, (backend, way): (&str, Way), transport: Transport, ipv6: bool) -> Result<Probe> {
        let at = self.at(backend, way, transport, ipv6)?;
        Ok(Probe { from: from.to_owned(), to: Self::place(backend), at, transport })
    }

    fn service(&self, backend: &str, transport: Transport) -> Result<&ServicePort> {
        let prefix = format!("shop/{backend}:");
        let found =
            self.table.services.iter().find(|it| it.transport == transport.into() && it.name.starts_with(&prefix));
        found.with_context(|| format!("no service {backend}"))
    }

    fn host_port(&self, backend: &str, transport: Transport) -> Option<&HostPort> {
        let pod = Self::place(backend);
        self.table.host_ports.iter().find(|it| it.pod == pod && it.transport == transport.into())
    }
}
