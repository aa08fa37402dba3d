//! What a DaemonSet asks of the kubelet for its one container.
//!
//! In: the manifest that users apply. Out: [`Settings`]. What this does not know how to give is an error and not left out:
//! a test that ran with less than the manifest says would show nothing.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, SecurityContext, Volume, VolumeMount};

/// A directory of the node in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the node.
    pub host: String,
    /// In the container.
    pub inside: String,
    /// True if nothing can be written there.
    pub read_only: bool,
    /// True if the kubelet makes no directory.
    pub must_exist: bool,
}

/// What the container gets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories of the node.
    pub mounts: Vec<Mount>,
    /// The image's files cannot be changed.
    pub read_only_root: bool,
    /// Nothing that is run gains a capability.
    pub no_new_privileges: bool,
    capabilities: Vec<String>,
    command: Vec<String>,
    environment: Vec<EnvVar>,
}

impl Settings {
    /// Reads a file of manifests, of which one is a DaemonSet.
    ///
    /// # Errors
    /// If there is none, or it wants what is not known here.
    pub fn read(manifests: &str) -> Result<Self> {
        for document in manifests.split("\n---") {
            if document.lines().any(|line| line.trim_end() == "kind: DaemonSet") {
                let set: DaemonSet =
                    serde_saphyr::from_str(document.trim_start_matches("---")).context("the DaemonSet")?;
                let pod = set.spec.and_then(|spec| spec.template.spec).context("a DaemonSet without pods")?;
                return Self::of(&pod);
            }
        }
        bail!("no DaemonSet")
    }

    fn of(pod: &PodSpec) -> Result<Self> {
        ensure!(pod.host_network == Some(true), "not in the node's network");
        ensure!(!pod.host_pid.unwrap_or(false) && !pod.host_ipc.unwrap_or(false), "in the node's other namespaces");
        let [container] = pod.containers.as_slice() else { bail!("{} containers", pod.containers.len()) };
        let security = container.security_context.as_ref().context("no securityContext")?;
        ensure!(!security.privileged.unwrap_or(false), "privileged");
        let seccomp = security.seccomp_profile.as_ref();
        let seccomp = seccomp.or_else(|| pod.security_context.as_ref()?.seccomp_profile.as_ref());
        let seccomp = seccomp.map(|profile| profile.type_.as_str());
        ensure!(seccomp == Some("RuntimeDefault"), "seccomp is {seccomp:?} and not RuntimeDefault");
        Ok(Self {
            mounts: mounts(container, pod.volumes.as_deref().unwrap_or_default())?,
            read_only_root: security.read_only_root_filesystem.unwrap_or(false),
            no_new_privileges: security.allow_privilege_escalation == Some(false),
            capabilities: capabilities(security)?,
            command: [&container.command, &container.args].into_iter().flatten().flatten().cloned().collect(),
            environment: container.env.clone().unwrap_or_default(),
        })
    }

    /// As the kernel names them.
    #[must_use]
    pub fn capabilities(&self) -> Vec<String> {
        self.capabilities.iter().map(|name| format!("CAP_{name}")).collect()
    }

    /// As the kubelet completes it on a node.
    #[must_use]
    pub fn environment(&self, node: &str) -> Vec<String> {
        self.environment.iter().map(|it| format!("{}={}", it.name, value_of(it, node))).collect()
    }

    /// Program and arguments, `$(NAME)` replaced.
    #[must_use]
    pub fn command(&self, node: &str) -> Vec<String> {
        let complete = |word: &String| {
            self.environment
                .iter()
                .fold(word.clone(), |word, it| word.replace(&format!("$({})", it.name), &value_of(it, node)))
        };
        self.command.iter().map(complete).collect()
    }
}

/// A literal value, or the node's name, which is the one thing that pods are told here.
fn value_of(variable: &EnvVar, node: &str) -> String {
    let from_node = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
    match from_node {
        Some(field) if field.field_path == "spec.nodeName" => node.to_owned(),
        _ => variable.value.clone().unwrap_or_default(),
    }
}

fn capabilities(security: &SecurityContext) -> Result<Vec<String>> {
    let capabilities = security.capabilities.as_ref().context("capabilities are not named")?;
    let dropped = capabilities.drop.as_deref().unwrap_or_default();
    ensure!(dropped == ["ALL"], "not every capability is dropped, but {dropped:?}");
    Ok(capabilities.add.clone().unwrap_or_default())
}

fn mounts(container: &Container, volumes: &[Volume]) -> Result<Vec<Mount>> {
    container.volume_mounts.iter().flatten().map(|mount| mount_of(mount, volumes)).collect()
}

fn mount_of(mount: &VolumeMount, volumes: &[Volume]) -> Result<Mount> {
    let volume = volumes.iter().find(|volume| volume.name == mount.name);
    let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
    let host = volume.host_path.as_ref().with_context(|| format!("volume {} is no hostPath", mount.name))?;
    ensure!(mount.sub_path.is_none() && mount.mount_propagation.is_none(), "{}: not known here", mount.name);
    Ok(Mount {
        host: host.path.clone(),
        inside: mount.mount_path.clone(),
        read_only: mount.read_only.unwrap_or(false),
        // bpffs is the run's own.
        must_exist: host.type_.as_deref() == Some("Directory") && host.path != "/sys/fs/bpf",
    })
}
