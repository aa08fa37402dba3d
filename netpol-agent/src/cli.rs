//! Flags of `netpol-agent`: what is typed, its help and its checks. Start at [`Cli`].

mod export;
mod flows;

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

pub use self::export::ExportArgs;
use crate::cni::conflist::AgentAbsent;
use crate::datapath::apply::OnFailure;
use crate::datapath::attach::AttachMode;
use crate::flow::sink::Format;
use crate::node::NamePattern;
use crate::observe::health::HealthAddress;

pub use self::flows::{FlowArgs, Told};

/// Everything is in order.
pub const EXIT_OK: u8 = 0;
/// Something failed; the message says what.
pub const EXIT_FAILURE: u8 = 1;
/// `run --check` found input that is not taken as written, or `preflight` something that must be put right first.
pub const EXIT_PROBLEMS: u8 = 3;

/// Makes Kubernetes NetworkPolicy real on this node.
///
/// Exit codes: 0 all well, 1 a failure (the message says of what), 2 wrong usage, 3 `run --check` found problems or `preflight` failures.
#[derive(Debug, Parser)]
#[command(name = "netpol-agent", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce policies until told to stop; what is enforced stays in force after that.
    ///
    /// Drops are printed to standard output, the log goes to standard error (RUST_LOG sets its level). Send SIGTERM or
    /// press Ctrl-C to stop: programs and maps stay pinned and go on enforcing; `netpol-agent cleanup` removes them.
    Run(Box<RunArgs>),
    /// Remove everything of netpol from this node: programs, maps, pins. Traffic is no longer policed afterwards.
    Cleanup(CleanupArgs),
    /// Look for what on this node stands in the way (kernel, capabilities, BPF file system, packet marks, kube-proxy, CNI
    /// directories, other enforcers of NetworkPolicy), and say what to do about it. Changes nothing.
    ///
    /// Exit code 0 if netpol can work here, with notes or without; 3 if something failed.
    Preflight(PreflightArgs),
    /// Print a completion script for a shell, e.g. `netpol-agent completions bash > /etc/bash_completion.d/netpol-agent`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directory of YAML or JSON manifests (Pods with status.podIPs, Namespaces, NetworkPolicies, Services, Lists) to follow
    /// instead of an API server; it is read again whenever something in it changes.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// How to reach the API server. Without it (and without --manifests) the pod's service account is used.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,

    /// Only read and compile the manifests, say what is wrong with them and what they come to, and end. Needs no
    /// privilege and touches nothing.
    #[arg(long, requires = "manifests")]
    pub check: bool,

    /// Only list the open connections of this node's pods that the policies would cut, and end. Loads and attaches nothing;
    /// needs CAP_NET_ADMIN, as the kernel's conntrack says what is open. The exit code is 0 whether or not there are any.
    #[arg(long, conflicts_with = "check")]
    pub dry_run: bool,

    /// How drops (and the reports of --check and --dry-run) are printed. The report of --check is one JSON object over many lines.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,

    /// Mount point of the BPF file system, where programs and maps are pinned.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Unix socket for requests such as {"request":"status"}.
    #[arg(long, value_name = "PATH", default_value = "/run/netpol/netpol.sock")]
    pub socket: PathBuf,

    /// Directory of what the CNI plugin told, for the next agent; on a file system that a reboot empties.
    #[arg(long, value_name = "DIR", default_value = "/run/netpol/attachments")]
    pub state_dir: PathBuf,

    /// Where /livez, /readyz and /startupz are served over HTTP for the kubelet's probes; `off` turns them off.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "127.0.0.1:9879", value_parser = HealthAddress::from_str)]
    pub health_address: HealthAddress,

    /// Where /metrics is served over HTTP for Prometheus, e.g. 0.0.0.0:9964. Namespaces and policies are named there.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "off", value_parser = HealthAddress::from_str)]
    pub metrics_address: HealthAddress,

    /// Name of this node, which an API server needs to be known by: pods whose spec.nodeName is another one are not looked
    /// for here. With --manifests it may be left out, and every pod's address is looked for.
    #[arg(long, value_name = "NAME", default_value = "", env = "NODE_NAME")]
    pub node: String,

    /// Names of the host ends of pods' veth pairs; `*` stands for anything, `?` for one character.
    #[arg(long, value_name = "GLOB", default_value = "veth*", value_parser = name_pattern)]
    pub pod_interfaces: NamePattern,

    /// How programs are attached: TCX (kernel 6.6 and up), clsact, or the first that the kernel has.
    #[arg(long, value_name = "auto|tcx|clsact", default_value = "auto", value_parser = AttachMode::from_str)]
    pub attach: AttachMode,

    /// What happens to the traffic of a pod interface whose pod is not known (yet).
    #[arg(long, value_enum, default_value_t)]
    pub pending_pods: Pending,

    /// What happens to pods for which a tightening could not be written to the kernel: deny all of that direction, or keep
    /// the old policy.
    #[arg(long, value_enum, default_value_t = FailureMode::Deny)]
    pub on_apply_failure: FailureMode,

    /// Most pods on this node; each has a slot in the maps and in the packet mark.
    #[arg(long, value_name = "N", default_value_t = 127, value_parser = clap::value_parser!(u16).range(1..=4095))]
    pub max_pods: u16,

    /// Bits of the packet mark that netpol may use for the slot of the pod that a packet comes from (contiguous, hexadecimal
    /// with 0x). Others must not use them: kube-proxy has 0xc000, Tailscale 0xff0000.
    #[arg(long, value_name = "MASK", default_value = "0xff000000", value_parser = parse_mask)]
    pub mark_mask: u32,

    /// The cluster's service ranges (kube-apiserver's --service-cluster-ip-range): egress to them is judged on the backend even
    /// while a service is not known yet. One of each family; may be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    pub service_cidr: Vec<IpNet>,

    /// Drop TCP packets in mid-stream that belong to no known connection even where policy would allow a new one.
    #[arg(long)]
    pub strict_tcp: bool,

    /// Judge pods' traffic to their own node like any other. Breaks hostNetwork backends, node-local DNS and the kubelet's
    /// services for isolated pods unless policies allow them.
    #[arg(long)]
    pub enforce_own_node: bool,

    /// Do not check that pods send only from their own addresses. Policies can then be walked around by any pod with
    /// CAP_NET_RAW.
    #[arg(long)]
    pub allow_any_source: bool,

    // A heading holds for all that comes after it, so these three are the last.
    /// Flags about CNI.
    #[command(flatten)]
    pub cni: CniArgs,

    /// About flows.
    #[command(flatten)]
    pub flow: FlowArgs,

    /// Flags about the export of flows.
    #[command(flatten)]
    pub export: ExportArgs,
}

