//! Walks the cases of a suite: keeps the cluster of each case as raw objects, tells a judge what changes, and compares
//! what it says with the tables.
//!
//! In: a [`Suite`] and a way to make judges. Out: a [`Report`] of compared and differing [`Cell`]s. Nothing here knows what
//! a policy means.

#![expect(clippy::indexing_slicing, reason = "`Suite::read` checks every name; JSON objects are those built here")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::judge::{Change, Judge, Name, Objects, Probe, Protocol, Side, Verdict};
use crate::npconf::{Action, Case, ClusterSpec, Labels, Plan, PodSpec, ServedPort, Step, Suite, fill_in};

/// One statement of a suite, and what the judge said instead.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Case, step and plan.
    pub place: String,
    /// The connection.
    pub probe: Probe,
    /// What the suite states of the connection as a whole.
    pub allow: Option<bool>,
    /// What it states of the destination's side.
    pub ingress: Option<bool>,
    /// What it states of the source's side.
    pub egress: Option<bool>,
    /// What the judge said.
    pub verdict: Verdict,
}

impl Cell {
    /// Whether the judge disagrees on whether the connection comes to be.
    #[must_use]
    pub fn connects_wrongly(&self) -> bool {
        self.allow.is_some_and(|allow| allow != self.verdict.allowed())
    }

    /// Whether the judge disagrees with anything that is stated.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.connects_wrongly()
            || self.ingress.is_some_and(|ingress| ingress != self.verdict.ingress)
            || self.egress.is_some_and(|egress| egress != self.verdict.egress)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |value: Option<bool>| match value {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        write!(
            f,
            "{}: {}: stated allow {} ingress {} egress {}, judged allow {} ingress {} egress {}",
            self.place,
            self.probe,
            say(self.allow),
            say(self.ingress),
            say(self.egress),
            say(Some(self.verdict.allowed())),
            say(Some(self.verdict.ingress)),
            say(Some(self.verdict.egress)),
        )
    }
}

/// What became of a suite.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases walked.
    pub cases: usize,
    /// Cells compared.
    pub compared: usize,
    /// Cells in which the judge differs.
    pub differing: Vec<Cell>,
}

impl Report {
    /// Fails with the first differing cells.
    ///
    /// # Errors
    /// The judge differs somewhere, or nothing was compared.
    pub fn require_agreement(&self, suite: &str) -> anyhow::Result<()> {
        ensure!(self.compared > 0, "{suite}: nothing was compared");
        let shown: Vec<String> = self.differing.iter().take(20).map(ToString::to_string).collect();
        ensure!(
            self.differing.is_empty(),
            "{suite}: {} of {} cells differ:\n{}",
            self.differing.len(),
            self.compared,
            shown.join("\n")
        );
        Ok(())
    }
}

/// Walks every case of a suite under each of its plans that `wanted` takes, with a fresh judge each time.
///
/// # Errors
/// The suite is not consistent, or the judge cannot take an object.
pub fn walk<J: Judge>(
    suite: &Suite,
    wanted: impl Fn(&Case, &str) -> bool,
    judge: impl Fn() -> J,
) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for case in &suite.cases {
        let plans: Vec<&str> = suite.plans_of(case).into_iter().filter(|plan| wanted(case, plan)).collect();
        report.cases += usize::from(!plans.is_empty());
        for plan in plans {
            let world = World::new(&suite.clusters[&case.cluster], &suite.ip_plans[plan])?;
            world.walk(case, plan, &mut judge(), &mut report).with_context(|| format!("{} under {plan}", case.id))?;
        }
    }
    Ok(report)
}

/// The cluster of one case under one plan, and what has changed in it since it was last asked.
pub(crate) struct World<'a> {
    plan: &'a Plan,
    /// Ports of a pod that is created without any.
    default_ports: Vec<ServedPort>,
    objects: Objects,
    /// Changes that the judge has not been told of.
    untold: Vec<Change>,
}

