//! Layers: which module of the agent may name which, and which crates it must never name.
//!
//! The pipeline is the architecture: a kube look-up in `policy`, a map write in `cluster` or a clock in the compiler is
//! one line, and ends what can be tested without a kernel. The table below is that of ARCHITECTURE.md; the most specific
//! entry for a file holds. Tests (`tests.rs`, `mod tests`) may name what they like.

use super::Finding;
use super::source::Source;

/// What one module may do.
struct Layer {
    /// Workspace path of the file or directory, without `.rs`.
    path: &'static str,
    /// Paths under `crate::` that it may name, its own and its children's aside; `None` is everything.
    may_use: Option<&'static [&'static str]>,
    /// Paths it must not name, each with a reason in [`reason_of`].
    never: &'static [&'static str],
}

/// Whatever is pure has no I/O, clock, task or cluster client.
const IMPURE: &[&str] = &[
    "kube",
    "k8s_openapi",
    "aya",
    "tokio",
    "rtnetlink",
    "std::fs",
    "std::net::TcpStream",
    "std::time::Instant",
    "SystemTime",
    "std::env",
];

/// The values and pure stages of the datapath: everything between the compiler and the kernel.
const DATAPATH_VALUES: &[&str] =
    &["problem", "datapath::desired", "datapath::diff", "datapath::ids", "datapath::installed", "datapath::plan"];

const fn pure_datapath(path: &'static str) -> Layer {
    Layer { path, may_use: Some(DATAPATH_VALUES), never: IMPURE }
}

/// What decides about what the API server says, apart from what talks to it.
const fn pure_source(path: &'static str) -> Layer {
    Layer { path, may_use: Some(&["problem", "cluster", "source"]), never: IMPURE }
}

const LAYERS: &[Layer] = &[
    Layer { path: "netpol-common/src", may_use: None, never: &["std", "alloc", "aya"] },
    // Behind the feature `user`: conversions and `aya::Pod`, which must live with the types.
    Layer { path: "netpol-common/src/abi/address", may_use: None, never: &["alloc", "aya"] },
    Layer { path: "netpol-common/src/abi/pod", may_use: None, never: &["std", "alloc"] },
    // Behind the feature `user`: the tables as ordinary maps.
    Layer { path: "netpol-common/src/host", may_use: None, never: &["aya"] },
    Layer { path: "netpol-agent/src/cluster", may_use: Some(&["problem"]), never: IMPURE },
    Layer {
        path: "netpol-agent/src/policy",
        may_use: Some(&["cluster", "problem", "datapath::desired", "datapath::ids", "datapath::plan"]),
        never: IMPURE,
    },
    Layer {
        path: "netpol-agent/src/explain",
        may_use: Some(&["cluster", "policy", "datapath::desired", "datapath::ids"]),
        never: IMPURE,
    },
    pure_datapath("netpol-agent/src/datapath/apply"),
    pure_datapath("netpol-agent/src/datapath/desired"),
    pure_datapath("netpol-agent/src/datapath/diff"),
    pure_datapath("netpol-agent/src/datapath/ids"),
    pure_datapath("netpol-agent/src/datapath/installed"),
    pure_datapath("netpol-agent/src/datapath/plan"),
    // Looks, and changes nothing: no maps, no policies.
    Layer {
        path: "netpol-agent/src/preflight",
        may_use: Some(&["problem", "node", "datapath::nfnetlink", "cli", "flow::sink"]),
        never: &["kube", "k8s_openapi"],
    },
    Layer { path: "netpol-agent/src/datapath", may_use: Some(&["problem"]), never: &["kube", "k8s_openapi"] },
    Layer { path: "netpol-agent/src/node", may_use: Some(&["problem"]), never: &["kube", "k8s_openapi", "aya"] },
    pure_source("netpol-agent/src/source/kube/interner"),
    pure_source("netpol-agent/src/source/kube/ledger"),
    pure_source("netpol-agent/src/source/kube/wire"),
    Layer {
        path: "netpol-agent/src/source",
        may_use: Some(&["problem", "near", "cluster"]),
        never: &["aya", "rtnetlink"],
    },
    Layer { path: "netpol-agent/src/near", may_use: Some(&[]), never: IMPURE },
    Layer { path: "netpol-agent/src/observe/answer", may_use: Some(&["problem"]), never: IMPURE },
    Layer {
        path: "netpol-agent/src/observe/report",
        may_use: Some(&["cluster", "endpoints", "near", "observe", "policy", "problem"]),
        never: IMPURE,
    },
    Layer {
        path: "netpol-agent/src/observe/health",
        may_use: Some(&["observe::answer", "observe::http"]),
        never: &["kube", "aya"],
    },
    Layer { path: "netpol-agent/src/observe/http", may_use: Some(&[]), never: &["kube", "aya", "std::fs"] },
    // Reads maps by handles of its own, and never changes one.
    Layer {
        path: "netpol-agent/src/observe/metrics",
        may_use: Some(&[
            "cluster",
            "datapath::backstop",
            "datapath::desired",
            "datapath::figures",
            "datapath::store",
            "flow",
            "observe",
            "policy::Limits",
        ]),
        never: &["kube", "rtnetlink", "std::fs"],
    },
    Layer {
        path: "netpol-agent/src/observe/events_pod",
        may_use: Some(&["cluster", "flow", "problem"]),
        never: &["aya", "rtnetlink", "std::fs"],
    },
    Layer {
        path: "netpol-agent/src/observe/events_kube",
        may_use: Some(&["problem"]),
        never: &["aya", "rtnetlink", "std::fs"],
    },
    Layer {
        path: "netpol-agent/src/observe/export",
        may_use: Some(&["observe::hubble", "problem"]),
        never: &["kube", "k8s_openapi", "aya"],
    },
    // The client knows the agent by its answers only.
    Layer {
        path: "netpol-agent/src/client",
        may_use: Some(&["observe::admin", "observe::answer", "problem"]),
        never: &["aya", "rtnetlink"],
    },
    Layer {
        path: "netpol-agent/src/client/show",
        may_use: Some(&["client", "observe::answer", "problem"]),
        never: IMPURE,
    },
    Layer { path: "netpol-agent/src/client/table", may_use: Some(&[]), never: IMPURE },
    // It also judges manifests where there is no agent.
    Layer {
        path: "netpol-agent/src/client/explain",
        may_use: Some(&["client", "cluster", "explain", "observe::admin", "source"]),
        never: &["aya", "rtnetlink", "std::fs"],
    },
    Layer {
        path: "netpol-agent/src/flow",
        may_use: Some(&[
            "problem",
            "cluster",
            "policy::provenance",
            "policy::Provenance",
            "policy::Explanation",
            "policy::RuleReference",
        ]),
        never: &["kube", "k8s_openapi", "aya"],
    },
    Layer {
        path: "netpol-agent/src/observe/hubble",
        may_use: Some(&["cluster", "flow", "problem", "socket"]),
        never: &["kube", "k8s_openapi", "aya"],
    },
    Layer { path: "netpol-agent/src/socket", may_use: Some(&[]), never: &["kube", "k8s_openapi", "aya", "rtnetlink"] },
    Layer { path: "netpol-agent/src/observe/hubble/filter", may_use: Some(&["observe::hubble::proto"]), never: IMPURE },
    Layer {
        path: "netpol-agent/src/client/observe",
        may_use: Some(&["client::agents", "client::ask", "client::cli", "observe::hubble", "problem"]),
        never: &["aya", "rtnetlink"],
    },
];

