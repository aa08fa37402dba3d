//! Rules as `iptables-restore` and `ip6tables-restore` read them: the whole `nat` table of a node.
//!
//! Chains and their order are kube-proxy's, portmap's and flanneld's own; comments are left out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{MASQUERADE_MARK, Translation, View, hash};

/// portmap's mark on packets that are to be masqueraded.
const PORTMAP_MARK: &str = "0x2000/0x2000";

/// The table in the making.
#[derive(Default)]
struct Nat {
    chains: BTreeSet<String>,
    rules: Vec<String>,
}

impl Nat {
    /// Appends a rule, `chain` first; the chain comes into being with it.
    fn add(&mut self, chain: &str, rule: &str) {
        self.chains.insert(chain.to_owned());
        self.rules.push(format!("-A {chain} {rule}"));
    }

    fn text(&self) -> String {
        let mut text = "*nat\n".to_owned();
        for chain in &self.chains {
            let built_in = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"].contains(&chain.as_str());
            // Writing to a String cannot fail.
            let _ok = writeln!(text, ":{chain} {} [0:0]", if built_in { "ACCEPT" } else { "-" });
        }
        for rule in &self.rules {
            text += rule;
            text += "\n";
        }
        text + "COMMIT\n"
    }
}

/// The table of one node and family.
pub(super) fn rules(view: &View<'_>) -> String {
    let mut nat = Nat::default();
    entries(&mut nat);
    for service in view.services() {
        add_service(&mut nat, view, &service);
    }
    // Last, as in kube-proxy: whatever is no service's address may be a node port.
    nat.add("KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
    add_host_ports(&mut nat, view);
    if view.flannel {
        add_flannel(&mut nat, view);
    }
    nat.text()
}

fn entries(nat: &mut Nat) {
    nat.chains.extend(["KUBE-NODEPORTS".to_owned(), "CNI-HOSTPORT-DNAT".to_owned()]);
    for chain in ["PREROUTING", "OUTPUT"] {
        nat.add(chain, "-j KUBE-SERVICES");
        nat.add(chain, "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT");
    }
    nat.add("POSTROUTING", "-j CNI-HOSTPORT-MASQ");
    nat.add("POSTROUTING", "-j KUBE-POSTROUTING");
    nat.add("KUBE-MARK-MASQ", &format!("-j MARK --or-mark {MASQUERADE_MARK}"));
    nat.add("KUBE-POSTROUTING", &format!("-m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN"));
    nat.add("KUBE-POSTROUTING", &format!("-j MARK --xor-mark {MASQUERADE_MARK}"));
    nat.add("KUBE-POSTROUTING", "-j MASQUERADE --random-fully");
    nat.add("CNI-HOSTPORT-SETMARK", &format!("-j MARK --set-xmark {PORTMAP_MARK}"));
    nat.add("CNI-HOSTPORT-MASQ", &format!("-m mark --mark {PORTMAP_MARK} -j MASQUERADE"));
}

fn add_service(nat: &mut Nat, view: &View<'_>, service: &Translation<'_>) {
    let Translation { hash: id, transport, port, .. } = service;
    let (chain, external) = (format!("KUBE-SVC-{id}"), format!("KUBE-EXT-{id}"));
    for ip in &service.cluster {
        let matches = format!("-d {ip} -p {transport} -m {transport} --dport {port}");
        nat.add("KUBE-SERVICES", &format!("{matches} -j {chain}"));
        if view.cluster_cidr {
            nat.add(&chain, &format!("! -s {} {matches} -j KUBE-MARK-MASQ", view.network()));
        }
    }
    if service.node_port.is_some() || !service.external.is_empty() {
        nat.add(&external, "-j KUBE-MARK-MASQ");
        nat.add(&external, &format!("-j {chain}"));
    }
    for ip in &service.external {
        let matches = format!("-d {ip} -p {transport} -m {transport} --dport {port}");
        nat.add("KUBE-SERVICES", &format!("{matches} -j {external}"));
    }
    if let Some(port) = service.node_port {
        nat.add("KUBE-NODEPORTS", &format!("-p {transport} -m {transport} --dport {port} -j {external}"));
    }
    for (left, endpoint) in (1..=service.endpoints.len()).rev().zip(&service.endpoints) {
        let own = format!("KUBE-SEP-{}", hash(&format!("{} {endpoint}", service.name)));
        let choice = if left > 1 {
            format!("-m statistic --mode random --probability {:.10} ", 1.0 / count(left))
        } else {
            String::new()
        };
        nat.add(&chain, &format!("{choice}-j {own}"));
        nat.add(&own, &format!("-s {} -j KUBE-MARK-MASQ", endpoint.ip()));
        nat.add(&own, &format!("-p {transport} -m {transport} -j DNAT --to-destination {endpoint}"));
    }
}

/// Exact for as many endpoints as a service of a test can have.
fn count(endpoints: usize) -> f64 {
    u32::try_from(endpoints).map_or(f64::INFINITY, f64::from)
}

fn add_host_ports(nat: &mut Nat, view: &View<'_>) {
    for (transport, port, endpoint) in view.host_ports() {
        let chain = format!("CNI-DN-{}", hash(&format!("{transport} {port} {endpoint}")));
        let matches = format!("-p {transport} -m {transport} --dport {port}");
        nat.add("CNI-HOSTPORT-DNAT", &format!("{matches} -j {chain}"));
        // The pod's network is the node's: every pod of the node is masqueraded on its way to a host port.
        nat.add(&chain, &format!("-s {} {matches} -j CNI-HOSTPORT-SETMARK", view.pods()));
        nat.add(&chain, &format!("{matches} -j DNAT --to-destination {endpoint}"));
    }
}

fn add_flannel(nat: &mut Nat, view: &View<'_>) {
    let (network, pods) = (view.network(), view.pods());
    let multicast = if view.ipv6 { "ff00::/8" } else { "224.0.0.0/4" };
    let chain = "FLANNEL-POSTRTG";
    nat.add("POSTROUTING", &format!("-j {chain}"));
    nat.add(chain, &format!("-m mark --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN"));
    nat.add(chain, &format!("-s {pods} -d {network} -j RETURN"));
    nat.add(chain, &format!("-s {network} -d {pods} -j RETURN"));
    nat.add(chain, &format!("! -s {network} -d {pods} -j RETURN"));
    nat.add(chain, &format!("-s {network} ! -d {multicast} -j MASQUERADE --random-fully"));
    nat.add(chain, &format!("! -s {network} -d {network} -j MASQUERADE --random-fully"));
}