impl<'a> World<'a> {
    /// The cluster before the first step.
    pub(crate) fn new(cluster: &ClusterSpec, plan: &'a Plan) -> anyhow::Result<Self> {
        let default_ports = cluster.pods.first().map(|pod| pod.ports.clone()).unwrap_or_default();
        let mut world = Self { plan, default_ports, objects: Objects::default(), untold: Vec::new() };
        let mut nodes: BTreeMap<String, IpAddr> = BTreeMap::new();
        for external in cluster.externals.iter().filter(|external| external.kind == "node") {
            nodes.insert(bare_node_name(&external.name), world.address(&external.name)?);
        }
        // A case that does not say where its pods run gets one node for each /24 (IPv6: /64), as in the split plans.
        let is_pod = |name: &str| cluster.externals.iter().all(|external| external.name != name);
        let pods = plan.iter().filter(|(name, _)| is_pod(name)).map(|(_, address)| *address);
        for address in pods.filter(|_| nodes.is_empty()).collect::<BTreeSet<_>>() {
            let (name, node) = node_around(address);
            nodes.insert(name, node);
        }
        for (name, address) in &nodes {
            let addresses = json!([{ "type": "InternalIP", "address": address }]);
            world.apply(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "status": { "addresses": addresses } }));
        }
        for (name, labels) in &cluster.namespaces {
            world.apply(namespace_object(name, labels));
        }
        for pod in &cluster.pods {
            world.create_pod(pod, &pod.pod)?;
        }
        Ok(world)
    }

    fn walk(mut self, case: &Case, plan: &str, judge: &mut impl Judge, report: &mut Report) -> anyhow::Result<()> {
        for (number, step) in case.steps.iter().enumerate() {
            judge.change(&self.enact(step)?)?;
            let place = format!("{} step {} under {plan}", case.id, number + 1);
            for mut cell in self.cells(step, plan, &place)? {
                cell.verdict = judge.verdict(&cell.probe)?;
                report.compared += 1;
                if cell.differs() {
                    report.differing.push(cell);
                }
            }
        }
        Ok(())
    }

    /// Carries out a step's actions; returns all that changed since this was asked last.
    pub(crate) fn enact(&mut self, step: &Step) -> anyhow::Result<Vec<Change>> {
        step.actions.iter().try_for_each(|action| self.act(action))?;
        Ok(std::mem::take(&mut self.untold))
    }

    /// The objects as they are now.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Every statement of a step: tables off the diagonal, and checks.
    pub(crate) fn cells(&self, step: &Step, plan: &str, place: &str) -> anyhow::Result<Vec<Cell>> {
        let applies = |plans: &[String]| plans.iter().any(|named| named == "*" || named == plan);
        let cell = |probe: Probe, allow, ingress, egress| Cell {
            place: place.to_owned(),
            probe,
            allow,
            ingress,
            egress,
            verdict: Verdict { ingress: false, egress: false },
        };
        let mut cells = Vec::new();
        for expect in step.expect.iter().filter(|expect| applies(&expect.plans)) {
            for (port, (i, from), (j, to)) in every(&expect.ports, &step.endpoints) {
                let allow = stated(Some(&expect.allow), i, j)?;
                let (ingress, egress) = (stated(expect.ingress.as_ref(), i, j)?, stated(expect.egress.as_ref(), i, j)?);
                if i != j && (allow.is_some() || ingress.is_some() || egress.is_some()) {
                    cells.push(cell(self.probe(from, to, port)?, allow, ingress, egress));
                }
            }
        }
        for check in step.checks.iter().filter(|check| check.plans.as_deref().is_none_or(applies)) {
            cells.push(cell(self.probe(&check.from, &check.to, &check.port)?, Some(check.allow), None, None));
        }
        Ok(cells)
    }

    fn probe(&self, from: &str, to: &str, port: &str) -> anyhow::Result<Probe> {
        let (protocol, number) = port.split_once('/').with_context(|| format!("no port: {port}"))?;
        let found = number.parse().ok().or_else(|| self.named_port(to, protocol, number));
        Ok(Probe {
            source: self.side(from)?,
            destination: self.side(to)?,
            protocol: Protocol::from_name(protocol).with_context(|| format!("no protocol: {port}"))?,
            port: found.with_context(|| format!("{to} has no port {port}"))?,
        })
    }

    /// The number that a pod has for a port's name.
    fn named_port(&self, endpoint: &str, protocol: &str, name: &str) -> Option<u16> {
        let pod = self.objects.get("Pod", &split_name(endpoint).ok()?)?;
        let ports = pod["spec"]["containers"].as_array()?.iter().filter_map(|it| it["ports"].as_array()).flatten();
        let mut wanted = ports.filter(|port| port["name"] == name && port["protocol"] == protocol);
        u16::try_from(wanted.next()?["containerPort"].as_u64()?).ok()
    }

    /// An endpoint: a pod with the address that its object has now, or a bare address.
    fn side(&self, endpoint: &str) -> anyhow::Result<Side> {
        let name = split_name(endpoint)?;
        match self.objects.get("Pod", &name) {
            Some(pod) => {
                let address = pod["status"]["podIP"].as_str().context("a pod without address")?.parse()?;
                Ok(Side { address, pod: Some(name) })
            }
            None => Ok(Side { address: self.address(endpoint)?, pod: None }),
        }
    }

    fn address(&self, endpoint: &str) -> anyhow::Result<IpAddr> {
        self.plan.get(endpoint).copied().with_context(|| format!("the plan has no address for {endpoint}"))
    }

    fn apply(&mut self, object: Value) {
        let change = Change::Apply(object);
        self.objects.change(&change);
        self.untold.push(change);
    }

    fn delete(&mut self, kind: &str, name: Name) -> anyhow::Result<()> {
        ensure!(self.objects.get(kind, &name).is_some(), "there is no {kind} {}/{} to delete", name.0, name.1);
        let change = Change::Delete { kind: kind.to_owned(), name };
        self.objects.change(&change);
        self.untold.push(change);
        Ok(())
    }

    /// Changes an object in place and applies it again.
    fn edit(&mut self, kind: &str, name: &Name, edit: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let found = self.objects.get(kind, name);
        let mut object = found.with_context(|| format!("there is no {kind} {}/{}", name.0, name.1))?.clone();
        edit(&mut object);
        self.apply(object);
        Ok(())
    }

    fn act(&mut self, action: &Action) -> anyhow::Result<()> {
        match action {
            Action::CreatePolicy { policy } | Action::UpdatePolicy { policy } => {
                self.apply(fill_in(policy, self.plan)?)
            }
            Action::DeletePolicy { namespace, name } => {
                self.delete("NetworkPolicy", (namespace.clone(), name.clone()))?
            }
            Action::CreateClusterPolicy { .. } | Action::UpdateClusterPolicy { .. } => {
                bail!("ClusterNetworkPolicy is not judged here");
            }
            Action::CreateNamespace { namespace, labels } => self.apply(namespace_object(namespace, labels)),
            Action::SetNamespaceLabels { namespace, labels } => {
                self.edit("Namespace", &(String::new(), namespace.clone()), |object| set_labels(object, labels))?;
            }
            Action::DeleteNamespace { namespace } => self.delete_namespace(namespace)?,
            Action::CreatePod { namespace, pod, labels, ip_of, ports } => {
                let name = format!("{namespace}/{pod}");
                let ports = ports.clone().unwrap_or_else(|| self.default_ports.clone());
                let spec =
                    PodSpec { pod: name.clone(), labels: labels.clone(), ports, node: None, host_network: false };
                self.create_pod(&spec, ip_of.as_ref().unwrap_or(&name))?;
            }
            Action::SetPodLabels { namespace, pod, labels } => {
                self.edit("Pod", &(namespace.clone(), pod.clone()), |object| set_labels(object, labels))?;
            }
            Action::DeletePod { namespace, pod } => self.delete("Pod", (namespace.clone(), pod.clone()))?,
            Action::SetPodPhase { namespace, pod, phase } => {
                self.edit("Pod", &(namespace.clone(), pod.clone()), |object| object["status"]["phase"] = json!(phase))?;
            }
            Action::SetPodTerminating { namespace, pod } => {
                self.edit("Pod", &(namespace.clone(), pod.clone()), |object| {
                    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                })?;
            }
        }
        Ok(())
    }

    /// Kubernetes removes what lives in a namespace before the namespace itself.
    fn delete_namespace(&mut self, namespace: &str) -> anyhow::Result<()> {
        for kind in ["NetworkPolicy", "Pod"] {
            let inside = |(name, _): &(&Name, &Value)| name.0 == namespace;
            let names: Vec<Name> = self.objects.of(kind).filter(inside).map(|(name, _)| name.clone()).collect();
            for name in names {
                self.delete(kind, name)?;
            }
        }
        self.delete("Namespace", (String::new(), namespace.to_owned()))
    }

    fn create_pod(&mut self, pod: &PodSpec, address_of: &str) -> anyhow::Result<()> {
        let (namespace, name) = split_name(&pod.pod)?;
        let planned = self.address(address_of)?;
        let node = pod.node.as_deref().map_or_else(|| node_around(planned).0, bare_node_name);
        // The plans give hostNetwork pods addresses of their own; in a cluster they have their node's.
        let address = match &pod.node {
            Some(node) if pod.host_network => self.address(node)?,
            _ => planned,
        };
        let ports: Vec<Value> = pod.ports.iter().map(container_port).collect();
        self.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": pod.labels },
            "spec": {
                "nodeName": node, "hostNetwork": pod.host_network,
                "containers": [{ "name": "server", "image": "server", "ports": ports }],
            },
            "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
        }));
        Ok(())
    }
}

