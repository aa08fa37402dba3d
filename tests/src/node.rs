//! A Kubernetes node made of network namespaces, as Flannel leaves it: a bridge `cni0`, pods behind veth pairs, and an
//! outside host behind the uplink `eth0`.
//!
//! ```text
//!   pod eth0 ── vethXXXXXXXX ─┐                                  ┌─ 192.0.2.100, 2001:db8::100
//!   pod eth0 ── vethXXXXXXXX ─┴─ cni0 10.244.1.1 ─ eth0 ── eth0 ─┴─ 198.51.100.7, 169.254.169.254, ... (outside)
//!                                fd00:10:244:1::1   192.0.2.10, 2001:db8::10
//! ```
//!
//! Nothing is masqueraded, so that addresses stay what policies see. Places are named: `node`, `outside`, and
//! `namespace/name` for a pod. The calls here are for ordinary threads; tasks run on a runtime of the node's own. Must not
//! know policies or the agent; start at [`Node::start`].

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::manifests::PodAddresses;
use crate::netns::Namespace;
use crate::netns::links::{Links, VethEnd};
use crate::netns::run::{self, Run};
use crate::servers::Servers;

/// The name of the node itself among the places.
pub const NODE: &str = "node";
/// The name of the host outside the cluster among the places.
pub const OUTSIDE: &str = "outside";

/// The node's addresses on `cni0`, where its own probes of pods come from.
pub const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1))];
/// The node's addresses on its uplink.
pub const NODE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10))];
/// The outside host's addresses on the link to the node, which route for all its others.
pub const OUTSIDE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100))];

const BRIDGE: &str = "cni0";
const UPLINK: &str = "eth0";
const POD_LINK: &str = "eth0";
/// Flannel's VXLAN takes 50 bytes of the uplink's 1500.
const POD_MTU: u32 = 1450;
const UPLINK_MTU: u32 = 1500;
const POD_PREFIX: [u8; 2] = [24, 64];
const UPLINK_PREFIX: [u8; 2] = [24, 64];
const HOST_PREFIX: [u8; 2] = [32, 128];
const BRIDGE_MAC: [u8; 6] = [0x0a, 0x58, 10, 244, 1, 1];

/// Duplicate address detection would keep every IPv6 address unusable for its first second.
const NO_DAD: &[(&str, &str)] = &[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];
/// A pod of a test may be asked for any port; a node forwards.
const FORWARDING: &[(&str, &str)] = &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// A pod as the harness made it.
#[derive(Debug)]
pub struct PodPlace {
    namespace: Namespace,
    interface: String,
    addresses: Vec<IpAddr>,
}

impl PodPlace {
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

/// A running node; dropping it removes everything.
#[derive(Debug)]
pub struct Node {
    pods: BTreeMap<String, PodPlace>,
    pods_made: u32,
    outside_addresses: Vec<IpAddr>,
    outside: Namespace,
    node: Namespace,
    servers: Arc<Servers>,
    // Declared late, hence dropped late: sockets first, then names, mounts and files.
    runtime: Option<Runtime>,
    run: Run,
}

impl Node {
    /// Makes the node and the outside host, with `outside` as more addresses of the latter.
    ///
    /// # Errors
    /// Without root, or if the kernel lacks what a node needs (bridges, veth pairs, a BPF file system).
    pub fn start(outside: &[IpAddr]) -> Result<Self> {
        let run = Run::start()?;
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        remove_on_signals(&runtime)?;
        let node = Namespace::create(&run, NODE)?;
        let host = Namespace::create(&run, OUTSIDE)?;
        let mut outside_addresses = OUTSIDE_ADDRESSES.to_vec();
        outside_addresses.extend(outside);
        node.set_sysctls(NO_DAD)?;
        node.set_sysctls(FORWARDING)?;
        host.set_sysctls(NO_DAD)?;
        runtime.block_on(wire_node(&node, &host, outside, runtime.handle()))?;
        let pods = BTreeMap::new();
        let servers = Arc::default();
        Ok(Self { pods, pods_made: 0, outside_addresses, outside: host, node, servers, runtime: Some(runtime), run })
    }

    /// Adds a pod: a namespace, a veth pair with one end in `cni0`, addresses, a default route.
    ///
    /// # Errors
    /// If the pod is there already, or the kernel refuses.
    pub fn add_pod(&mut self, pod: &PodAddresses) -> Result<&PodPlace> {
        if self.pods.contains_key(&pod.key) {
            bail!("pod {} is there already", pod.key);
        }
        self.pods_made += 1;
        let namespace = Namespace::create(&self.run, &pod.key.replace('/', "."))?;
        namespace.set_sysctls(NO_DAD)?;
        let interface = interface_name(&pod.key, self.pods_made);
        self.block_on(wire_pod(&self.node, &interface, &namespace, &pod.addresses, self.runtime().handle()))
            .with_context(|| format!("cannot wire pod {}", pod.key))?;
        let place = PodPlace { namespace, interface, addresses: pod.addresses.clone() };
        Ok(self.pods.entry(pod.key.clone()).or_insert(place))
    }

