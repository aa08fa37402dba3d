//! The pods of a case's cluster as pods of a real one, and what of them changes from step to step.
//!
//! Pods are made once for all cases of a cluster: a case changes labels and policies, and nothing else. Everything that is
//! made has the label [`MARK`], and goes with its namespace. A namespace that is there already (`kube-system`) is borrowed: it
//! stays, and pods in it are never ready, as a service of the cluster's own that selects one would send its clients there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::prober::PROGRAM;
use super::{By, Kubectl};
use crate::conformance::datapath::ports_of;
use crate::conformance::select::Work;
use crate::judge::{Name, Objects, Protocol};
use crate::npconf::{ClusterSpec, Plan};

/// On every namespace and pod of ours.
const MARK: (&str, &str) = ("netpol.test/conformance", "true");
const MARKED: &str = "netpol.test/conformance=true";
/// Tells the pod of a service: its name.
const BEHIND: &str = "netpol.test/pod";
/// The label that the API server keeps on every namespace.
const OWN_NAME: &str = "kubernetes.io/metadata.name";
/// Nobody ever says that this is so.
const NEVER: &str = "netpol.test/never";

/// Pods that stand ready for cases of one cluster.
pub(super) struct Stage<'a> {
    suite: &'a str,
    cluster: &'a str,
    spec: &'a ClusterSpec,
    plan: Plan,
    /// Labels of pods and namespaces (with an empty namespace) as they are now.
    labels: BTreeMap<Name, Value>,
    policies: BTreeMap<Name, Value>,
    borrowed: BTreeSet<String>,
    services: BTreeMap<Name, IpAddr>,
}

