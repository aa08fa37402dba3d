//! Who translates services' addresses on the node, and how.

use std::fs;
use std::path::Path;

use super::netfilter::legacy_tables;
use super::{Finding, Rules};

const CHECK: &str = "kube-proxy";

pub(super) fn check(rules: &Rules, proc: &Path) -> Finding {
    let chain = |name: &str| rules.as_ref().is_ok_and(|it| it.chains.contains(name));
    let table = |name: &str| rules.as_ref().is_ok_and(|it| it.tables.contains(name));
    if has_virtual_servers(proc) {
        return Finding::note(
            CHECK,
            "it is in ipvs mode",
            "netpol is not tested with it; set mode: nftables (or iptables) in kube-proxy's configuration",
        );
    }
    if table("kube-proxy") {
        return Finding::ok(CHECK, "it is in nftables mode");
    }
    if chain("KUBE-SERVICES") {
        return Finding::ok(CHECK, "it is in iptables mode");
    }
    if legacy_tables(proc).iter().any(|table| table == "nat") {
        return Finding::ok(
            CHECK,
            "iptables-legacy translates addresses (its chains are not read): iptables mode, as it seems",
        );
    }
    Finding::note(
        CHECK,
        "no rules of it are in this network namespace",
        "if the cluster has services, egress policy needs kube-proxy (nftables or iptables mode) on this node: one that \
         translates in sockets or in BPF programs of its own is not seen through",
    )
}

/// `/proc/net/ip_vs` lists a service a line, below three lines of headings.
fn has_virtual_servers(proc: &Path) -> bool {
    fs::read_to_string(proc.join("net/ip_vs")).is_ok_and(|text| text.lines().count() > 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Standing;
    use crate::preflight::netfilter::Ruleset;

    #[test]
    fn the_mode_is_told_by_what_it_leaves() {
        let nowhere = Path::new("/nonexistent");
        let names = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        let nftables = Ok(Ruleset { tables: names(&["kube-proxy"]), ..Ruleset::default() });
        let iptables = Ok(Ruleset { tables: names(&["nat"]), chains: names(&["KUBE-SERVICES"]), ..Ruleset::default() });
        assert!(check(&nftables, nowhere).found.contains("nftables"));
        assert!(check(&iptables, nowhere).found.contains("iptables"));
        assert_eq!(check(&Ok(Ruleset::default()), nowhere).standing, Standing::Note);
    }
}