    /// Removes a pod's interface and namespace. Its servers stay open and hear nothing more.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn remove_pod(&mut self, key: &str) -> Result<()> {
        let pod = self.pods.remove(key).with_context(|| format!("no pod {key}"))?;
        let links = Links::open(&self.node, self.runtime().handle())?;
        self.block_on(links.delete(&pod.interface))?;
        pod.namespace.remove()
    }

    /// A pod of the node.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn pod(&self, key: &str) -> Result<&PodPlace> {
        self.pods.get(key).with_context(|| format!("no pod {key}"))
    }

    /// The namespace of a place.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn namespace(&self, place: &str) -> Result<&Namespace> {
        match place {
            NODE => Ok(&self.node),
            OUTSIDE => Ok(&self.outside),
            pod => Ok(&self.pod(pod)?.namespace),
        }
    }

    /// All addresses of a place.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn addresses(&self, place: &str) -> Result<&[IpAddr]> {
        match place {
            NODE => Ok(&NODE_ADDRESSES),
            OUTSIDE => Ok(&self.outside_addresses),
            pod => Ok(&self.pod(pod)?.addresses),
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

    /// The runtime that serves the node's sockets.
    #[must_use]
    #[expect(clippy::expect_used, reason = "it is taken in drop only, after which nobody can call")]
    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime lives as long as the node")
    }
}

impl Drop for Node {
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

async fn wire_node(node: &Namespace, host: &Namespace, outside: &[IpAddr], runtime: &runtime::Handle) -> Result<()> {
    let inner = Links::open(node, runtime)?;
    let outer = Links::open(host, runtime)?;
    inner.up("lo").await?;
    outer.up("lo").await?;
    inner.add_bridge(BRIDGE, BRIDGE_MAC, POD_MTU).await?;
    inner.add_veth(UPLINK, VethEnd { namespace: host, name: UPLINK }, UPLINK_MTU).await?;
    inner.up(UPLINK).await?;
    outer.up(UPLINK).await?;
    for gateway in GATEWAYS {
        inner.add_address(BRIDGE, gateway, prefix(gateway, POD_PREFIX)).await?;
    }
    for address in NODE_ADDRESSES {
        inner.add_address(UPLINK, address, prefix(address, UPLINK_PREFIX)).await?;
    }
    for address in OUTSIDE_ADDRESSES {
        outer.add_address(UPLINK, address, prefix(address, UPLINK_PREFIX)).await?;
        inner.add_default_route(address).await?;
    }
    for address in NODE_ADDRESSES {
        outer.add_default_route(address).await?;
    }
    for &address in outside {
        outer.add_address("lo", address, prefix(address, HOST_PREFIX)).await?;
    }
    inner.wait_until_up(&[UPLINK]).await?;
    outer.wait_until_up(&[UPLINK]).await
}

async fn wire_pod(
    node: &Namespace,
    interface: &str,
    pod: &Namespace,
    addresses: &[IpAddr],
    runtime: &runtime::Handle,
) -> Result<()> {
    let outer = Links::open(node, runtime)?;
    let inner = Links::open(pod, runtime)?;
    outer.add_veth(interface, VethEnd { namespace: pod, name: POD_LINK }, POD_MTU).await?;
    outer.add_port(BRIDGE, interface).await?;
    inner.up("lo").await?;
    inner.up(POD_LINK).await?;
    for &address in addresses {
        inner.add_address(POD_LINK, address, prefix(address, POD_PREFIX)).await?;
    }
    for gateway in GATEWAYS {
        if addresses.iter().any(|address| address.is_ipv4() == gateway.is_ipv4()) {
            inner.add_default_route(gateway).await?;
        }
    }
    outer.wait_until_up(&[interface, BRIDGE]).await?;
    inner.wait_until_up(&[POD_LINK]).await
}

fn prefix(address: IpAddr, [v4, v6]: [u8; 2]) -> u8 {
    if address.is_ipv4() { v4 } else { v6 }
}

/// `veth` and eight hex digits, as the CNI bridge plugin names them; another one when a pod comes back (FNV-1a).
fn interface_name(key: &str, serial: u32) -> String {
    let bytes = key.bytes().chain(serial.to_le_bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("veth{hash:08x}")
}
