//! Bytes of the API server -> objects, cut down while they are parsed to the fields that `decode` reads.
//!
//! A pod on the wire has several kilobytes; what is not named here is skipped and never stored. So fields that a newer API
//! server adds to pods, services and namespaces are not even seen. NetworkPolicies keep their whole `spec`, as an unknown
//! field in a rule narrows it. Pure.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::resource::Resource;
use crate::cluster::model::{Object, ObjectKey};
use crate::problem::{Problem, Severity};
use crate::source::decode::{Outcome, decode_value};

/// How problems call the API server.
pub(super) const ORIGIN: &str = "api-server";

/// An event of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'l> {
    #[serde(rename = "type")]
    pub(super) event: &'l str,
    #[serde(borrow)]
    pub(super) object: &'l RawValue,
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'p> {
    pub(super) metadata: PageMeta,
    /// There in every list: an answer without is none, and taken for an empty list it would delete all that is known. An empty
    /// one may be null, as Go writes a slice that nobody made.
    #[serde(borrow, deserialize_with = "Option::deserialize")]
    pub(super) items: Option<Vec<&'p RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// What an error answer or an ERROR event says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) code: u16,
}

/// A bookmark: a version up to which everything was sent.
#[derive(Deserialize)]
pub(super) struct Bookmark {
    pub(super) metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BookmarkMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default)]
    annotations: Option<BookmarkAnnotations>,
}

#[derive(Deserialize)]
struct BookmarkAnnotations {
    #[serde(default, rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<String>,
}

impl Bookmark {
    /// True for the bookmark that ends the initial events of a streaming list.
    pub(super) fn ends_initial_events(&self) -> bool {
        let annotation = self.metadata.annotations.as_ref().and_then(|all| all.initial_events_end.as_deref());
        annotation == Some("true")
    }
}

/// An object as it came, trimmed; `decode` makes it one of the model, or says what is wrong with it.
pub(super) struct Cut {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    pub(super) resource_version: String,
    body: Body,
}

/// What became of an object.
pub(super) struct Decoded {
    /// `None` if nothing can be made of it.
    pub(super) object: Option<Object>,
    pub(super) problems: Vec<Problem>,
}

enum Body {
    Pod(Pod),
    Namespace(Namespace),
    NetworkPolicy(NetworkPolicy),
    Service(Service),
    /// Not of the type that it should be; `decode` finds out why.
    Odd(Value),
}

impl Cut {
    /// Reads an object.
    ///
    /// # Errors
    /// If this is not JSON, or has no name.
    pub(super) fn read(resource: Resource, json: &str) -> Result<Self, serde_json::Error> {
        let typed = match resource {
            Resource::Pod => typed(json, |pod: &mut Pod| &mut pod.metadata, Body::Pod),
            Resource::Namespace => typed(json, |namespace: &mut Namespace| &mut namespace.metadata, Body::Namespace),
            Resource::Service => typed(json, |service: &mut Service| &mut service.metadata, Body::Service),
            Resource::NetworkPolicy => {
                typed(json, |policy: &mut NetworkPolicy| &mut policy.metadata, Body::NetworkPolicy)
            }
        };
        let (meta, body) = match typed {
            Ok(found) => found,
            Err(_mismatch) => {
                let Named { metadata } = serde_json::from_str(json)?;
                (metadata, Body::Odd(serde_json::from_str(json)?))
            }
        };
        let Named { metadata: NameMeta { name, namespace, uid, resource_version } } = Named { metadata: meta };
        let namespace = if resource == Resource::Namespace { &name } else { &namespace };
        let key = ObjectKey::new(namespace, &name);
        Ok(Self { key, uid, resource_version, body })
    }

    /// The object in the model.
    pub(super) fn decode(self, resource: Resource) -> Decoded {
        let value = match self.body {
            Body::Pod(pod) => serde_json::to_value(pod),
            Body::Namespace(namespace) => serde_json::to_value(namespace),
            Body::NetworkPolicy(policy) => serde_json::to_value(policy),
            Body::Service(service) => serde_json::to_value(service),
            Body::Odd(value) => Ok(value),
        };
        let value = match value {
            Ok(Value::Object(mut fields)) => {
                // Items of a list do not say what they are.
                fields.insert("apiVersion".to_owned(), resource.api_version().into());
                fields.insert("kind".to_owned(), resource.kind().into());
                Value::Object(fields)
            }
            Ok(other) => other,
            Err(_never) => Value::Null,
        };
        let mut decoded = Decoded { object: None, problems: Vec::new() };
        for item in decode_value(ORIGIN, &value).items {
            decoded.problems.extend(item.problems);
            if let Outcome::Taken(object) | Outcome::Narrowed(object) = item.outcome {
                decoded.object = Some(object);
            }
        }
        // A pod without an address yet is no news of a cluster that lives; nor is what a newer API adds.
        if resource != Resource::NetworkPolicy {
            decoded.problems.retain(|problem| problem.severity == Severity::Refused);
        }
        decoded
    }
}

fn typed<T: DeserializeOwned>(
    json: &str,
    meta: fn(&mut T) -> &mut Meta,
    body: fn(T) -> Body,
) -> Result<(NameMeta, Body), serde_json::Error> {
    let mut object: T = serde_json::from_str(json)?;
    let Meta { name, namespace, uid, resource_version, .. } = meta(&mut object);
    let named = NameMeta {
        name: name.clone(),
        namespace: namespace.clone().unwrap_or_default(),
        uid: uid.clone().unwrap_or_default(),
        resource_version: std::mem::take(resource_version),
    };
    Ok((named, body(object)))
}

/// The name and version of an object that is odd otherwise.
#[derive(Deserialize)]
struct Named {
    metadata: NameMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NameMeta {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(default, skip_serializing)]
    resource_version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generate_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner_references: Option<Vec<Owner>>,
}

#[derive(Deserialize, Serialize)]
struct Owner {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controller: Option<bool>,
}

#[derive(Deserialize, Serialize)]
struct Annotations {
    #[serde(default, rename = "kubernetes.io/config.hash", skip_serializing_if = "Option::is_none")]
    config_hash: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Namespace {
    metadata: Meta,
}

/// Everything a policy says, whatever it is; only what the API server keeps in metadata is left out.
#[derive(Deserialize, Serialize)]
struct NetworkPolicy {
    metadata: Meta,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Serialize)]
struct Pod {
    metadata: Meta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_network: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<Vec<Container>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    /// Required by the type that this is read as.
    #[serde(default)]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    container_port: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize, Serialize)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize, Serialize)]
struct Service {
    metadata: Meta,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_: Option<String>,
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", skip_serializing_if = "Option::is_none")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs", skip_serializing_if = "Option::is_none")]
    external_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<ServicePort>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    port: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize, Serialize)]
struct LoadBalancer {
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_mode: Option<String>,
}
