//! The kinds that are followed, and what the API calls them.

use crate::cluster::model::{ObjectKey, ObjectRef};

/// A kind that policy depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Resource {
    NetworkPolicy,
    Namespace,
    Pod,
    Service,
}

impl Resource {
    /// In the order in which changes are given out.
    pub(super) const ALL: [Self; 4] = [Self::NetworkPolicy, Self::Namespace, Self::Pod, Self::Service];

    /// Where all objects of the kind are listed and watched.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::Namespace => "/api/v1/namespaces",
            Self::Pod => "/api/v1/pods",
            Self::Service => "/api/v1/services",
        }
    }

    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::Namespace | Self::Pod | Self::Service => "v1",
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
        }
    }

    /// The name that RBAC rules use.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networkpolicies",
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Service => "services",
        }
    }

    /// The API group as RBAC rules write it.
    pub(super) fn group(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io",
            Self::Namespace | Self::Pod | Self::Service => "",
        }
    }

    /// Names an object of the kind; a namespace's key is its name, twice.
    pub(super) fn reference(self, key: ObjectKey) -> ObjectRef {
        match self {
            Self::NetworkPolicy => ObjectRef::NetworkPolicy(key),
            Self::Namespace => ObjectRef::Namespace(key.name),
            Self::Pod => ObjectRef::Pod(key),
            Self::Service => ObjectRef::Service(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::AGENT;

    #[test]
    fn what_is_followed_may_be_listed_and_watched() {
        for kind in Resource::ALL {
            let row = AGENT.iter().find(|it| (it.group, it.resource) == (kind.group(), kind.plural()));
            let verbs = row.unwrap_or_else(|| panic!("no row for {}", kind.plural())).verbs;
            assert!(verbs.contains(&"list") && verbs.contains(&"watch"), "{}: {verbs:?}", kind.plural());
        }
    }
}
