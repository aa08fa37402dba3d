//! A Kubernetes cluster made of network namespaces, as Flannel leaves it: nodes with a bridge `cni0` and pods behind veth
//! pairs, joined by VXLAN, and an outside host on the segment of their uplinks.
//!
//! ```text
//!   pod eth0 ── vethXXXXXXXX ─┐
//!   pod eth0 ── vethXXXXXXXX ─┴─ cni0 10.244.1.1 ─┬─ flannel.1 10.244.1.0 ─┐  ┌─ 192.0.2.100, 2001:db8::100
//!                                fd00:10:244:1::1 └─ eth0 192.0.2.10 ──────┴──┼─ 198.51.100.7, ... (outside)
//!                                                         2001:db8::10        │
//!   pod eth0 ── ... the second node: 10.244.2.1, eth0 192.0.2.11 ─────────────┘
//! ```
//!
//! Nothing is masqueraded and no service translated unless [`Cluster::kube_proxy`] is asked for it, so that addresses stay
//! what policies see. Places are named: nodes by their names, `outside`, and `namespace/name` for a pod. The calls here
//! are for ordinary threads; tasks run on a runtime of the cluster's own. Must not know policies or the agent; start at
//! [`Cluster::start`].

mod beyond;
mod plan;
mod plug;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};

pub use self::plan::{POD_NETWORKS, Plan};
pub use self::plug::Wired;
use crate::manifests::PodAddresses;
use crate::netns::Namespace;
use crate::netns::links::Links;
use crate::netns::run::{self, Run};
use crate::servers::Servers;

/// The name of the host outside the cluster among the places.
pub const OUTSIDE: &str = "outside";
/// The outside host's addresses on the segment of the nodes, which route for all its others.
pub const OUTSIDE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100))];

const BRIDGE: &str = "cni0";
const UPLINK: &str = "eth0";
const POD_LINK: &str = "eth0";

/// Duplicate address detection would keep every IPv6 address unusable for its first second.
const NO_DAD: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];
/// A pod of a test may be asked for any port; a node forwards.
const FORWARDING: &[(&str, &str)] = &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// A node as the harness made it.
#[derive(Debug)]
pub struct NodePlace {
    namespace: Namespace,
    plan: Plan,
    addresses: [IpAddr; 2],
    bpffs: PathBuf,
    socket: PathBuf,
}

impl NodePlace {
    /// The node's network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// All addresses of the node and of its pods.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Where the node's agent pins: a BPF file system that no other node's agent uses.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The socket of the node's agent.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// A pod as the harness made it.
#[derive(Debug)]
pub struct PodPlace {
    node: String,
    namespace: Namespace,
    interface: String,
    addresses: Vec<IpAddr>,
    /// Whether nodes have routes to the pod alone.
    routed: bool,
}

impl PodPlace {
    /// The name of the pod's node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The pod's network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The node's end of the pod's veth pair.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

/// A running cluster; dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    pods: BTreeMap<String, PodPlace>,
    pods_made: u32,
    outside_addresses: Vec<IpAddr>,
    outside: Namespace,
    nodes: BTreeMap<String, NodePlace>,
    first: String,
    servers: Arc<Servers>,
    // Declared late, hence dropped late: sockets first, then names, mounts and files.
    runtime: Option<Runtime>,
    run: Run,
}

impl Cluster {
    /// Makes nodes of these names and the outside host, with `outside` as more addresses of the latter.
    ///
    /// # Errors
    /// Without root, or if the kernel lacks what a node needs (bridges, veth pairs, VXLAN, a BPF file system).
    pub fn start(nodes: &[&str], outside: &[IpAddr]) -> Result<Self> {
        let planned = (1..).zip(nodes).map(|(number, name)| {
            let plan = Plan::of(number).with_context(|| format!("at most {} nodes", Plan::MOST))?;
            Ok((*name, plan))
        });
        Self::start_planned(&planned.collect::<Result<Vec<_>>>()?, outside)
    }

    /// Makes nodes of these names and plans. All plans are hidden ones, or none.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_planned(nodes: &[(&str, Plan)], outside: &[IpAddr]) -> Result<Self> {
        let &(first, plan) = nodes.first().context("a cluster has at least one node")?;
        let run = Run::start()?;
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        remove_on_signals(&runtime)?;
        let host = Namespace::create(&run, OUTSIDE)?;
        let mut outside_addresses = plan.outside().to_vec();
        outside_addresses.extend(outside);
        host.set_sysctls(NO_DAD)?;
        runtime.block_on(wire::outside(&host, plan, outside, runtime.handle()))?;
        let mut cluster = Self {
            pods: BTreeMap::new(),
            pods_made: 0,
            outside_addresses,
            outside: host,
            nodes: BTreeMap::new(),
            first: first.to_owned(),
            servers: Arc::default(),
            runtime: Some(runtime),
            run,
        };
        for &(name, plan) in nodes {
            cluster.add_node(name, plan).with_context(|| format!("cannot make the node {name}"))?;
        }
        cluster.join_nodes()?;
        Ok(cluster)
    }

    /// Adds a pod to a node: a namespace, a veth pair with one end in `cni0`, addresses, a default route.
    ///
    /// # Errors
    /// If the pod is there already, the node is not, or the kernel refuses.
    pub fn add_pod(&mut self, node: &str, pod: &PodAddresses) -> Result<&PodPlace> {
        self.wire_pod(node, pod, (None, false))
    }