/// A module without an entry (`pipeline`, `cli`, `main`) joins stages: it may name everything.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !is_test(&source.path)) {
        let module = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let holds = LAYERS.iter().filter(|layer| is_at_or_below(module, layer.path));
        if let Some(layer) = holds.max_by_key(|layer| layer.path.len()) {
            findings.extend(check_file(source, layer));
        }
    }
    findings
}

fn check_file(source: &Source, layer: &Layer) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |line, message| findings.push(Finding { path: source.path.clone(), line, message });
    let own = own_path(layer.path);
    for (line, path) in paths_of(without_tests(&source.code)) {
        if let Some(banned) = layer.never.iter().find(|banned| names(&path, banned)) {
            report(line, format!("names {banned}: {} must not ({})", layer.path, reason_of(banned)));
        }
        let path = absolute(&source.path, &path);
        let (Some(inner), Some(may_use)) = (path.strip_prefix("crate::"), layer.may_use) else { continue };
        let allowed = may_use.iter().chain([&own.as_str()]).any(|allowed| is_at_or_below_path(inner, allowed));
        if !allowed {
            report(line, format!("uses crate::{inner}: {} may use {}", layer.path, may_use.join(", ")));
        }
    }
    findings
}

fn reason_of(banned: &str) -> &'static str {
    match banned {
        "std" | "alloc" => "it is compiled into the BPF object",
        "aya" => "maps and programs are the loader's",
        "kube" | "k8s_openapi" => "objects are reduced to the model in `source`",
        "std::time::Instant" | "SystemTime" => "time comes as an argument",
        _ => "a pure stage has no input or output of its own",
    }
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.contains("/testing")
}

/// `mod tests` ends a file.
fn without_tests(code: &str) -> &str {
    code.find("\nmod tests {").and_then(|end| code.get(..end)).unwrap_or(code)
}

