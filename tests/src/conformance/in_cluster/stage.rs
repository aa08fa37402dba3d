//! The pods of a case's cluster as pods of a real one, and what of them changes from step to step.
//!
//! Pods are made once for all cases of a cluster: a case changes labels and policies, and nothing else. Everything that is
//! made has the label [`MARK`], and goes with its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Kubectl;
use super::prober::PROGRAM;
use crate::conformance::datapath::ports_of;
use crate::conformance::select::Work;
use crate::judge::{Name, Objects, Protocol};
use crate::npconf::{ClusterSpec, Plan};

/// On every namespace of ours.
const MARK: (&str, &str) = ("netpol.test/conformance", "true");

/// Pods that stand ready for cases of one cluster.
pub(super) struct Stage<'a> {
    suite: &'a str,
    cluster: &'a str,
    spec: &'a ClusterSpec,
    plan: Plan,
    /// Labels of pods and namespaces (with an empty namespace) as they are now.
    labels: BTreeMap<Name, Value>,
    policies: BTreeMap<Name, Value>,
}

impl<'a> Stage<'a> {
    /// Makes namespaces and pods, and waits until each has an address.
    pub(super) fn set(work: &Work<'a>, kubectl: &impl Kubectl, image: &str) -> Result<Self> {
        let (suite, case, spec) = (work.suite, work.case, work.cluster()?);
        let objects = objects(work, image)?;
        kubectl
            .run(&["apply", "-f", "-"], &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        let mut plan = Plan::new();
        for namespace in spec.namespaces.keys() {
            let ready = ["wait", "-n", namespace, "--for=condition=Ready", "pod", "--all", "--timeout=180s"];
            kubectl.run(&ready, "")?;
            let pods: Value = serde_json::from_str(&kubectl.run(&["get", "pods", "-n", namespace, "-o", "json"], "")?)?;
            plan.extend(addresses(&pods)?);
        }
        ensure!(
            spec.pods.iter().all(|pod| plan.contains_key(&pod.pod)),
            "not every pod of {} has an address",
            case.cluster
        );
        let pods = spec.pods.iter().filter_map(|pod| Some((name(&pod.pod)?, json!(pod.labels))));
        let namespaces = spec.namespaces.iter().map(|(it, labels)| ((String::new(), it.clone()), json!(labels)));
        let labels = pods.chain(namespaces).collect();
        Ok(Self { suite: &suite.suite, cluster: &case.cluster, spec, plan, labels, policies: BTreeMap::new() })
    }

    /// True if the pods are those that a case wants.
    pub(super) fn is_for(&self, work: &Work<'_>) -> Result<bool> {
        let _spec = work.cluster()?;
        Ok((self.suite, self.cluster) == (work.suite.suite.as_str(), work.case.cluster.as_str()))
    }

    /// The addresses that the cluster gave.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Makes labels and policies be what the objects say.
    pub(super) fn become_like(&mut self, objects: &Objects, kubectl: &impl Kubectl) -> Result<()> {
        for kind in ["Namespace", "Pod"] {
            for ((namespace, name), object) in objects.of(kind) {
                let key = (namespace.clone(), name.clone());
                let wanted = object.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
                let Some(patch) = self.labels.get(&key).and_then(|now| label_patch(now, &wanted)) else { continue };
                let patch = json!({"metadata": {"labels": patch}}).to_string();
                let of = if namespace.is_empty() { vec![] } else { vec!["-n", namespace.as_str()] };
                let command = [&["patch"], of.as_slice(), &[kind, name, "--type=merge", "-p", &patch]].concat();
                kubectl.run(&command, "")?;
                self.labels.insert(key, wanted);
            }
        }
        let wanted: BTreeMap<Name, Value> =
            objects.of("NetworkPolicy").map(|(name, policy)| (name.clone(), policy.clone())).collect();
        for (namespace, name) in self.policies.keys().filter(|it| !wanted.contains_key(it)) {
            kubectl.run(&["delete", "networkpolicy", "-n", namespace, name], "")?;
        }
        let changed: Vec<&Value> =
            wanted.iter().filter(|(name, policy)| self.policies.get(*name) != Some(*policy)).map(|it| it.1).collect();
        if !changed.is_empty() {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": changed});
            kubectl.run(&["apply", "-f", "-"], &list.to_string())?;
        }
        self.policies = wanted;
        Ok(())
    }

    /// Takes everything away, and waits until it is gone.
    pub(super) fn strike(self, kubectl: &impl Kubectl) -> Result<()> {
        let namespaces: Vec<&str> = self.spec.namespaces.keys().map(String::as_str).collect();
        let command = [&["delete", "namespace", "--wait=true", "--timeout=180s"], namespaces.as_slice()].concat();
        kubectl.run(&command, "").map(drop)
    }
}

/// Namespaces and pods of a case's cluster; each pod serves every port that any of its cases asks for.
fn objects(work: &Work<'_>, image: &str) -> Result<Vec<Value>> {
    let spec = work.cluster()?;
    let ports = ports_of(work)?;
    let of = |wanted: Protocol| ports.iter().filter(move |(protocol, _)| *protocol == wanted).map(|(_, port)| *port);
    let served = |pod: &crate::npconf::PodSpec, protocol: Protocol| {
        let own = pod.ports.iter().filter(move |it| it.protocol == protocol.name()).map(|it| it.port);
        let all: BTreeSet<u16> = own.chain(of(protocol)).collect();
        all.into_iter().map(|port| port.to_string()).collect::<Vec<_>>().join(",")
    };
    let mut objects = Vec::new();
    for (namespace, labels) in &spec.namespaces {
        let mut labels = labels.clone();
        labels.insert(MARK.0.to_owned(), MARK.1.to_owned());
        objects
            .push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
    }
    for pod in &spec.pods {
        let (namespace, name) = name(&pod.pod).with_context(|| format!("no namespace/pod: {}", pod.pod))?;
        let mut args = vec!["prober".to_owned(), "serve".to_owned(), format!("--name={}", pod.pod)];
        for (flag, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)] {
            let ports = served(pod, protocol);
            args.extend(Some(format!("--{flag}={ports}")).filter(|_| !ports.is_empty()));
        }
        let ports: Vec<Value> = pod
            .ports
            .iter()
            .map(|it| match &it.name {
                Some(name) => json!({"name": name, "containerPort": it.port, "protocol": it.protocol}),
                None => json!({"containerPort": it.port, "protocol": it.protocol}),
            })
            .collect();
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": pod.labels},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "prober", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": [PROGRAM], "args": args, "ports": ports,
                }],
            },
        }));
    }
    Ok(objects)
}

/// `namespace/pod` to address, of a list of pods.
fn addresses(pods: &Value) -> Result<Plan> {
    let items = pods.get("items").and_then(Value::as_array).context("no list of pods")?;
    let mut plan = Plan::new();
    for pod in items {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let (Some(namespace), Some(name)) = (namespace, name) else { continue };
        let address: IpAddr =
            text("/status/podIP").with_context(|| format!("{namespace}/{name} has no address"))?.parse()?;
        plan.insert(format!("{namespace}/{name}"), address);
    }
    Ok(plan)
}

/// What to change of labels; none if nothing. A label of ours that is no longer wanted becomes null.
fn label_patch(now: &Value, wanted: &Value) -> Option<Value> {
    if now == wanted {
        return None;
    }
    let mut patch = wanted.as_object()?.clone();
    for gone in now.as_object()?.keys().filter(|key| wanted.get(key.as_str()).is_none()) {
        patch.insert(gone.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

fn name(text: &str) -> Option<Name> {
    let (namespace, name) = text.split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}
