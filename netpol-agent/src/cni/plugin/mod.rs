//! The chained CNI plugin `netpol-cni`: what a container runtime runs for each pod, after the plugins that connect it.
//!
//! In: the CNI environment, a configuration on standard input, the agent's answer. Out: the previous plugins' result as it
//! came, or an error of the CNI specification. One process a call, no runtime, no task: it blocks with deadlines.

/// What the program is; also how one of ours is known.
pub const ABOUT: &str = "netpol-cni: announces pods to netpol-agent, chained behind the plugins that connect them";