fn is_at_or_below(module: &str, path: &str) -> bool {
    module.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_at_or_below_path(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A path through `super` as one through `crate`, as seen from the top of a file.
fn absolute(file: &str, path: &str) -> String {
    let module = own_path(file.trim_end_matches(".rs"));
    let mut module: Vec<&str> = module.split("::").filter(|part| !matches!(*part, "mod" | "lib" | "main")).collect();
    let mut rest = path;
    while let Some(after) = rest.strip_prefix("super::") {
        module.pop();
        rest = after;
    }
    if rest.len() == path.len() {
        return path.to_owned();
    }
    ["crate"].into_iter().chain(module).chain([rest]).collect::<Vec<_>>().join("::")
}

/// `netpol-agent/src/datapath/diff` is `datapath::diff` in its crate.
fn own_path(path: &str) -> String {
    path.split_once("/src/").map_or("", |(_, inside)| inside).replace('/', "::")
}

/// A path that begins with the banned one, or has a banned type name in it.
fn names(path: &str, banned: &str) -> bool {
    is_at_or_below_path(path.trim_start_matches("::"), banned)
        || (banned.starts_with(char::is_uppercase) && path.split("::").any(|part| part == banned))
}

/// Every path with `::` in the code, groups of `use` spelled out, with its line.
fn paths_of(code: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut prefixes: Vec<String> = Vec::new();
    let mut current = String::new();
    let mut line = 1;
    let mut in_use = false;
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let taken = if word.is_empty() { c.len_utf8() } else { word.len() };
        if !word.is_empty() {
            in_use |= word == "use" && current.is_empty();
            if word == "as" || word == "use" || word == "pub" {
                current.clear();
            } else if current.is_empty() || current.ends_with("::") {
                current.push_str(&word);
            } else {
                current = word;
            }
        } else if rest.starts_with("::") {
            current.push_str("::");
            rest = rest.get(2..).unwrap_or_default();
            continue;
        } else {
            if in_use && c == '{' {
                let outer = prefixes.last().cloned().unwrap_or_default();
                prefixes.push(outer + &std::mem::take(&mut current));
            } else if !c.is_whitespace() {
                let prefix = if in_use { prefixes.last().map_or("", String::as_str) } else { "" };
                let path = format!("{prefix}{current}");
                if !current.is_empty() && path.contains("::") {
                    paths.push((line, path.trim_end_matches("::").to_owned()));
                }
                current.clear();
                match c {
                    '}' if in_use => drop(prefixes.pop()),
                    ';' => {
                        in_use = false;
                        prefixes.clear();
                    }
                    _ => {}
                }
            }
            line += usize::from(c == '\n');
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(&[Source::new(path, text)])
            .into_iter()
            .map(|finding| format!("{}: {}", finding.line, finding.message))
            .collect()
    }

    #[test]
    fn paths_are_read_through_groups_and_in_expressions() {
        let found: Vec<String> = paths_of("use crate::{a::{B, c::D}, e};\nfn f() { std::fs::read(x::y()) }")
            .into_iter()
            .map(|(_, path)| path)
            .collect();
        assert_eq!(found, ["crate::a::B", "crate::a::c::D", "crate::e", "std::fs::read", "x::y"]);
    }

    #[test]
    fn policy_may_use_the_cluster_and_neither_maps_nor_clients() {
        let good =
            "use crate::cluster::model::Pod;\nuse crate::policy::peers::Peer;\nuse crate::datapath::plan::Plan;\n";
        assert_eq!(messages("netpol-agent/src/policy/compile.rs", good), [""; 0]);
        assert_eq!(messages("netpol-agent/src/policy/compile.rs", "use crate::datapath::maps::Maps;\n").len(), 1);
        assert_eq!(
            messages("netpol-agent/src/policy/compile.rs", "use super::super::datapath::maps::Maps;\n").len(),
            1
        );
        assert_eq!(messages("netpol-agent/src/policy/compile.rs", "use super::peers::Peer;\n"), [""; 0]);
        assert_eq!(messages("netpol-agent/src/policy/mod.rs", "use kube::Client;\n").len(), 1);
        assert_eq!(messages("netpol-agent/src/policy/mod.rs", "\nfn f() { std::fs::read(p) }\n").len(), 1);
        assert_eq!(messages("netpol-agent/src/policy/mod.rs", "use std::time::SystemTime;\n").len(), 1);
    }

    #[test]
    fn comments_tests_and_wiring_are_free() {
        assert_eq!(messages("netpol-agent/src/policy/mod.rs", "// use kube::Client;\n"), [""; 0]);
        assert_eq!(messages("netpol-agent/src/policy/tests.rs", "use kube::Client;\n"), [""; 0]);
        assert_eq!(
            messages("netpol-agent/src/policy/mod.rs", "fn f() {}\nmod tests {\nuse kube::Client;\n}\n"),
            [""; 0]
        );
        assert_eq!(messages("netpol-agent/src/pipeline.rs", "use kube::Client;\nuse aya::Ebpf;\n"), [""; 0]);
    }

    #[test]
    fn what_goes_into_the_object_names_no_std() {
        assert_eq!(messages("netpol-common/src/packet.rs", "use std::net::IpAddr;\n").len(), 1);
        assert_eq!(messages("netpol-common/src/abi/pod.rs", "use aya::Pod;\n"), [""; 0]);
        assert_eq!(messages("netpol-common/src/host.rs", "use std::collections::BTreeMap;\n"), [""; 0]);
    }
}
