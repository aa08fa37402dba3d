//! Flags of `netpol`: what is typed, its help and its checks. Start at [`Cli`].

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::explain::ExplainArgs;

/// Everything is in order.
pub const EXIT_OK: u8 = 0;
/// Nobody could be asked, or there is no such policy.
pub const EXIT_FAILURE: u8 = 1;
/// What was typed cannot be understood; clap's, too.
pub const EXIT_USAGE: u8 = 2;
/// Some agent has not enforced everything (yet).
pub const EXIT_NOT_SETTLED: u8 = 4;
/// Some agents did not answer; what the others said was printed.
pub const EXIT_NO_ANSWER: u8 = 5;

/// Where the agent's socket is.
pub const SOCKET: &str = "/run/netpol/netpol.sock";

const AFTER_HELP: &str = "\
Examples:
  netpol status                                  how the agent of this node fares
  netpol status --wait --timeout 30s             wait until all of it is enforced
  netpol policy show production/database-access  rules as enforced, pods, problems
  netpol explain shop/web shop/api:8080          why it is allowed or denied, and what would allow it
  kubectl netpol status --wait                   after `kubectl apply`, on every node
  kubectl netpol endpoints -n production         which pods are isolated, by what

On a node it asks the agent's socket (as root). Anywhere else, or as `kubectl netpol` (call the binary kubectl-netpol), it \
asks all agents through the API server, which needs `list` on pods, and `create` and `get` on \
pods/exec, in the agents' namespace.

Exit codes: 0 all well; 1 nobody could be asked, or no such policy; 2 wrong usage; 4 not everything is enforced (yet); \
5 some agents did not answer, the others' answers were printed. `explain` has its own: see `netpol explain --help`.";

/// Says what netpol enforces, where, and what not.
#[derive(Debug, Parser)]
#[command(name = "netpol", version, max_term_width = 110, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Whom to ask.
    #[command(flatten)]
    pub place: Place,

    /// How answers are printed. JSON is {"nodes": [{"node": ..., "answer": ...} or {"node": ..., "error": ...}]}; fields
    /// are added over time and never removed.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Output,
}

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Whom to ask")]
pub struct Place {
    /// The agent's socket; asks that agent only. [default: /run/netpol/netpol.sock]
    #[arg(long, value_name = "PATH", env = "NETPOL_SOCKET", global = true)]
    pub socket: Option<PathBuf>,

    /// Ask the agent of this machine only, never the API server.
    #[arg(long, global = true, conflicts_with_all = ["all_nodes", "node", "kubeconfig", "context"])]
    pub local: bool,

    /// Ask the agents of all nodes, also where there is one on this machine.
    #[arg(short = 'A', long, global = true)]
    pub all_nodes: bool,

    /// Ask the agents of these nodes only; may be repeated.
    #[arg(long, value_name = "NAME", value_delimiter = ',', global = true)]
    pub node: Vec<String>,

    /// Kubeconfig of the cluster to ask. [default: $KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,

    /// Namespace that the agents run in.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", global = true)]
    pub agent_namespace: String,

