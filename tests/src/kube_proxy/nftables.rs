//! Rules as `nft -f` reads them: the tables `kube-proxy`, `cni_hostport` and `flannel` of a node, in one family.
//!
//! Each table is replaced in one transaction. Chains, maps and their names are kube-proxy's, portmap's and flanneld's own.

use super::{MASQUERADE_MARK, Translation, View, hash};

/// A table in the making.
struct Tables {
    family: &'static str,
    text: String,
}

impl Tables {
    fn begin(&mut self, name: &str) {
        let family = self.family;
        // Named first, so that there is one to delete.
        self.line(&format!("add table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{"));
    }

    fn line(&mut self, text: &str) {
        self.text += text;
        self.text += "\n";
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        self.line(&format!("chain {name} {{\n{}\n}}", rules.join("\n")));
    }

    fn hook(&mut self, hook: &str, priority: i32, rules: &[String]) {
        let kind = format!("type nat hook {hook} priority {priority}; policy accept;");
        self.chain(&format!("nat-{hook}"), &[&[kind], rules].concat());
    }

    /// A verdict map, which must not be declared with an empty list of elements.
    fn map(&mut self, name: &str, key: &str, elements: &[String]) {
        let list =
            if elements.is_empty() { String::new() } else { format!("elements = {{ {} }}", elements.join(", ")) };
        self.line(&format!("map {name} {{\ntype {key} : verdict\n{list}\n}}"));
    }
}

/// The tables of one node and family.
pub(super) fn rules(view: &View<'_>) -> String {
    let family = if view.ipv6 { "ip6" } else { "ip" };
    let mut tables = Tables { family, text: String::new() };
    kube_proxy(&mut tables, view);
    host_ports(&mut tables, view);
    if view.flannel {
        flannel(&mut tables, view);
    }
    tables.text
}

fn kube_proxy(tables: &mut Tables, view: &View<'_>) {
    let family = tables.family;
    let address = if view.ipv6 { "ipv6_addr" } else { "ipv4_addr" };
    let mark = MASQUERADE_MARK;
    let services = view.services();
    tables.begin("kube-proxy");
    tables.chain("mark-for-masquerade", &[format!("meta mark set meta mark | {mark}")]);
    let finish = [
        format!("meta mark & {mark} == 0 return"),
        format!("meta mark set meta mark ^ {mark}"),
        "masquerade fully-random".to_owned(),
    ];
    tables.chain("masquerading", &finish);
    for service in &services {
        add_service(tables, view, service);
    }
    let (addresses, node_ports) = elements(&services);
    tables.map("service-ips", &format!("{address} . inet_proto . inet_service"), &addresses);
    tables.map("service-nodeports", "inet_proto . inet_service", &node_ports);
    tables.line(&format!("set nodeport-ips {{\ntype {address}\nelements = {{ {} }}\n}}", view.node_address()));
    let look_up = [
        format!("{family} daddr . meta l4proto . th dport vmap @service-ips"),
        format!("{family} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports"),
    ];
    tables.chain("services", &look_up);
    tables.hook("prerouting", -100, &["jump services".to_owned()]);
    tables.hook("output", -100, &["jump services".to_owned()]);
    tables.hook("postrouting", 100, &["jump masquerading".to_owned()]);
    tables.line("}");
}

/// Elements of the map of addresses, and of the map of node ports.
fn elements(services: &[Translation<'_>]) -> (Vec<String>, Vec<String>) {
    let mut addresses = Vec::new();
    let mut node_ports = Vec::new();
    for Translation { hash, transport, port, cluster, external, node_port, .. } in services {
        addresses.extend(cluster.iter().map(|ip| format!("{ip} . {transport} . {port} : goto service-{hash}")));
        addresses.extend(external.iter().map(|ip| format!("{ip} . {transport} . {port} : goto external-{hash}")));
        node_ports.extend(node_port.iter().map(|port| format!("{transport} . {port} : goto external-{hash}")));
    }
    (addresses, node_ports)
}

fn add_service(tables: &mut Tables, view: &View<'_>, service: &Translation<'_>) {
    let (family, network) = (tables.family, view.network());
    let Translation { hash: id, transport, port, .. } = service;
    let mut choices = Vec::new();
    for (number, endpoint) in service.endpoints.iter().enumerate() {
        let own = format!("endpoint-{}", hash(&format!("{} {endpoint}", service.name)));
        let rules = [
            format!("{family} saddr {} jump mark-for-masquerade", endpoint.ip()),
            format!("meta l4proto {transport} dnat to {endpoint}"),
        ];
        tables.chain(&own, &rules);
        choices.push(format!("{number} : goto {own}"));
    }
    let mut rules: Vec<String> = service
        .cluster
        .iter()
        .filter(|_| view.cluster_cidr)
        .map(|ip| {
            format!("{family} daddr {ip} {transport} dport {port} {family} saddr != {network} jump mark-for-masquerade")
        })
        .collect();
    rules.push(format!("numgen random mod {} vmap {{ {} }}", choices.len(), choices.join(", ")));
    tables.chain(&format!("service-{id}"), &rules);
    tables.chain(&format!("external-{id}"), &["jump mark-for-masquerade".to_owned(), format!("goto service-{id}")]);
}

fn host_ports(tables: &mut Tables, view: &View<'_>) {
    let family = tables.family;
    let translate: Vec<String> = view
        .host_ports()
        .iter()
        .map(|(transport, port, endpoint)| format!("{transport} dport {port} dnat to {endpoint}"))
        .collect();
    // A pod to itself; with other pods of the node portmap does nothing in this form.
    let hairpin: Vec<String> = view
        .host_ports()
        .iter()
        .map(|(_, _, endpoint)| format!("{family} saddr {0} {family} daddr {0} masquerade", endpoint.ip()))
        .collect();
    tables.begin("cni_hostport");
    tables.chain("hostports", &translate);
    let local = ["fib daddr type local jump hostports".to_owned()];
    tables.hook("prerouting", -100, &local);
    tables.hook("output", -100, &local);
    tables.hook("postrouting", 100, &hairpin);
    tables.line("}");
}

fn flannel(tables: &mut Tables, view: &View<'_>) {
    let (family, network, pods) = (tables.family, view.network(), view.pods());
    let multicast = if view.ipv6 { "ff00::/8" } else { "224.0.0.0/4" };
    tables.begin(if view.ipv6 { "flannel-ipv6" } else { "flannel-ipv4" });
    let rules = [
        format!("meta mark & {MASQUERADE_MARK} == {MASQUERADE_MARK} return"),
        format!("{family} saddr {pods} {family} daddr {network} return"),
        format!("{family} saddr {network} {family} daddr {pods} return"),
        format!("{family} saddr != {network} {family} daddr {pods} return"),
        format!("{family} saddr {network} {family} daddr != {multicast} masquerade fully-random"),
        format!("{family} saddr != {network} {family} daddr {network} masquerade fully-random"),
    ];
    tables.hook("postrouting", 100, &rules);
    tables.line("}");
}
