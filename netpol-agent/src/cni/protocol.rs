//! What plugin and agent say to each other over the agent's socket: one JSON line each way.
//!
//! Both ends are of one release most of the time, but not while an upgrade is under way: fields are only ever added.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::model::ObjectKey;

/// Which attachment: a runtime never uses the pair twice at the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct AttachmentKey {
    /// CNI_CONTAINERID: the pod's sandbox.
    pub container_id: String,
    /// CNI_IFNAME: the interface inside the pod.
    pub ifname: String,
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// A pod's interface as the CNI plugins before ours made it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Attachment {
    /// Which.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub pod: String,
    /// K8S_POD_UID; empty if the runtime does not tell. That of a static pod is not its mirror pod's.
    #[serde(default)]
    pub uid: String,
    /// Name of the host's end of the veth pair.
    pub host_interface: String,
    /// MAC address of the pod's end, as `0a:58:0a:f4:01:0b`.
    pub mac: String,
    /// The pod's addresses, each family at most once.
    pub addresses: Vec<IpAddr>,
}

impl Attachment {
    /// The pod it is for.
    #[must_use]
    pub fn pod_key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.pod)
    }
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "cni")]
pub enum CniRequest {
    /// Enforce the pod's policy on this interface; answered when it is in force.
    Add(Attachment),
    /// The pod's interface goes; always done.
    Del(AttachmentKey),
    /// Is the pod's policy in force there?
    Check(AttachmentKey),
    /// Everything but these is gone.
    Gc {
        /// What the runtime still has.
        valid: Vec<AttachmentKey>,
    },
    /// Could an ADD be served now?
    Status,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum CniAnswer {
    /// Done.
    Done,
    /// Not done; the runtime may try again.
    Failed {
        /// The plugin's error code: 11 to try again later, 50 if the agent cannot serve at all (CNI spec 1.1, "Error").
        code: u32,
        /// What was tried, on what, and what to do.
        message: String,
    },
}
