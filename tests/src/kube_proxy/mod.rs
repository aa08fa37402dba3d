//! What translates addresses on a node: kube-proxy's rules for Services, the CNI portmap plugin's for host ports, and
//! optionally flanneld's masquerade, in the shapes in which those programs write them.
//!
//! In: a [`Table`] out of manifests. Out: rules in every node's namespace, loaded in one step a family. Start at
//! [`Cluster::kube_proxy`]. Nothing of it is ours to enforce with, and it must not know policies.
//!
//! What is left out: probabilities of readiness, session affinity, `externalTrafficPolicy: Local`, the rejection of services
//! without endpoints (they are not translated), and clearing of conntrack entries when endpoints change.

mod iptables;
mod nftables;
mod services;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

pub use self::services::{HostPort, ServicePort, Table};
use crate::cluster::{Cluster, NodePlace, POD_NETWORKS, Plan};
use crate::judge::Protocol;
use crate::netns::Namespace;

/// kube-proxy's mark on packets that are to be masqueraded.
const MASQUERADE_MARK: &str = "0x4000";
/// Where tools of the system lie that a user's `PATH` may lack.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// Bridged packets go through the rules too: without it, an answer within a node would keep the backend's address.
const BRIDGED: &[(&str, &str)] = &[("bridge/bridge-nf-call-iptables", "1"), ("bridge/bridge-nf-call-ip6tables", "1")];

/// In which form rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// `--proxy-mode=iptables`.
    Iptables,
    /// `--proxy-mode=nftables`.
    Nftables,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Nftables];

    /// As kube-proxy's `--proxy-mode` says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// Programs that load the rules, and the package that has them.
    const fn programs(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Iptables => (&["iptables-restore", "ip6tables-restore"], "iptables"),
            Self::Nftables => (&["nft"], "nftables"),
        }
    }

    /// The first whose programs are here.
    ///
    /// # Errors
    /// If there are none.
    pub fn any() -> Result<Self> {
        let found = Self::ALL.into_iter().find(|form| form.missing().is_none());
        found.with_context(|| Self::Nftables.missing().unwrap_or_default())
    }

    /// Why rules of this form cannot be loaded here, if so.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let (programs, package) = self.programs();
        let missing = programs.iter().find(|program| find(program).is_none())?;
        Some(format!("no {missing}: apt-get install {package}, or cargo xtask setup"))
    }
}

/// What stands in for kube-proxy on every node of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct KubeProxy<'a> {
    cluster: &'a Cluster,
    form: Form,
    flannel: bool,
    /// Whether kube-proxy knows the pods' network, and masquerades what comes to a cluster IP from elsewhere.
    cluster_cidr: bool,
}

impl Cluster {
    /// kube-proxy in one form. A cluster keeps to one: rules of another would stay beside it.
    #[must_use]
    pub fn kube_proxy(&self, form: Form) -> KubeProxy<'_> {
        KubeProxy { cluster: self, form, flannel: false, cluster_cidr: true }
    }
}

impl KubeProxy<'_> {
    /// Also masquerades what leaves the pods' network, as flanneld does with `--ip-masq`.
    #[must_use]
    pub fn masquerading(self) -> Self {
        Self { flannel: true, ..self }
    }

    /// Does not know which addresses are pods', as kube-proxy without `--cluster-cidr`.
    #[must_use]
    pub fn without_cluster_cidr(self) -> Self {
        Self { cluster_cidr: false, ..self }
    }

    /// Puts exactly this table in force on every node.
    ///
    /// # Errors
    /// If a program is missing, or refuses the rules.
    pub fn sync(&self, table: &Table) -> Result<()> {
        let mut loading = Vec::new();
        for (name, node) in self.cluster.nodes() {
            node.namespace().set_sysctls(BRIDGED).context("bridged packets are not translated (br_netfilter)")?;
            for ipv6 in [false, true] {
                let rules = self.rules(table, (name, node), ipv6);
                let child = load(node.namespace(), self.command(ipv6), &rules).with_context(|| self.form.name())?;
                loading.push((rules, child));
            }
        }
        for (rules, child) in loading {
            let output = child.wait_with_output()?;
            let says = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{} refuses the rules: {says}\n{rules}", self.form.name());
        }
        Ok(())
    }

    fn rules(&self, table: &Table, (name, node): (&str, &NodePlace), ipv6: bool) -> String {
        let view =
            View { table, node: name, plan: node.plan(), ipv6, flannel: self.flannel, cluster_cidr: self.cluster_cidr };
        match self.form {
            Form::Iptables => iptables::rules(&view),
            Form::Nftables => nftables::rules(&view),
        }
    }

    fn command(&self, ipv6: bool) -> &'static [&'static str] {
        match (self.form, ipv6) {
            (Form::Iptables, false) => &["iptables-restore", "-w", "30"],
            (Form::Iptables, true) => &["ip6tables-restore", "-w", "30"],
            (Form::Nftables, _) => &["nft", "-f", "-"],
        }
    }
}

