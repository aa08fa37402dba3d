//! Everything that the rules of local policies can ask of a peer, numbered.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::cluster::model::{IpBlock, Labels, Pod, Protocol, Selector};

/// Number of a [`Criterion`], never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CriterionId(u64);

/// Which namespaces the pods are in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Namespaces {
    /// This one: that of the policy.
    Named(Arc<str>),
    /// Those with matching labels.
    Matching(Selector),
}

/// Something that a rule can ask of a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Criterion {
    /// Is a pod that these selectors match.
    Pods { namespaces: Namespaces, pods: Selector },
    /// Is an address in the block.
    Block(IpBlock),
    /// Which number has this port name? Never part of a signature; its answers, `NamedPort`, are.
    PortName { name: Arc<str>, protocol: Protocol },
    /// Is a pod that declares this number under this name.
    NamedPort { name: Arc<str>, protocol: Protocol, port: u16 },
}

impl Namespaces {
    pub(super) fn matches(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Named(named) => **named == *name,
            Self::Matching(selector) => selector.matches(labels),
        }
    }
}

/// The number under which a pod declares a port name for a protocol: the first, as for a service's targetPort.
pub(super) fn named_port(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    let found = pod.named_ports.iter().find(|port| *port.name == *name && port.protocol == protocol)?;
    Some(found.port)
}

struct Entry {
    criterion: Arc<Criterion>,
    /// Contents that ask it.
    uses: usize,
}

/// All criteria of live contents.
#[derive(Default)]
pub(super) struct Criteria {
    ids: BTreeMap<Arc<Criterion>, CriterionId>,
    entries: BTreeMap<CriterionId, Entry>,
    last: u64,
}

impl Criteria {
    /// The number of a criterion; a new one is not in use yet.
    pub(super) fn intern(&mut self, criterion: Criterion) -> CriterionId {
        if let Some(id) = self.ids.get(&criterion) {
            return *id;
        }
        self.last += 1;
        let (id, criterion) = (CriterionId(self.last), Arc::new(criterion));
        self.ids.insert(criterion.clone(), id);
        self.entries.insert(id, Entry { criterion, uses: 0 });
        id
    }

    pub(super) fn get(&self, id: CriterionId) -> Option<&Arc<Criterion>> {
        self.entries.get(&id).map(|entry| &entry.criterion)
    }

    /// Counts a use; true if it is the first.
    pub(super) fn acquire(&mut self, id: CriterionId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.uses += 1;
        entry.uses == 1
    }

    /// Ends a use; true if it was the last. The criterion stays known until it is forgotten.
    pub(super) fn release(&mut self, id: CriterionId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.uses = entry.uses.saturating_sub(1);
        entry.uses == 0
    }

    /// Forgets a criterion that nobody uses.
    pub(super) fn forget(&mut self, id: CriterionId) {
        if self.entries.get(&id).is_some_and(|entry| entry.uses == 0)
            && let Some(entry) = self.entries.remove(&id)
        {
            self.ids.remove(&entry.criterion);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods { namespaces: Namespaces::Named(name), pods } => {
                write!(f, "pods {pods} in namespace {name}")
            }
            Self::Pods { namespaces: Namespaces::Matching(selector), pods } => {
                write!(f, "pods {pods} in namespaces {selector}")
            }
            Self::Block(block) if block.except.is_empty() => write!(f, "ipBlock {}", block.cidr),
            Self::Block(block) => {
                let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
                write!(f, "ipBlock {} except {}", block.cidr, except.join(", "))
            }
            Self::PortName { name, protocol } => write!(f, "port name {name}/{protocol:?}"),
            Self::NamedPort { name, protocol, port } => write!(f, "port {name}={port}/{protocol:?}"),
        }
    }
}
