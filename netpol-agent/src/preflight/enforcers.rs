//! Who else enforces NetworkPolicy on the node, by what each leaves there.

use std::fs;
use std::path::Path;

use super::{Finding, Rules};

const CHECK: &str = "other enforcers";

/// One that is known, and how it is told.
struct Enforcer {
    name: &'static str,
    /// Prefixes of chains' names.
    chains: &'static [&'static str],
    /// Prefixes of nftables tables' names.
    tables: &'static [&'static str],
    /// Prefixes of interfaces' names.
    interfaces: &'static [&'static str],
    /// Places below the BPF file system.
    pins: &'static [&'static str],
    /// How it is taken away.
    advice: &'static str,
}

const KNOWN: &[Enforcer] = &[
    Enforcer {
        name: "Calico",
        chains: &["cali-"],
        tables: &["calico"],
        interfaces: &["cali"],
        pins: &["calico"],
        advice: "see deploy/README.md on canal: delete its DaemonSet, then its chains and interfaces go with a restart of the node",
    },
    Enforcer {
        name: "Cilium",
        chains: &["CILIUM_"],
        tables: &[],
        interfaces: &["cilium_", "lxc_health"],
        pins: &["cilium", "tc/globals/cilium_policy"],
        advice: "netpol is for Flannel: uninstall one of the two (`cilium uninstall`)",
    },
    Enforcer {
        name: "kube-router",
        chains: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        tables: &[],
        interfaces: &[],
        pins: &[],
        advice: "k3s: start servers with --disable-network-policy; then, on each node, k3s-killall.sh or a restart takes its chains away",
    },
    Enforcer {
        name: "kube-network-policies",
        chains: &[],
        tables: &["kube-network-policies", "kindnet-network-policies"],
        interfaces: &[],
        pins: &[],
        advice: "Flannel's chart: netpol.enabled=false; Talos: kubeNetworkPoliciesEnabled: false",
    },
    Enforcer {
        name: "Weave Net",
        chains: &["WEAVE-NPC"],
        tables: &[],
        interfaces: &[],
        pins: &[],
        advice: "netpol is for Flannel: remove Weave Net (`weave reset` on each node)",
    },
    Enforcer {
        name: "Antrea",
        chains: &["ANTREA-"],
        tables: &["antrea"],
        interfaces: &["antrea-gw"],
        pins: &[],
        advice: "netpol is for Flannel: remove one of the two",
    },
    Enforcer {
        name: "AWS network policy agent",
        chains: &[],
        tables: &[],
        interfaces: &[],
        pins: &["globals/aws"],
        advice: "turn it off in the VPC CNI's add-on (enableNetworkPolicy: false)",
    },
];

pub(super) fn check(rules: &Rules, proc: &Path, bpffs: &Path) -> Vec<Finding> {
    let interfaces = interfaces(proc);
    let mut findings: Vec<Finding> = Vec::new();
    for enforcer in KNOWN {
        let mut traces = Vec::new();
        if let Ok(rules) = rules {
            traces.extend(first("chain", rules.chains.iter(), enforcer.chains));
            traces.extend(first("nftables table", rules.tables.iter(), enforcer.tables));
        }
        traces.extend(first("interface", interfaces.iter(), enforcer.interfaces));
        let pins = enforcer.pins.iter().map(|pin| bpffs.join(pin));
        traces.extend(pins.filter(|pin| pin.exists()).map(|pin| pin.display().to_string()));
        if !traces.is_empty() {
            let found =
                format!("{} has been here ({}); what either refuses does not pass", enforcer.name, traces.join(", "));
            findings.push(Finding::note(CHECK, found, enforcer.advice));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "none has left anything here"));
    }
    findings
}

/// The first name that begins with one of the prefixes.
fn first<'a>(what: &str, mut names: impl Iterator<Item = &'a String>, prefixes: &[&str]) -> Option<String> {
    let found = names.find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))?;
    Some(format!("{what} {found}"))
}

/// Of this network namespace.
fn interfaces(proc: &Path) -> Vec<String> {
    let text = fs::read_to_string(proc.join("self/net/dev")).unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Standing;
    use crate::preflight::netfilter::Ruleset;

    #[test]
    fn each_is_told_by_its_traces_and_kube_proxy_by_none() {
        let found = |chain: &str, table: &str| {
            let set = |name: &str| [name.to_owned()].into_iter().filter(|it| !it.is_empty()).collect();
            let rules = Ok(Ruleset { chains: set(chain), tables: set(table), ..Ruleset::default() });
            let nowhere = Path::new("/nonexistent");
            let noted = check(&rules, nowhere, nowhere).into_iter().filter(|it| it.standing == Standing::Note);
            noted.map(|it| it.found.split(" has").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("cali-FORWARD", ""), ["Calico"]);
        assert_eq!(found("KUBE-ROUTER-INPUT", ""), ["kube-router"]);
        assert_eq!(found("KUBE-POD-FW-ABC", ""), ["kube-router"]);
        assert_eq!(found("", "kube-network-policies"), ["kube-network-policies"]);
        assert_eq!(found("CILIUM_INPUT", "antrea"), ["Cilium", "Antrea"]);
        assert_eq!(found("KUBE-SERVICES", "kube-proxy"), [""; 0]);
        assert_eq!(found("FLANNEL-POSTRTG", "netpol"), [""; 0]);
    }

    #[test]
    fn interfaces_and_pins_are_traces_too() {
        let root = std::env::temp_dir().join(format!("netpol-enforcers-{}", std::process::id()));
        let (proc, bpffs) = (root.join("proc"), root.join("bpf"));
        fs::create_dir_all(proc.join("self/net")).unwrap();
        fs::create_dir_all(bpffs.join("globals/aws")).unwrap();
        fs::write(proc.join("self/net/dev"), "Inter-| Receive\n face |bytes\n  eth0: 1 2\ncilium_host: 0 0\n").unwrap();
        let found = check(&Ok(Ruleset::default()), &proc, &bpffs);
        fs::remove_dir_all(&root).unwrap();
        let found: Vec<&str> = found.iter().map(|it| it.found.as_str()).collect();
        assert!(
            matches!(found.as_slice(), [cilium, aws] if cilium.contains("cilium_host") && aws.starts_with("AWS")),
            "{found:?}"
        );
    }
}