/// Flags of `run` about CNI, by which pods are isolated before their first packet.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "CNI plugin")]
pub struct CniArgs {
    /// The container runtime's directory of network configurations, usually /etc/cni/net.d (k3s:
    /// /var/lib/rancher/k3s/agent/etc/cni/net.d): one that calls netpol-cni is kept there, made of the first other. Without it
    /// no plugin is installed, and a pod may send before the agent has found it.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// The runtime's directory of plugins, where netpol-cni is copied to.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// The plugin to copy; by default netpol-cni beside this program.
    #[arg(long, value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,

    /// libcni's cache of results, which tells of pods from before the plugin was installed.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/results")]
    pub cni_cache: PathBuf,

    /// What becomes of a pod's start while the agent does not answer.
    #[arg(long, value_enum, default_value_t)]
    pub agent_absent: AgentAbsent,

    /// Do not let the plugin look into a pod's network namespace for what other plugins do not tell.
    #[arg(long)]
    pub cni_stay_outside: bool,
}

/// Flags of `preflight`.
#[derive(Clone, Debug, Args)]
pub struct PreflightArgs {
    /// How findings are printed.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,

    /// Mount point of the BPF file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", env = "NETPOL_BPFFS")]
    pub bpffs: PathBuf,

    /// Bits of the packet mark that netpol is to use, as for `run`.
    #[arg(long, value_name = "MASK", default_value = "0xff000000", value_parser = parse_mask, env = "NETPOL_MARK_MASK")]
    pub mark_mask: u32,

    /// Where the container runtime looks for CNI configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", env = "NETPOL_CNI_CONF_DIR")]
    pub cni_conf_dir: PathBuf,

    /// Where the container runtime looks for CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", env = "NETPOL_CNI_BIN_DIR")]
    pub cni_bin_dir: PathBuf,
}

/// Flags of `cleanup`: where the agent was told to put things, if not where it does by itself.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Mount point of the BPF file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", env = "NETPOL_BPFFS")]
    pub bpffs: PathBuf,

    /// The agent's Unix socket.
    #[arg(long, value_name = "PATH", default_value = "/run/netpol/netpol.sock")]
    pub socket: PathBuf,

    /// The agent's directory of attachments.
    #[arg(long, value_name = "DIR", default_value = "/run/netpol/attachments")]
    pub state_dir: PathBuf,

    /// The container runtime's directory of network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", env = "NETPOL_CNI_CONF_DIR")]
    pub cni_conf_dir: PathBuf,

    /// The runtime's directory of plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", env = "NETPOL_CNI_BIN_DIR")]
    pub cni_bin_dir: PathBuf,
}

impl RunArgs {
    /// Where `cleanup` finds what an agent with these flags leaves.
    #[must_use]
    pub fn places(&self) -> CleanupArgs {
        CleanupArgs {
            bpffs: self.bpffs.clone(),
            socket: self.socket.clone(),
            state_dir: self.state_dir.clone(),
            cni_conf_dir: self.cni.cni_conf_dir.clone().unwrap_or_else(|| PathBuf::from("/etc/cni/net.d")),
            cni_bin_dir: self.cni.cni_bin_dir.clone(),
        }
    }
}

/// What an unknown pod may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Pending {
    /// Nothing but ARP and neighbour discovery.
    #[default]
    Deny,
    /// Everything.
    Allow,
}

/// What becomes of pods when a tightening fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailureMode {
    /// Deny.
    Deny,
    /// Keep the old policy.
    Keep,
}

impl From<FailureMode> for OnFailure {
    fn from(mode: FailureMode) -> Self {
        match mode {
            FailureMode::Deny => Self::Deny,
            FailureMode::Keep => Self::Keep,
        }
    }
}

/// An empty pattern matches no interface, so that nothing would be enforced.
fn name_pattern(text: &str) -> Result<NamePattern, String> {
    if text.is_empty() {
        return Err("it would match no interface; give a pattern such as veth*".to_owned());
    }
    Ok(NamePattern::new(text))
}

fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_no_cidr| format!("{text:?} is no CIDR; write 10.96.0.0/12 or fd00:10:96::/112"))
}

fn parse_mask(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").ok_or_else(|| format!("{text:?} does not begin with 0x"))?;
    let mask = u32::from_str_radix(digits, 16).map_err(|error| format!("{text:?} is no 32-bit mask: {error}"))?;
    let shifted = if mask == 0 { 0 } else { mask >> mask.trailing_zeros() };
    if shifted == 0 || shifted & shifted.wrapping_add(1) != 0 {
        return Err(format!("{text} has no bits, or gaps between them; give contiguous bits such as 0xff000000"));
    }
    Ok(mask)
}
