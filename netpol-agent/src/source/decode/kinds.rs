//! Which kinds of object there are, and what to do with each: taken, a list of others, known and not needed, unknown.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use kube::core::TypeMeta;

/// The kinds that policy depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Namespace,
    Pod,
    NetworkPolicy,
    Service,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Namespace, Self::Pod, Self::NetworkPolicy, Self::Service];

    /// Name and version of the kind, from the API's own types.
    pub(super) fn type_meta(self) -> TypeMeta {
        match self {
            Self::Namespace => TypeMeta::resource::<core::Namespace>(),
            Self::Pod => TypeMeta::resource::<core::Pod>(),
            Self::NetworkPolicy => TypeMeta::resource::<networking::NetworkPolicy>(),
            Self::Service => TypeMeta::resource::<core::Service>(),
        }
    }

    /// The type of a list of this kind.
    fn list_meta(self) -> TypeMeta {
        let TypeMeta { api_version, kind } = self.type_meta();
        TypeMeta { api_version, kind: format!("{kind}List") }
    }

    /// The kind as written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
        }
    }
}

/// What an object's type says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// An object to take.
    Object(Kind),
    /// A list; its items are of this kind where they do not say (a plain `List` has no kind).
    List(Option<Kind>),
    /// One of ours, or a list of them, in a version that is not understood.
    OtherVersion(Kind),
    /// Kubernetes' own or well known, and of no use here.
    NotNeeded,
    /// A policy that is not enforced by this agent.
    OtherPolicy,
    /// Anything else.
    Unknown,
}

/// Sorts an object by its type.
pub(super) fn classify(meta: &TypeMeta) -> Class {
    if meta.kind == "List" && meta.api_version == "v1" {
        return Class::List(None);
    }
    for kind in Kind::ALL {
        if *meta == kind.type_meta() {
            return Class::Object(kind);
        }
        if *meta == kind.list_meta() {
            return Class::List(Some(kind));
        }
    }
    let bare = meta.kind.strip_suffix("List").unwrap_or(&meta.kind);
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == bare) {
        return Class::OtherVersion(kind);
    }
    if OTHER_POLICIES.contains(&bare) {
        Class::OtherPolicy
    } else if NOT_NEEDED.contains(&bare) {
        Class::NotNeeded
    } else {
        Class::Unknown
    }
}

/// Names for suggestions.
pub(super) const OURS: [&str; 5] = ["NetworkPolicy", "Pod", "Namespace", "Service", "List"];

const OTHER_POLICIES: [&str; 8] = [
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
    "CiliumNetworkPolicy",
    "ClusterNetworkPolicy",
    "GlobalNetworkPolicy",
    "MultiNetworkPolicy",
    "StagedNetworkPolicy",
];

const NOT_NEEDED: [&str; 52] = [
    "APIService",
    "Certificate",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ComponentStatus",
    "ConfigMap",
    "ControllerRevision",
    "CronJob",
    "CSIDriver",
    "CSINode",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "Endpoints",
    "EndpointSlice",
    "Event",
    "Gateway",
    "GatewayClass",
    "HorizontalPodAutoscaler",
    "HTTPRoute",
    "Ingress",
    "IngressClass",
    "IPAddress",
    "Issuer",
    "Job",
    "Kustomization",
    "Lease",
    "LimitRange",
    "MutatingWebhookConfiguration",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PodMonitor",
    "PodTemplate",
    "PriorityClass",
    "PrometheusRule",
    "ReplicaSet",
    "ReplicationController",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "RuntimeClass",
    "Secret",
    "ServiceAccount",
    "ServiceCIDR",
    "ServiceMonitor",
    "StatefulSet",
    "StorageClass",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];