/// Starts a program inside a namespace with `input` on its standard input.
fn load(namespace: &Namespace, command: &[&str], input: &str) -> Result<Child> {
    let (name, arguments) = command.split_first().context("a command has a name")?;
    let program = find(name).with_context(|| format!("no {name} in PATH: cargo xtask setup installs it"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A child is where the thread is that starts it.
    let mut child = namespace.enter(|| command.spawn())?.with_context(|| format!("cannot run {name}"))?;
    let mut stdin = child.stdin.take().context("its input is a pipe")?;
    // One that ends early says why on standard error.
    drop(stdin.write_all(input.as_bytes()));
    Ok(child)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories = path.split(':').chain(SYSTEM_PATH.split(':'));
    directories.find_map(|directory| Some(PathBuf::from(directory).join(program)).filter(|path| path.is_file()))
}

/// A table as one node sees it in one family.
struct View<'a> {
    table: &'a Table,
    node: &'a str,
    plan: Plan,
    ipv6: bool,
    flannel: bool,
    cluster_cidr: bool,
}

/// A service's port in one family; never without endpoints.
struct Translation<'a> {
    /// What chains are named after: 16 letters and digits.
    hash: String,
    name: &'a str,
    transport: &'static str,
    port: u16,
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    node_port: Option<u16>,
    endpoints: Vec<SocketAddr>,
}

impl<'a> View<'a> {
    fn services(&self) -> Vec<Translation<'a>> {
        let made = self.table.services.iter().map(|it| Translation {
            hash: hash(&it.name),
            name: &it.name,
            transport: keyword(it.transport),
            port: it.port,
            cluster: self.of_family(&it.cluster_addresses),
            external: self.of_family(&it.external_addresses),
            node_port: it.node_port,
            endpoints: self.endpoints(&it.endpoints),
        });
        made.filter(|it| !it.endpoints.is_empty()).collect()
    }

    /// Host ports of the node's own pods: transport, port at the node, endpoint.
    fn host_ports(&self) -> Vec<(&'static str, u16, SocketAddr)> {
        let own = self.table.host_ports.iter().filter(|it| it.node == self.node);
        own.flat_map(|it| {
            let endpoints = self.endpoints(&it.endpoints);
            endpoints.into_iter().map(|endpoint| (keyword(it.transport), it.port, endpoint))
        })
        .collect()
    }

    /// The pods of all nodes.
    fn network(&self) -> &'static str {
        let [v4, v6] = POD_NETWORKS;
        if self.ipv6 { v6 } else { v4 }
    }

    /// The pods of the node.
    fn pods(&self) -> String {
        let [v4, v6] = self.plan.overlay();
        if self.ipv6 { format!("{v6}/64") } else { format!("{v4}/24") }
    }

    /// The node's address.
    fn node_address(&self) -> IpAddr {
        let [v4, v6] = self.plan.uplink();
        if self.ipv6 { v6 } else { v4 }
    }

    fn of_family(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| address.is_ipv6() == self.ipv6).collect()
    }

    fn endpoints(&self, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        endpoints.iter().copied().filter(|endpoint| endpoint.is_ipv6() == self.ipv6).collect()
    }
}

/// As rules of either form say it.
const fn keyword(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Icmp => "icmp",
    }
}

/// 16 hexadecimal digits (FNV-1a): kube-proxy takes as many of a SHA-256.
fn hash(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016X}")
}

#[cfg(test)]
mod tests;
