//! What every judge of this crate is asked, and in which words: raw Kubernetes objects come in as [`Change`]s, a
//! [`Probe`] is one new connection, a [`Verdict`] is what each side says to it.
//!
//! No policy meaning here. Judges: [`crate::oracle::Oracle`] and the compiler with the classifier
//! ([`crate::replica::Replica`]).

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by a field that it lacks gives null")]

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// Namespace and name of a pod or policy; for a cluster-scoped object the namespace is empty.
pub type Name = (String, String);

/// `namespace/name` of an object's metadata.
#[must_use]
pub fn name_of(object: &Value) -> Name {
    let part = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (part("namespace"), part("name"))
}

/// The kind of an object, empty if it has none.
#[must_use]
pub fn kind_of(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// Something that happened to the cluster. Kinds: Namespace, Pod, NetworkPolicy and Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object is now so: created or replaced.
    Apply(Value),
    /// The object is gone.
    Delete {
        /// Kind of the object.
        kind: String,
        /// Its namespace and name.
        name: Name,
    },
}

/// Raw objects by kind and name: the simplest cluster there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects(pub BTreeMap<String, BTreeMap<Name, Value>>);

impl Objects {
    /// Carries out a change.
    pub fn change(&mut self, change: &Change) {
        match change {
            Change::Apply(object) => {
                self.0.entry(kind_of(object).to_owned()).or_default().insert(name_of(object), object.clone());
            }
            Change::Delete { kind, name } => {
                self.0.entry(kind.clone()).or_default().remove(name);
            }
        }
    }

    /// The objects of one kind.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = (&Name, &Value)> {
        self.0.get(kind).into_iter().flatten()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, kind: &str, name: &Name) -> Option<&Value> {
        self.0.get(kind)?.get(name)
    }

    /// Everything, kind by kind, as changes that build it from nothing: nodes and namespaces before what lives there.
    #[must_use]
    pub fn creation(&self) -> Vec<Change> {
        ["Node", "Namespace", "Pod", "NetworkPolicy"]
            .into_iter()
            .flat_map(|kind| self.of(kind).map(|(_, object)| Change::Apply(object.clone())))
            .collect()
    }
}

/// Protocol of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP: a SYN.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: an INIT.
    Sctp,
    /// ICMP or ICMPv6 echo request, for "every protocol"; the port means nothing.
    Icmp,
}

impl Protocol {
    /// The name that Kubernetes uses, `ICMP` for the one that it does not know.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        }
    }

    /// The protocol of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp].into_iter().find(|protocol| protocol.name() == name)
    }
}

/// One end of a probe: an address, and the pod that sits behind it, if one does. Nodes and outside hosts are bare
/// addresses; a hostNetwork pod sits behind its node's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// Address in the packet.
    pub address: IpAddr,
    /// The pod.
    pub pod: Option<Name>,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some((namespace, name)) => write!(f, "{namespace}/{name} ({})", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// One new connection: its first packet. Both addresses are of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Who connects.
    pub source: Side,
    /// To whom.
    pub destination: Side,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}/{}", self.source, self.destination, self.protocol.name(), self.port)
    }
}

/// What each side says. A side that is no pod (or no pod that policy acts on) lets everything through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The destination lets it in.
    pub ingress: bool,
    /// The source lets it out.
    pub egress: bool,
}

impl Verdict {
    /// Whether the connection comes to be.
    #[must_use]
    pub const fn allowed(self) -> bool {
        self.ingress && self.egress
    }
}

/// Someone who keeps a cluster up to date and says what may connect in it.
pub trait Judge {
    /// Takes changes in, in order, and settles.
    ///
    /// # Errors
    /// An object that this judge cannot take: test inputs are legal, so the test must fail.
    fn change(&mut self, changes: &[Change]) -> anyhow::Result<()>;

    /// Judges one connection in the cluster as it is now; it leaves no trace that a later probe could meet.
    ///
    /// # Errors
    /// A probe that makes no sense in this cluster.
    fn verdict(&mut self, probe: &Probe) -> anyhow::Result<Verdict>;
}
