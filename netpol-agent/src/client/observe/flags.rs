//! Flags of `netpol observe`: those of `hubble observe`, and ours. Start at [`command`].

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches as _, ValueEnum};

/// The hidden flag that ends us with our caller: an API server tells of its going in no other way.
pub const UNTIL_STDIN_ENDS: &str = "until-stdin-ends";

/// Where the agent serves flows.
pub const SOCKET: &str = "/run/netpol/hubble.sock";

/// How flows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line a flow.
    #[default]
    Compact,
    /// A block of KEY: VALUE lines a flow.
    Dict,
    /// One JSON object a line: GetFlowsResponse in proto3's JSON mapping.
    Jsonpb,
    /// The same as jsonpb.
    #[value(alias = "JSON")]
    Json,
    /// Columns; not with --follow.
    #[value(alias = "tab")]
    Table,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Everything but the filters, whose order counts.
#[derive(Clone, Debug, Args)]
pub struct Flags {
    /// All flows that the agent keeps.
    #[arg(long, help_heading = "Which flows", conflicts_with_all = ["first", "last"])]
    pub all: bool,
    /// The last N flows (of each node) [default: 20].
    #[arg(long, value_name = "N", help_heading = "Which flows", default_value_t = 0, hide_default_value = true)]
    pub last: u64,
    /// The first N flows (of each node).
    #[arg(long, value_name = "N", help_heading = "Which flows", default_value_t = 0, hide_default_value = true)]
    pub first: u64,
    /// Flows as they come.
    #[arg(short, long, help_heading = "Which flows")]
    pub follow: bool,
    /// Flows since then: 3s, 4m, 1h43m ago, or 2006-01-02, 2006-01-02T15:04Z, RFC 3339, RFC 1123.
    #[arg(long, value_name = "TIME", help_heading = "Which flows", default_value = "", hide_default_value = true)]
    pub since: String,
    /// Flows until then.
    #[arg(long, value_name = "TIME", help_heading = "Which flows", default_value = "", hide_default_value = true)]
    pub until: String,
    /// A filter as JSON (FlowFilter), for flows to show; may be repeated.
    #[arg(long, value_name = "JSON", help_heading = "Which flows")]
    pub allowlist: Vec<String>,
    /// A filter as JSON, for flows to hide; may be repeated.
    #[arg(long, value_name = "JSON", help_heading = "Which flows")]
    pub denylist: Vec<String>,
    /// Print the filters and end.
    #[arg(long, help_heading = "Which flows")]
    pub print_raw_filters: bool,

    /// How flows are printed.
    #[arg(short, long, value_enum, default_value_t, help_heading = "How they are printed")]
    pub output: Output,
    /// A live table of who is dropped by what, how often, in place of the flows.
    #[arg(long, help_heading = "How they are printed", conflicts_with = "output")]
    pub summary: bool,
    /// The node of each flow.
    #[arg(long, help_heading = "How they are printed")]
    pub print_node_name: bool,
    /// The policies behind each verdict.
    #[arg(long, help_heading = "How they are printed")]
    pub print_policy_names: bool,
    /// Addresses and numbers only.
    #[arg(long, help_heading = "How they are printed")]
    pub numeric: bool,
    /// Names in place of addresses.
    #[arg(long, help_heading = "How they are printed", default_value_t = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ip_translation: bool,
    /// When to use colours.
    #[arg(long, visible_alias = "colour", value_enum, default_value_t, help_heading = "How they are printed")]
    pub color: Colour,
    /// StampMilli, YearMonthDay, YearMonthDayHour, YearMonthDayHourMinute, RFC3339, RFC3339Milli, RFC3339Micro,
    /// RFC3339Nano or RFC1123Z; times are UTC.
    #[arg(long, value_name = "NAME", help_heading = "How they are printed", default_value = "StampMilli")]
    pub time_format: String,
    /// Fields to ask for, with -o jsonpb.
    #[arg(long, value_name = "FIELDS", value_delimiter = ',', help_heading = "How they are printed")]
    pub field_mask: Vec<String>,
    /// Ask for the visible fields only (taken for Hubble's sake: our server sends them all).
    #[arg(long, hide = true, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub use_default_field_masks: bool,
    /// No errors and warnings about nodes.
    #[arg(short, long, help_heading = "How they are printed")]
    pub silent_errors: bool,
    /// Also what else nodes say of themselves.
    #[arg(short = 'D', long, help_heading = "How they are printed")]
    pub debug: bool,