/// How many statements a step makes under a plan.
pub(crate) fn stated_cells(step: &Step, plan: &str) -> usize {
    let applies = |plans: &[String]| plans.iter().any(|named| named == "*" || named == plan);
    let tables = step.expect.iter().filter(|expect| applies(&expect.plans)).map(|expect| {
        let of_pair = |(_, (i, _), (j, _)): &(&str, (usize, &str), (usize, &str))| {
            let says = |table: Option<&Vec<String>>| matches!(stated(table, *i, *j), Ok(Some(_)));
            i != j && (says(Some(&expect.allow)) || says(expect.ingress.as_ref()) || says(expect.egress.as_ref()))
        };
        every(&expect.ports, &step.endpoints).filter(of_pair).count()
    });
    tables.sum::<usize>() + step.checks.iter().filter(|check| check.plans.as_deref().is_none_or(applies)).count()
}

/// The node on which an endpoint is, be it a pod of now or of later; none for a host outside.
pub(crate) fn node_of(cluster: &ClusterSpec, endpoint: &str, address: IpAddr) -> Option<String> {
    if let Some(external) = cluster.externals.iter().find(|external| external.name == endpoint) {
        return (external.kind == "node").then(|| bare_node_name(endpoint));
    }
    let pod = cluster.pods.iter().find(|pod| pod.pod == endpoint);
    Some(pod.and_then(|pod| pod.node.as_deref()).map_or_else(|| node_around(address).0, bare_node_name))
}

