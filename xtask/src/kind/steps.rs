//! What `kind up|load|test|down` runs, as values: nothing here runs anything.

use std::path::Path;

use super::CLUSTER;

/// A program that steps use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Kind,
    Docker,
    Kubectl,
    Helm,
    Cargo,
}

impl Tool {
    pub(super) const ALL: [Self; 5] = [Self::Kind, Self::Docker, Self::Kubectl, Self::Helm, Self::Cargo];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Docker => "docker",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::Cargo => "cargo",
        }
    }

    /// Where one gets it.
    pub(super) const fn home(self) -> &'static str {
        match self {
            Self::Kind => "https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
            Self::Docker => "https://docs.docker.com/engine/install",
            Self::Kubectl => "https://kubernetes.io/docs/tasks/tools",
            Self::Helm => "https://helm.sh/docs/intro/install",
            Self::Cargo => "https://rustup.rs",
        }
    }
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) tool: Tool,
    pub(super) arguments: Vec<String>,
}

fn step(tool: Tool, arguments: &[&str]) -> Step {
    Step { tool, arguments: arguments.iter().map(|it| (*it).to_owned()).collect() }
}

/// kubectl in the cluster, whatever the user's own context is.
fn kubectl(arguments: &[&str]) -> Step {
    step(Tool::Kubectl, &[&["--context", CONTEXT], arguments].concat())
}

const CONTEXT: &str = "kind-netpol";
const NODES: [&str; 3] = ["netpol-control-plane", "netpol-worker", "netpol-worker2"];
const PROBER: &str = "netpol-prober:kind";
const MUSL: &str = "x86_64-unknown-linux-musl";

/// Flannel, and the plugins that its configuration hands pods to (kind's nodes have no `bridge`).
const FLANNEL: &str = "https://github.com/flannel-io/flannel/releases/download/v0.27.4/kube-flannel.yml";
const PLUGINS: &str =
    "https://github.com/containernetworking/plugins/releases/download/v1.7.1/cni-plugins-linux-amd64-v1.7.1.tgz";

/// The prober's image: one static program.
pub(super) const DOCKERFILE: &str = "FROM scratch\nCOPY netpol-kind /netpol-kind\nENTRYPOINT [\"/netpol-kind\"]\n";

/// kind's configuration. 10.244.0.0/16 is what Flannel's manifest has.
pub(super) fn config(kube_proxy: &str) -> String {
    format!(
        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking:\n  disableDefaultCNI: true\n  podSubnet: 10.244.0.0/16\n  \
         kubeProxyMode: {kube_proxy}\nnodes:\n  - role: control-plane\n  - role: worker\n  - role: worker\n"
    )
}

/// From nothing to nodes that are ready.
pub(super) fn up(config: &Path) -> Vec<Step> {
    let config = config.display().to_string();
    let mut steps = vec![step(Tool::Kind, &["create", "cluster", "--name", CLUSTER, "--config", &config])];
    // What a node of a machine has from its distribution.
    let prepare = format!(
        "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf; curl -fsSL {PLUGINS} | tar -xz -C /opt/cni/bin ./bridge ./host-local ./portmap"
    );
    steps.extend(NODES.iter().map(|node| step(Tool::Docker, &["exec", node, "sh", "-euc", &prepare])));
    steps.push(kubectl(&["apply", "-f", FLANNEL]));
    steps.push(kubectl(&["-n", "kube-flannel", "rollout", "status", "daemonset/kube-flannel-ds", "--timeout=300s"]));
    steps.push(kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=180s"]));
    steps
}

/// Images into the nodes, the chart into the cluster.
pub(super) fn load(place: &Path, image: &Path) -> Vec<Step> {
    let (place, image) = (place.display().to_string(), image.display().to_string());
    let (dockerfile, built) = (format!("{place}/Dockerfile"), format!("target/{MUSL}/release"));
    vec![
        step(Tool::Cargo, &["build", "--release", "--target", MUSL, "-p", "netpol-tests", "--bin", "netpol-kind"]),
        step(Tool::Docker, &["build", "-t", PROBER, "-f", &dockerfile, &built]),
        step(Tool::Kind, &["load", "docker-image", PROBER, "--name", CLUSTER]),
        step(Tool::Kind, &["load", "image-archive", &image, "--name", CLUSTER]),
        step(
            Tool::Helm,
            &[
                "--kube-context",
                CONTEXT,
                "upgrade",
                "--install",
                "netpol",
                "deploy/helm/netpol",
                "-n",
                "kube-system",
                "--set",
                "image.pullPolicy=Never",
                "--wait",
                "--timeout",
                "5m",
            ],
        ),
        kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/netpol", "--timeout=300s"]),
        kubectl(&["-n", "kube-system", "exec", "daemonset/netpol", "--", "/netpol-agent", "preflight"]),
    ]
}

/// The cases.
pub(super) fn test(flags: &[String]) -> Vec<Step> {
    let fixed = [
        "run",
        "--quiet",
        "-p",
        "netpol-tests",
        "--bin",
        "netpol-kind",
        "--",
        "run",
        "--context",
        CONTEXT,
        "--image",
        PROBER,
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    vec![step(Tool::Cargo, &[&fixed, flags.as_slice()].concat())]
}

/// Everything away.
pub(super) fn down() -> Vec<Step> {
    vec![step(Tool::Kind, &["delete", "cluster", "--name", CLUSTER])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|it| format!("{} {}", it.tool.name(), it.arguments.join(" "))).collect()
    }

    #[test]
    fn the_network_is_flannels_alone() {
        let config = config("iptables");
        for line in [
            "  disableDefaultCNI: true",
            "  podSubnet: 10.244.0.0/16",
            "  kubeProxyMode: iptables",
            "apiVersion: kind.x-k8s.io/v1alpha4",
        ] {
            assert!(config.lines().any(|it| it == line), "{line}");
        }
        let up = lines(&up(Path::new("c.yaml")));
        assert_eq!(up.first().unwrap(), "kind create cluster --name netpol --config c.yaml");
        let roles = config.lines().filter(|it| it.contains("role:")).count();
        assert_eq!(
            up.iter().filter(|it| it.starts_with("docker exec netpol-")).count(),
            roles,
            "each node is prepared"
        );
        assert!(up.iter().any(|it| it.contains("kube-flannel.yml")));
    }

    #[test]
    fn no_command_meets_another_cluster() {
        let (place, image) = (Path::new("p"), Path::new("i.tar"));
        for line in [up(place), load(place, image), test(&[]), down()].iter().flat_map(|it| lines(it)) {
            let named = match line.split(' ').next().unwrap_or_default() {
                "kind" => line.contains("--name netpol"),
                "kubectl" => line.contains("--context kind-netpol"),
                "helm" => line.contains("--kube-context kind-netpol"),
                "cargo" => !line.contains("netpol-kind -- run") || line.contains("--context kind-netpol"),
                _ => true,
            };
            assert!(named, "{line}");
        }
    }

    #[test]
    fn flags_of_the_cases_go_to_their_program() {
        let line = lines(&test(&["--suite".to_owned(), "recipes".to_owned()])).concat();
        assert!(line.ends_with("-- run --context kind-netpol --image netpol-prober:kind --suite recipes"), "{line}");
    }
}