    fn wire_pod(&mut self, node: &str, pod: &PodAddresses, (mac, alone): (Option<[u8; 6]>, bool)) -> Result<&PodPlace> {
        if self.pods.contains_key(&pod.key) {
            bail!("pod {} is there already", pod.key);
        }
        self.pods_made += 1;
        let namespace = Namespace::create(&self.run, &pod.key.replace('/', "."))?;
        namespace.set_sysctls(NO_DAD)?;
        let interface = interface_name(&pod.key, self.pods_made);
        let NodePlace { namespace: outer, plan, .. } = self.node(node)?;
        let wired =
            wire::Pod { interface: &interface, index: 0, namespace: &namespace, addresses: &pod.addresses, mac, alone };
        self.block_on(wire::pod((outer, *plan), wired, self.runtime().handle()))
            .with_context(|| format!("cannot wire pod {}", pod.key))?;
        let addresses = pod.addresses.clone();
        let place = PodPlace { node: node.to_owned(), namespace, interface, addresses, routed: alone };
        Ok(self.pods.entry(pod.key.clone()).or_insert(place))
    }

    /// Removes a pod's interface and namespace. Its servers stay open and hear nothing more.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn remove_pod(&mut self, key: &str) -> Result<()> {
        let pod = self.pods.remove(key).with_context(|| format!("no pod {key}"))?;
        let links = Links::open(&self.node(&pod.node)?.namespace, self.runtime().handle())?;
        self.block_on(links.delete(&pod.interface))?;
        if pod.routed {
            pod.addresses.iter().try_for_each(|&address| self.unroute(&pod.node, address))?;
        }
        pod.namespace.remove()
    }

    /// The nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodePlace)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The name of the node that was named first.
    #[must_use]
    pub fn first_node(&self) -> &str {
        &self.first
    }

    /// A node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node(&self, name: &str) -> Result<&NodePlace> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// A pod of the cluster.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn pod(&self, key: &str) -> Result<&PodPlace> {
        self.pods.get(key).with_context(|| format!("no pod {key}"))
    }

    /// The names of all places.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        let nodes_and_pods = self.nodes.keys().chain(self.pods.keys());
        nodes_and_pods.map(String::as_str).chain([OUTSIDE])
    }

    /// The namespace of a place.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn namespace(&self, place: &str) -> Result<&Namespace> {
        match self.nodes.get(place) {
            Some(node) => Ok(&node.namespace),
            None if place == OUTSIDE => Ok(&self.outside),
            None => Ok(&self.pod(place)?.namespace),
        }
    }

    /// All addresses of a place by which others know it.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn addresses(&self, place: &str) -> Result<&[IpAddr]> {
        match self.nodes.get(place) {
            Some(node) => Ok(&node.addresses),
            None if place == OUTSIDE => Ok(&self.outside_addresses),
            None => Ok(&self.pod(place)?.addresses),
        }
    }

    /// The address of a place in one family.
    ///
    /// # Errors
    /// If it has none.
    pub fn address(&self, place: &str, ipv6: bool) -> Result<IpAddr> {
        let found = self.addresses(place)?.iter().find(|address| address.is_ipv6() == ipv6);
        found.copied().with_context(|| format!("{place} has no IPv{} address", if ipv6 { 6 } else { 4 }))
    }

    /// Where things of this run live: BPF file system, manifests, socket.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// What serves and answers in every place.
    #[must_use]
    pub fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// Runs a future of the harness to its end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime().block_on(future)
    }

    /// The runtime that serves the cluster's sockets.
    #[must_use]
    #[expect(clippy::expect_used, reason = "it is taken in drop only, after which nobody can call")]
    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime lives as long as the cluster")
    }

    fn add_node(&mut self, name: &str, plan: Plan) -> Result<()> {
        ensure!(name != OUTSIDE && !self.nodes.contains_key(name), "the name is taken");
        let namespace = Namespace::create(&self.run, name)?;
        namespace.set_sysctls(NO_DAD)?;
        namespace.set_sysctls(FORWARDING)?;
        self.block_on(wire::node(&namespace, plan, &self.outside, self.runtime().handle()))?;
        let (bpffs, socket) = if name == self.first {
            (self.run.bpffs(), self.run.socket())
        } else {
            // A directory is as good as a file system of its own: agents look below what they are given only.
            (self.run.bpffs().join(name), self.run.socket().with_file_name(format!("{name}.sock")))
        };
        fs::create_dir_all(&bpffs)?;
        self.nodes.insert(name.to_owned(), NodePlace { namespace, plan, addresses: plan.uplink(), bpffs, socket });
        Ok(())
    }

    fn join_nodes(&self) -> Result<()> {
        let plans: Vec<Plan> = self.nodes.values().map(|node| node.plan).collect();
        for (name, node) in &self.nodes {
            let others: Vec<Plan> = plans.iter().copied().filter(|plan| *plan != node.plan).collect();
            // A node alone has no overlay: one device less for what tests of single nodes look at.
            if !others.is_empty() {
                self.block_on(wire::overlay(&node.namespace, node.plan, &others, self.runtime().handle()))
                    .with_context(|| format!("cannot join {name} to the others"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Not the ordinary drop: that would wait for tasks that block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ctrl-C and kin remove every run of the process and end it: `Drop` would not run.
fn remove_on_signals(runtime: &Runtime) -> Result<()> {
    let _context = runtime.enter();
    for (kind, status) in [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143), (SignalKind::hangup(), 129)]
    {
        let mut stream = signal(kind).context("cannot watch for signals")?;
        runtime.spawn(async move {
            if stream.recv().await.is_some() {
                run::remove_all_and_exit(status);
            }
        });
    }
    Ok(())
}

/// `veth` and eight hex digits, as the CNI bridge plugin names them; another one when a pod comes back (FNV-1a).
fn interface_name(key: &str, serial: u32) -> String {
    let bytes = key.bytes().chain(serial.to_le_bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("veth{hash:08x}")
}