/// Every port with every pair of endpoints and their positions.
fn every<'a>(
    ports: &'a [String],
    endpoints: &'a [String],
) -> impl Iterator<Item = (&'a str, (usize, &'a str), (usize, &'a str))> {
    let places = move || endpoints.iter().map(String::as_str).enumerate();
    ports.iter().flat_map(move |port| places().flat_map(move |from| places().map(move |to| (port.as_str(), from, to))))
}

fn stated(table: Option<&Vec<String>>, row: usize, column: usize) -> anyhow::Result<Option<bool>> {
    let Some(table) = table else { return Ok(None) };
    match table.get(row).and_then(|row| row.as_bytes().get(column)) {
        Some(b'.') => Ok(Some(true)),
        Some(b'X') => Ok(Some(false)),
        Some(b's' | b'-') => Ok(None),
        other => bail!("no cell at row {row}, column {column}: {other:?}"),
    }
}

fn split_name(name: &str) -> anyhow::Result<Name> {
    let (namespace, name) = name.split_once('/').with_context(|| format!("no namespace/name: {name}"))?;
    Ok((namespace.to_owned(), name.to_owned()))
}

fn bare_node_name(name: &str) -> String {
    name.strip_prefix("node/").unwrap_or(name).to_owned()
}

/// The node that a pod address belongs to if nothing else is said, and that node's address.
fn node_around(address: IpAddr) -> (String, IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [_, _, network, _] = address.octets();
            (format!("n{network}"), IpAddr::from([192, 168, 60, network]))
        }
        IpAddr::V6(address) => {
            let [_, _, _, network, ..] = address.segments();
            (format!("n{network:x}"), IpAddr::from([0xfd00, 0x60, 0, 0, 0, 0, 0, network]))
        }
    }
}

fn container_port(port: &ServedPort) -> Value {
    match &port.name {
        Some(name) => json!({ "name": name, "containerPort": port.port, "protocol": port.protocol }),
        None => json!({ "containerPort": port.port, "protocol": port.protocol }),
    }
}

fn namespace_object(name: &str, labels: &Labels) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn set_labels(object: &mut Value, labels: &Labels) {
    object["metadata"]["labels"] = json!(labels);
}