impl<'a> Stage<'a> {
    /// Makes namespaces and pods, and a service for each pod if it is to be asked by one; waits until each has an address.
    pub(super) fn set(work: &Work<'a>, kubectl: &impl Kubectl, image: &str, by: By) -> Result<Self> {
        let (suite, case, spec) = (work.suite, work.case, work.cluster()?);
        let borrowed = borrowed(spec, kubectl)?;
        let mut objects = objects(work, image, &borrowed)?;
        if by == By::ServiceIp {
            objects.extend(services(work)?);
        }
        kubectl
            .run(&["apply", "-f", "-"], &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        let (mut plan, mut services) = (Plan::new(), BTreeMap::new());
        let with_pods: BTreeSet<String> = spec.pods.iter().filter_map(|it| Some(name(&it.pod)?.0)).collect();
        // kubectl refuses to wait for nothing.
        for namespace in &with_pods {
            let ready = "--for=condition=ContainersReady";
            kubectl.run(&["wait", "-n", namespace, ready, "pod", "-l", MARKED, "--timeout=180s"], "")?;
            let list = |kind| -> Result<Value> {
                Ok(serde_json::from_str(
                    &kubectl.run(&["get", kind, "-n", namespace, "-l", MARKED, "-o", "json"], "")?,
                )?)
            };
            for (name, address) in addresses(&list("pods")?, "/status/podIP")? {
                plan.insert(format!("{}/{}", name.0, name.1), address);
            }
            if by == By::ServiceIp {
                services.extend(addresses(&list("services")?, "/spec/clusterIP")?);
            }
        }
        // Nobody asks these, and descriptions of clusters want an address for each.
        for (number, external) in (1..).zip(&spec.externals) {
            plan.insert(external.name.clone(), Ipv4Addr::new(192, 0, 2, number).into());
        }
        ensure!(
            spec.pods.iter().all(|pod| plan.contains_key(&pod.pod)),
            "not every pod of {} has an address",
            case.cluster
        );
        let pods = spec.pods.iter().filter_map(|pod| Some((name(&pod.pod)?, json!(pod.labels))));
        let namespaces = spec.namespaces.iter().map(|(it, labels)| {
            // Of a borrowed one this label is sure to be there, and no other is.
            let sure = labels.iter().filter(|(label, _)| !borrowed.contains(it) || *label == OWN_NAME);
            ((String::new(), it.clone()), json!(sure.collect::<BTreeMap<_, _>>()))
        });
        let labels = pods.chain(namespaces).collect();
        let (suite, cluster) = (&suite.suite, &case.cluster);
        Ok(Self { suite, cluster, spec, plan, labels, policies: BTreeMap::new(), borrowed, services })
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

    /// Services' addresses by the pod behind each; none if pods are asked by their own.
    pub(super) fn services(&self) -> &BTreeMap<Name, IpAddr> {
        &self.services
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
        for namespace in &self.borrowed {
            for (_, policy) in self.policies.keys().filter(|(of, _)| of == namespace) {
                kubectl.run(&["delete", "networkpolicy", "-n", namespace, policy], "")?;
            }
            let ours = ["delete", "pods,services", "-n", namespace, "-l", MARKED, "--wait=true", "--timeout=180s"];
            kubectl.run(&ours, "")?;
            let labels = self.labels.get(&(String::new(), namespace.clone())).and_then(Value::as_object);
            let lent = labels.into_iter().flatten().map(|(label, _)| label).filter(|it| *it != OWN_NAME);
            let lent: BTreeMap<&String, Value> = lent.map(|label| (label, Value::Null)).collect();
            if !lent.is_empty() {
                let patch = json!({"metadata": {"labels": lent}}).to_string();
                kubectl.run(&["patch", "Namespace", namespace, "--type=merge", "-p", &patch], "")?;
            }
        }
        let own = self.spec.namespaces.keys().filter(|it| !self.borrowed.contains(*it));
        let own: Vec<&str> = own.map(String::as_str).collect();
        if own.is_empty() {
            return Ok(());
        }
        let command = [&["delete", "namespace", "--wait=true", "--timeout=180s"], own.as_slice()].concat();
        kubectl.run(&command, "").map(drop)
    }
}

/// Namespaces of a case that the cluster has already, and that are not left from a run before.
fn borrowed(spec: &ClusterSpec, kubectl: &impl Kubectl) -> Result<BTreeSet<String>> {
    let there = kubectl.run(&["get", "namespaces", "-l", &format!("{}!={}", MARK.0, MARK.1), "-o", "json"], "")?;
    let there: Value = serde_json::from_str(&there)?;
    let names = there.get("items").and_then(Value::as_array).context("no list of namespaces")?;
    let names = names.iter().filter_map(|it| it.pointer("/metadata/name")?.as_str().map(str::to_owned));
    Ok(names.filter(|it| spec.namespaces.contains_key(it)).collect())
}

/// Namespaces and pods of a case's cluster; each pod serves every port that any of its cases asks for.
fn objects(work: &Work<'_>, image: &str, borrowed: &BTreeSet<String>) -> Result<Vec<Value>> {
    let spec = work.cluster()?;
    let ports = ports_of(work)?;
    let of = |wanted: Protocol| ports.iter().filter(move |(protocol, _)| *protocol == wanted).map(|(_, port)| *port);
    let served = |pod: &crate::npconf::PodSpec, protocol: Protocol| {
        let own = pod.ports.iter().filter(move |it| it.protocol == protocol.name()).map(|it| it.port);
        let all: BTreeSet<u16> = own.chain(of(protocol)).collect();
        all.into_iter().map(|port| port.to_string()).collect::<Vec<_>>().join(",")
    };
    let mut objects = Vec::new();
    for (namespace, labels) in spec.namespaces.iter().filter(|(it, _)| !borrowed.contains(*it)) {
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
        let gates: Vec<Value> =
            if borrowed.contains(&namespace) { vec![json!({"conditionType": NEVER})] } else { vec![] };
        let mut labels = pod.labels.clone();
        labels.extend([MARK, (BEHIND, name.as_str())].map(|(label, value)| (label.to_owned(), value.to_owned())));
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 0, "readinessGates": gates,
                "containers": [{
                    "name": "prober", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": [PROGRAM], "args": args, "ports": ports,
                }],
            },
        }));
    }
    Ok(objects)
}

/// A service for each pod, of its name and with every port that is asked for.
fn services(work: &Work<'_>) -> Result<Vec<Value>> {
    let ports: Vec<Value> = ports_of(work)?
        .into_iter()
        .filter(|(protocol, _)| matches!(protocol, Protocol::Tcp | Protocol::Udp))
        .map(|(protocol, port)| {
            let name = format!("{}-{port}", protocol.name().to_lowercase());
            json!({"name": name, "protocol": protocol.name(), "port": port})
        })
        .collect();
    let service = |pod: &str| {
        let (namespace, name) = name(pod).with_context(|| format!("no namespace/pod: {pod}"))?;
        Ok(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": name, "labels": {MARK.0: MARK.1}},
            "spec": {"selector": {BEHIND: name}, "ports": ports, "publishNotReadyAddresses": true},
        }))
    };
    work.cluster()?.pods.iter().map(|it| service(&it.pod)).collect()
}

/// Addresses at a place of each object of a list, by its name.
fn addresses(list: &Value, pointer: &str) -> Result<BTreeMap<Name, IpAddr>> {
    let items = list.get("items").and_then(Value::as_array).context("no list")?;
    let mut found = BTreeMap::new();
    for item in items {
        let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let (Some(namespace), Some(name)) = (namespace, name) else { continue };
        let address = text(pointer).with_context(|| format!("{namespace}/{name} has no address"))?.parse()?;
        found.insert((namespace.to_owned(), name.to_owned()), address);
    }
    Ok(found)
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
