//! A namespace with the directories that a node's runtime has, Flannel's network in it, and pods' namespaces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netpol_agent::cni::conflist::AgentAbsent;
use netpol_agent::cni::install::InstallOptions;

use super::runtime::{Container, Runtime};
use super::{PLUGINS, binary};
use crate::netns::Namespace;
use crate::netns::run::Run;

/// The network configuration that Flannel's plugin comes to: it hands this on to `bridge`, and `portmap` follows. `DATA` is
/// where `host-local` keeps addresses. (Flannel gives a route to the whole network besides, which Debian's `bridge` does not find
/// again in its own CHECK.)
pub const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "mtu": 1450, "hairpinMode": true, "isGateway": true, "isDefaultGateway": true,
     "ipMasq": false,
     "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Its file.
pub const FLANNEL_FILE: &str = "10-flannel.conflist";

/// A node's directories of CNI.
#[derive(Debug)]
pub struct CniNode<'a> {
    namespace: &'a Namespace,
    root: PathBuf,
    number: u8,
}

impl<'a> CniNode<'a> {
    /// Makes the directories in the run's own, with Flannel's configuration in the version given.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn new(run: &Run, namespace: &'a Namespace, version: &str) -> Result<Self> {
        let node = Self::at(run, namespace);
        node.make(version)?;
        Ok(node)
    }

    /// Makes the directories, with Flannel's configuration.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn make(&self, version: &str) -> Result<()> {
        for directory in [self.conf_dir(), self.bin_dir(), self.cache_dir(), self.data_dir()] {
            fs::create_dir_all(directory)?;
        }
        self.write_flannel(version)
    }

    /// The directories below `root`, as they are; `number` is the node's, and that of its pods' subnets.
    #[must_use]
    pub fn below(root: PathBuf, namespace: &'a Namespace, number: u8) -> Self {
        Self { namespace, root, number }
    }

    /// The directories, once made.
    #[must_use]
    pub fn at(run: &Run, namespace: &'a Namespace) -> Self {
        Self::below(run.manifests().with_file_name("cni"), namespace, 1)
    }

    /// Writes Flannel's configuration, as Flannel does at its start.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_flannel(&self, version: &str) -> Result<()> {
        let subnets = (format!("10.244.{}.", self.number), format!("fd00:10:244:{}:", self.number));
        let text = FLANNEL.replace("10.244.1.", &subnets.0).replace("fd00:10:244:1:", &subnets.1);
        let text = text.replace("DATA", &self.data_dir().display().to_string()).replace("0.3.1", version);
        fs::write(self.conf_dir().join(FLANNEL_FILE), text).context("cannot write Flannel's configuration")
    }

    /// `/etc/cni/net.d`.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.root.join("net.d")
    }

    /// `/opt/cni/bin`: ours alone; the others are where their package put them.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// `/var/lib/cni`.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// `/var/lib/cni/networks`.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// Flags of an agent that installs here.
    ///
    /// # Errors
    /// If our plugin was not built.
    pub fn flags(&self) -> Result<Vec<String>> {
        let values = [
            ("--cni-conf-dir", self.conf_dir()),
            ("--cni-bin-dir", self.bin_dir()),
            ("--cni-cache", self.cache_dir().join("results")),
            ("--cni-plugin", binary()?),
        ];
        Ok(values.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]).collect())
    }

    /// What an agent with this socket installs here.
    ///
    /// # Errors
    /// If our plugin was not built.
    pub fn install_options(&self, socket: &Path) -> Result<InstallOptions> {
        Ok(InstallOptions {
            conf_dir: self.conf_dir(),
            bin_dir: self.bin_dir(),
            plugin_binary: binary()?,
            socket: socket.to_owned(),
            agent_absent: AgentAbsent::Fail,
            timeout_seconds: None,
            enter_namespace: true,
        })
    }

    /// The node's runtime.
    #[must_use]
    pub fn runtime(&self) -> Runtime<'a> {
        Runtime {
            namespace: self.namespace,
            conf_dir: self.conf_dir(),
            path: vec![self.bin_dir(), PLUGINS.into()],
            cache: self.cache_dir(),
        }
    }

    /// A pod's container in a namespace.
    #[must_use]
    pub fn container(&self, pod: &Namespace, id: &str, names: (&str, &str, &str)) -> Container {
        Container::of_pod(id, &Path::new("/run/netns").join(pod.name()), names)
    }
}
