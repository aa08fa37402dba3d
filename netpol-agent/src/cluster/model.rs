//! Cluster objects reduced to the parts that policy depends on: what `source` produces and `cluster::state` keeps.
//!
//! Everything is validated here by construction or by `source::decode`: a block has no host bits, a port range is not
//! empty. Input that could not be understood is already narrowed: an unusable peer is left out of its list (an empty list
//! is nobody), an unusable selector is [`Selector::unusable`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

/// Labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Key of a pod.
pub type PodKey = ObjectKey;
/// Key of a NetworkPolicy.
pub type PolicyKey = ObjectKey;

/// Transport protocol of a NetworkPolicy port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Protocol {
    /// TCP, IANA 6.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP, IANA 17.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP, IANA 132.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
}

/// A namespace: its labels are what selectors see. `kubernetes.io/metadata.name` is always among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Port name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// containerPort.
    pub port: u16,
}

/// What a pod was made by: the Deployment, StatefulSet, CronJob and so on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Kind.
    pub kind: Arc<str>,
    /// Name, in the pod's namespace.
    pub name: Arc<str>,
}

/// A pod as policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// metadata.uid, empty in manifests that have none.
    pub uid: Arc<str>,
    /// The annotation kubernetes.io/config.hash: the UID that the kubelet gives a static pod (its API object, the mirror
    /// pod, has another one). Empty for any other pod.
    pub static_uid: Arc<str>,
    /// Labels, shared with other pods that have the same.
    pub labels: Arc<Labels>,
    /// status.podIPs, each family at most once (podIP if podIPs is missing).
    pub addresses: Vec<IpAddr>,
    /// Named container ports (init containers with restartPolicy Always included).
    pub named_ports: Vec<NamedPort>,
    /// Ports of its node that lead to it (hostPort), sorted.
    pub host_ports: Vec<(Protocol, u16)>,
    /// spec.nodeName, empty if unknown.
    pub node: Arc<str>,
    /// spec.hostNetwork: neither subject nor peer of a selector; its address is the node's.
    pub host_network: bool,
    /// Phase Succeeded or Failed: the address is no longer the pod's. A terminating pod is *not* terminal.
    pub terminal: bool,
    /// What made it; policy does not look at it, people do.
    pub workload: Option<Workload>,
}

/// One requirement of a label selector. matchLabels `k: v` is `In {k, [v]}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key is present with one of the values.
    In(Arc<str>, Vec<Arc<str>>),
    /// The key is absent or has none of the values.
    NotIn(Arc<str>, Vec<Arc<str>>),
    /// The key is present, its value may be empty.
    Exists(Arc<str>),
    /// The key is absent.
    DoesNotExist(Arc<str>),
}

/// A label selector: all requirements hold (none: everything matches).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// The requirements, sorted and without duplicates, values too.
    pub requirements: Vec<Requirement>,
}

/// An ipBlock without host bits, its exceptions strictly inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpNet,
    /// What is cut out of this block (and only of this block).
    pub except: Vec<IpNet>,
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// podSelector and/or namespaceSelector.
    Pods {
        /// Which namespaces; `None` is the policy's own.
        namespaces: Option<Selector>,
        /// Which pods in them; a missing podSelector is the empty one.
        pods: Selector,
    },
    /// ipBlock.
    IpBlock(IpBlock),
}

/// Who a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// `from`/`to` missing, null or empty: everyone, addresses outside the cluster too.
    Everyone,
    /// Any of these; an empty list (every item was unusable) is nobody.
    AnyOf(Vec<Peer>),
}

/// Which destination ports a [`PortMatch`] takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRange {
    /// Every port of the protocol.
    All,
    /// `first..=last`, `first <= last`, `first >= 1`.
    Numbers(u16, u16),
    /// The number under which the destination pod declares this name for the protocol.
    Named(Arc<str>),
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// Protocol; a missing one is TCP.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
}

/// What a rule lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `ports` missing, null or empty: all ports of all protocols, ICMP and others too.
    Everything,
    /// Any of these; an empty list (every item was unusable) is nothing.
    AnyOf(Vec<PortMatch>),
}

/// One ingress or egress rule: any of the peers, on any of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who.
    pub peers: Peers,
    /// What.
    pub ports: Ports,
}

/// Which version of an object this is, as the API server counts: `generation` grows with each change of the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    /// metadata.uid: another object of the same name has another.
    pub uid: Arc<str>,
    /// metadata.generation.
    pub generation: i64,
}

/// A NetworkPolicy, policyTypes resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: PolicyKey,
    /// Which version of the object it was read from; none in manifests. Says what is enforced, decides nothing.
    pub version: Option<ObjectVersion>,
    /// Which pods of the namespace it isolates.
    pub subjects: Selector,
    /// Rules if the policy isolates for ingress (an empty list lets nobody in); `None` if it does not.
    pub ingress: Option<Vec<Rule>>,
    /// The same for egress.
    pub egress: Option<Vec<Rule>>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the service.
    pub port: u16,
    /// NodePort, if any.
    pub node_port: Option<u16>,
    /// Port of the backends.
    pub target: TargetPort,
}

/// Which port of a backend a service's port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The one that the backend declares under this name.
    Named(Arc<str>),
}

/// A service: only its addresses matter to the datapath (egress to them is judged on the backend); what it selects is for
/// people who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// clusterIPs, externalIPs and load-balancer addresses in VIP mode.
    pub addresses: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its backends; none if somebody else says what they are.
    pub selector: Option<Labels>,
}

/// Any object the cluster state keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// A service.
    Service(Service),
}

/// Names an object of any kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectRef {
    /// A namespace by name.
    Namespace(Arc<str>),
    /// A pod.
    Pod(ObjectKey),
    /// A NetworkPolicy.
    NetworkPolicy(ObjectKey),
    /// A service.
    Service(ObjectKey),
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Pod(key) => write!(f, "Pod {key}"),
            Self::NetworkPolicy(key) => write!(f, "NetworkPolicy {key}"),
            Self::Service(key) => write!(f, "Service {key}"),
        }
    }
}

impl Object {
    /// The name of this object.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        match self {
            Self::Namespace(object) => ObjectRef::Namespace(object.name.clone()),
            Self::Pod(object) => ObjectRef::Pod(object.key.clone()),
            Self::NetworkPolicy(object) => ObjectRef::NetworkPolicy(object.key.clone()),
            Self::Service(object) => ObjectRef::Service(object.key.clone()),
        }
    }
}

/// What a source says: an object is so, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// Created or changed.
    Apply(Object),
    /// Gone.
    Delete(ObjectRef),
}