    /// Read flows from this file (`-` is standard input) as -o jsonpb has written them.
    #[arg(long, value_name = "FILE", help_heading = "Whom to ask")]
    pub input_file: Option<PathBuf>,
    /// Ask this server: unix:///PATH, HOST:PORT or tls://HOST:PORT.
    #[arg(long, value_name = "ADDRESS", env = "HUBBLE_SERVER", help_heading = "Whom to ask")]
    pub server: Option<String>,
    /// Ask the agent behind this socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET, help_heading = "Whom to ask")]
    pub socket: PathBuf,
    /// Ask the agent of this machine only, never the API server.
    #[arg(long, help_heading = "Whom to ask", conflicts_with_all = ["all_nodes", "server"])]
    pub local: bool,
    /// Ask the agents of all nodes through the API server, also where there is one on this machine.
    #[arg(long, help_heading = "Whom to ask", conflicts_with = "server")]
    pub all_nodes: bool,
    /// Kubeconfig of the cluster to ask.
    #[arg(long, value_name = "FILE", help_heading = "Whom to ask")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME", help_heading = "Whom to ask")]
    pub context: Option<String>,
    /// Namespace that the agents run in.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", help_heading = "Whom to ask")]
    pub agent_namespace: String,
    /// End with standard input.
    #[arg(long = UNTIL_STDIN_ENDS, hide = true)]
    pub until_stdin_ends: bool,
    /// TLS to --server.
    #[arg(long, help_heading = "Whom to ask")]
    pub tls: bool,
    /// PEM files of authorities that the server's certificate may be of [default: those of this system].
    #[arg(long, value_name = "FILES", value_delimiter = ',', help_heading = "Whom to ask")]
    pub tls_ca_cert_files: Vec<PathBuf>,
    /// PEM file of our certificate.
    #[arg(long, value_name = "FILE", requires = "tls_client_key_file", help_heading = "Whom to ask")]
    pub tls_client_cert_file: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, value_name = "FILE", requires = "tls_client_cert_file", help_heading = "Whom to ask")]
    pub tls_client_key_file: Option<PathBuf>,
    /// Name that the server's certificate must have.
    #[arg(long, value_name = "NAME", help_heading = "Whom to ask")]
    pub tls_server_name: Option<String>,
}

/// One filter flag: name, short name, what stands for a missing value (none: it must have one), help.
type FilterFlag = (&'static str, Option<char>, Option<&'static str>, &'static str);

/// Hubble's filter flags.
const FILTERS: [FilterFlag; 57] = [
    ("not", None, Some("true"), "Turn the next filter around: hide what it matches"),
    ("uuid", None, None, "The flow with this identifier"),
    ("node-name", None, None, "Of these nodes (e.g. \"k8s*\", \"cluster/*.example.com\")"),
    ("node-label", None, None, "Of nodes with this label"),
    ("from-cluster", None, None, "From endpoints of this cluster"),
    ("cluster", None, None, "From or to endpoints of this cluster"),
    ("to-cluster", None, None, "To endpoints of this cluster"),
    ("protocol", None, None, "Of this protocol: tcp, udp, sctp, icmp, icmpv4, icmpv6, vrrp, igmp"),
    ("tcp-flags", None, None, "With these TCP flags (e.g. \"syn,ack\")"),
    ("type", Some('t'), None, "Of this type: drop, policy-verdict, trace; with :SUBTYPE, as drop:133"),
    ("verdict", None, None, "With this verdict: FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR, TRACED, TRANSLATED"),
    ("drop-reason-desc", None, None, "Dropped for this reason (e.g. POLICY_DENIED)"),
    ("http-status", None, None, "With this HTTP status"),
    ("http-method", None, None, "With this HTTP method"),
    ("http-path", None, None, "With this HTTP path"),
    ("http-url", None, None, "With this URL"),
    ("http-header", None, None, "With this HTTP header (key:value)"),
    ("trace-id", None, None, "With this trace"),
    ("ip-trace-id", None, None, "With this IP trace"),
    ("from-fqdn", None, None, "From this DNS name (e.g. \"*.example.com\")"),
    ("fqdn", None, None, "From or to this DNS name"),
    ("to-fqdn", None, None, "To this DNS name"),
    ("from-ip", None, None, "From this address or CIDR"),
    ("snat-ip", None, None, "Translated to this source address or CIDR"),
    ("ip", None, None, "From or to this address or CIDR"),
    ("to-ip", None, None, "To this address or CIDR"),
    ("ipv4", Some('4'), Some("v4"), "IPv4 only"),
    ("ipv6", Some('6'), Some("v6"), "IPv6 only"),
    ("ip-version", None, None, "Of this IP version: v4, v6, none"),
    ("from-pod", None, None, "From this pod: [namespace/]PREFIX"),
    ("pod", None, None, "From or to this pod: [namespace/]PREFIX"),
    ("to-pod", None, None, "To this pod: [namespace/]PREFIX"),
    ("from-namespace", None, None, "From this namespace"),
    ("namespace", Some('n'), None, "From or to this namespace"),
    ("to-namespace", None, None, "To this namespace"),
    ("from-all-namespaces", None, Some("true"), "From any namespace"),
    ("all-namespaces", Some('A'), Some("true"), "From or to any namespace"),
    ("to-all-namespaces", None, Some("true"), "To any namespace"),
    ("from-label", None, None, "From endpoints with these labels (e.g. \"app=web\", \"reserved:world\")"),
    ("label", Some('l'), None, "From or to endpoints with these labels"),
    ("to-label", None, None, "To endpoints with these labels"),
    ("from-service", None, None, "From this service's address: [namespace/]PREFIX"),
    ("service", None, None, "From or to this service's address"),
    ("to-service", None, None, "To this service's address"),
    ("from-port", None, None, "From this port"),
    ("port", None, None, "From or to this port"),
    ("to-port", None, None, "To this port"),
    ("from-workload", None, None, "From this workload: [KIND/]NAME"),
    ("workload", None, None, "From or to this workload"),
    ("to-workload", None, None, "To this workload"),
    ("from-identity", None, None, "From this identity: a number, or world, host ..."),
    ("identity", None, None, "From or to this identity"),
    ("to-identity", None, None, "To this identity"),
    ("traffic-direction", None, None, "In this direction: ingress, egress"),
    ("cel-expression", None, None, "For which this CEL expression is true (if the server can)"),
    ("interface", None, None, "Seen at this interface"),
    ("encrypted", None, Some("true"), "Encrypted flows"),
];
const UNENCRYPTED: FilterFlag = ("unencrypted", None, Some("true"), "Flows that are not encrypted");

/// A filter flag as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

fn filters() -> impl Iterator<Item = &'static FilterFlag> {
    FILTERS.iter().chain([&UNENCRYPTED])
}