    /// True if called as `kubectl netpol`.
    #[arg(skip)]
    pub plugin: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How the agents fare: pods, policies, problems, and whether everything is enforced.
    ///
    /// STATE is `enforced` if all that the agent knows of is in the kernel; `applying` if something is not; `finding pods` if
    /// the interface of some pod is still looked for; `starting` before the agent has seen the whole cluster (what was
    /// enforced before its start stays so).
    Status {
        /// Wait until everything is enforced.
        ///
        /// On a node: all that the agent has taken in; manifests are read first. From outside: also each NetworkPolicy in
        /// the version that the API server has now, and none that it has no more, on every node. Pods and labels that
        /// changed a moment ago are not waited for.
        #[arg(long)]
        wait: bool,

        /// How long to wait, as 90s, 2m or 1m30s.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, requires = "wait")]
        timeout: Duration,
    },
    /// Flows: what was dropped, why and by which policies. Has Hubble's flags; see `netpol observe --help`.
    #[command(disable_help_flag = true)]
    Observe {
        /// Its flags.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// The pods of each node: addresses, interface, and which policies isolate them.
    ///
    /// INGRESS and EGRESS name the policies that isolate the pod in that direction; `open` is a pod that none isolates.
    /// STATE is `enforced`; `pending` while it is not known whose interface this is, which is held at default deny then; or
    /// `failed`, and `netpol status` says why.
    #[command(visible_alias = "ep")]
    Endpoints {
        /// Pods of this namespace only.
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<String>,
    },
    /// NetworkPolicies as the agents know them.
    #[command(visible_alias = "policies", arg_required_else_help = true)]
    Policy {
        /// What to do.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Take netpol off this node, or off all nodes (-A), before it is uninstalled.
    ///
    /// Each agent removes its CNI configuration and plugin, programs, maps and firewall table, and does nothing more until its
    /// pod is deleted; traffic is no longer policed. Delete the DaemonSet next: an agent that is started again begins anew.
    Cleanup {
        /// Yes, policies shall no longer be enforced.
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Why SRC reaches DST, or what stops it and what would let it through.
    ///
    /// Exit codes: 0 all of it is allowed, 1 there is no answer, 2 wrong usage, 4 something is denied, 6 the compiler and the naive judge that
    /// every answer is checked with disagree.
    Explain(ExplainArgs),
    /// Print a completion script for a shell, e.g. `netpol completions bash > /etc/bash_completion.d/netpol`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What to say of policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// All policies: directions, pods that they select, problems.
    #[command(visible_alias = "ls")]
    List {
        /// Policies of this namespace only.
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<String>,
    },
    /// One policy: its rules as enforced, how many peers they reach, the pods that it selects, and what is wrong with it.
    Show {
        /// The policy; without a namespace that of `default`.
        #[arg(value_name = "NAMESPACE/NAME", value_parser = policy_name)]
        policy: PolicyName,
    },
}

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
}

fn policy_name(text: &str) -> Result<PolicyName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err("give NAMESPACE/NAME, as production/database-access".to_owned());
    }
    Ok(PolicyName { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Durations as `kubectl` takes them: `90s`, `1m30s`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a duration as 90s, 2m or 1m30s".to_owned();
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(u64::from(seconds)));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let number: u32 = number.parse().map_err(|_no_number| wrong())?;
        let units = [("ms", Duration::from_millis(1)), ("s", Duration::from_secs(1)), ("m", Duration::from_secs(60))];
        let units = units.into_iter().chain([("h", Duration::from_secs(3600))]);
        let (unit, length) = units.into_iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(wrong)?;
        total = length.checked_mul(number).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
        rest = after.strip_prefix(unit).unwrap_or_default();
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_kubectl_reads_them() {
        for (text, seconds) in [("90s", 90), ("2m", 120), ("1m30s", 90), ("1h", 3600), ("15", 15), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("1s500ms"), Ok(Duration::from_millis(1500)));
        for text in ["", "s", "5x", "-1s", "1.5s", "5s5", "99999999999h", "4294967295h4294967295h"] {
            assert!(duration(text).is_err() || text.starts_with("4294967295h"), "{text}");
        }
    }

    #[test]
    fn a_policy_is_named_with_its_namespace() {
        assert_eq!(policy_name("a/b").unwrap().to_string(), "a/b");
        assert_eq!(policy_name("b").unwrap().to_string(), "default/b");
        for text in ["", "/", "a/", "/b", "a/b/c"] {
            assert!(policy_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn asking_this_machine_only_excludes_asking_the_cluster() {
        for flags in [vec!["--all-nodes"], vec!["--node", "a"], vec!["--context", "x"]] {
            let arguments = ["netpol", "status", "--local"].into_iter().chain(flags.iter().copied());
            assert!(Cli::try_parse_from(arguments).is_err(), "{flags:?}");
        }
        assert!(Cli::try_parse_from(["netpol", "status", "--timeout", "5s"]).is_err(), "a timeout of nothing");
    }
}