const AFTER_HELP: &str = "\
Examples:
  netpol observe -f                                    drops as they happen
  netpol observe -t policy-verdict --print-policy-names -n shop
                                                       which policies denied whom in namespace shop
  netpol observe --to-pod shop/db --since 5m -o jsonpb for scripts
  netpol observe --summary                             who is dropped by what, how often

On a node it asks the agent's socket (as root). Anywhere else it asks all agents through the API server, which needs `list` \
on pods, and `create` and `get` on pods/exec, in the agents' namespace.

Agents tell of drops only, unless they run with --flows verdicts or --flows all.

Exit codes: 0 all well, also if no flow matches, and if what is followed is stopped with Ctrl-C; 1 a failure; 2 wrong usage, \
as a filter or time that cannot be read; 5 some agents did not answer, the others' flows were printed.";

/// The command.
#[must_use]
pub fn command() -> Command {
    let filter = |&(name, short, missing, help): &FilterFlag| {
        let arg = Arg::new(name).long(name).help(help).action(ArgAction::Append).help_heading("Filters");
        let arg = match missing {
            Some(value) => arg.num_args(0..=1).require_equals(true).default_missing_value(value),
            None => arg.value_name("VALUE").allow_hyphen_values(true),
        };
        match short {
            Some(letter) => arg.short(letter),
            None => arg,
        }
    };
    let command = Command::new("observe")
        .bin_name("netpol observe")
        .after_help(AFTER_HELP)
        .version(env!("CARGO_PKG_VERSION"))
        .max_term_width(110)
        .args_override_self(true);
    let about = "Show flows: what was dropped, why and by which policies";
    Flags::augment_args(command).about(about).long_about(about).args(filters().map(filter))
}

/// The flags of parsed arguments, and the filters in the order in which they were given.
///
/// # Errors
/// If the flags do not fit together.
pub fn read(matches: &ArgMatches) -> Result<(Flags, Vec<Given>), clap::Error> {
    let flags = Flags::from_arg_matches(matches)?;
    let mut given: Vec<(usize, Given)> = Vec::new();
    for &(name, ..) in filters() {
        let values = matches.get_many::<String>(name).into_iter().flatten();
        let places = matches.indices_of(name).into_iter().flatten();
        given.extend(places.zip(values).map(|(at, value)| (at, Given { name, value: value.clone() })));
    }
    given.sort_by_key(|(at, _)| *at);
    Ok((flags, given.into_iter().map(|(_, given)| given).collect()))
}
