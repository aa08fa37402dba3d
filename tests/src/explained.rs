//! `netpol explain` as a judge: what it says of each flow, its two inner judges made to agree, and its hints tried out.
//!
//! A hint is applied to the raw objects, as `kubectl` would, and the independent oracle is asked whether the side lets the
//! flow through now. Every 50th denied side is tried with each of its hints.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by a field that it lacks gives null")]

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

use anyhow::{Context as _, bail, ensure};
use netpol_agent::cluster::ClusterState;
use netpol_agent::cluster::model::{ClusterEvent, ObjectKey, ObjectRef, PodKey};
use netpol_agent::explain::{Change as Advice, End, Facts, Flow, FreshCompile, Nodes, SideReport, Traffic, judge};
use netpol_agent::source::{Outcome, decode_value};
use netpol_common::abi::Direction;
use serde_json::{Value, json};

use crate::judge::{Change, Judge, Objects, Probe, Protocol, Side, Verdict, name_of};
use crate::oracle::Oracle;

/// Denied sides until the next one is tried.
const EVERY: usize = 50;

/// The judge.
#[derive(Default)]
pub struct Explained {
    objects: Objects,
    cluster: ClusterState,
    nodes: Nodes,
    compiled: Option<FreshCompile>,
    denied: usize,
    /// Hints that were applied, and helped.
    tried: Rc<Cell<usize>>,
}

impl Explained {
    /// A judge that counts in `tried` the hints that helped.
    #[must_use]
    pub fn counting(tried: &Rc<Cell<usize>>) -> Self {
        Self { tried: tried.clone(), ..Self::default() }
    }

    fn facts(&self) -> Facts<'_> {
        Facts { cluster: &self.cluster, nodes: &self.nodes, enforce_own_node: false }
    }

    /// Applies each hint of a denied side to the objects and asks the oracle.
    fn try_hints(&mut self, flow: &Flow, probe: &Probe, direction: Direction) -> anyhow::Result<()> {
        let compiled = self.compiled.as_ref().context("nothing is compiled")?.view();
        let report = SideReport::of(flow.side(direction), &self.facts(), &compiled);
        ensure!(!report.hints.is_empty(), "no hint for a denied side: {report:?}");
        ensure!(!report.isolated_by.is_empty(), "denied, and isolated by nobody: {report:?}");
        for hint in &report.hints {
            let mut oracle = Oracle::default();
            oracle.change(&self.objects.creation())?;
            oracle.change(&[applied(&hint.change, &self.objects).with_context(|| format!("{hint:?}"))?])?;
            let after = oracle.judge(probe);
            let passes = match direction {
                Direction::Ingress => after.ingress,
                Direction::Egress => after.egress,
            };
            ensure!(passes, "the hint does not help: {hint:?}\n{report:?}");
            self.tried.set(self.tried.get() + 1);
        }
        Ok(())
    }
}

impl Judge for Explained {
    fn change(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        for change in changes {
            self.objects.change(change);
            match change {
                Change::Apply(object) if object["kind"] == "Node" => {
                    let listed = object["status"]["addresses"].as_array().into_iter().flatten();
                    let addresses: Vec<IpAddr> =
                        listed.filter_map(|entry| entry["address"].as_str()?.parse().ok()).collect();
                    self.nodes.add(&name_of(object).1, addresses);
                }
                Change::Apply(object) => {
                    for item in decode_value("test", object).items {
                        let Outcome::Taken(object) = item.outcome else { bail!("not taken: {:?}", item.problems) };
                        self.cluster.apply(ClusterEvent::Apply(object));
                    }
                }
                Change::Delete { kind, name: (namespace, name) } => {
                    let key = ObjectKey::new(namespace, name);
                    self.cluster.apply(ClusterEvent::Delete(match kind.as_str() {
                        "Namespace" => ObjectRef::Namespace(name.as_str().into()),
                        "Pod" => ObjectRef::Pod(key),
                        _ => ObjectRef::NetworkPolicy(key),
                    }));
                }
            }
        }
        let pods: Vec<PodKey> = self.cluster.pods().map(|pod| pod.key.clone()).collect();
        self.compiled = Some(FreshCompile::new(&self.cluster, pods));
        Ok(())
    }

    fn verdict(&mut self, probe: &Probe) -> anyhow::Result<Verdict> {
        let flow = flow(probe)?;
        let mut passes = [true; 2];
        for (direction, passes) in Direction::ALL.into_iter().zip(&mut passes) {
            let view = self.compiled.as_ref().context("nothing is compiled")?.view();
            let (judgement, disagreement) = judge(flow.side(direction), &self.facts(), &view);
            ensure!(disagreement.is_none(), "{probe}: {disagreement:?}");
            *passes = judgement.passes();
            if !*passes {
                self.denied += 1;
                if self.denied % EVERY == 1 {
                    self.try_hints(&flow, probe, direction)?;
                }
            }
        }
        let [ingress, egress] = passes;
        Ok(Verdict { ingress, egress })
    }
}

fn flow(probe: &Probe) -> anyhow::Result<Flow> {
    use netpol_agent::cluster::model::Protocol as Transport;
    let end = |side: &Side| match &side.pod {
        Some((namespace, name)) => End::pod(PodKey::new(namespace, name), side.address),
        None => End::outside(side.address),
    };
    let traffic = match probe.protocol {
        Protocol::Tcp => Traffic::Port(Transport::Tcp, probe.port),
        Protocol::Udp => Traffic::Port(Transport::Udp, probe.port),
        Protocol::Sctp => Traffic::Port(Transport::Sctp, probe.port),
        Protocol::Icmp => Traffic::Other,
    };
    Ok(Flow { source: end(&probe.source), destination: end(&probe.destination), traffic })
}

/// What the advice makes of the objects.
///
/// # Errors
/// It speaks of something that is not there: nobody could apply it.
pub fn applied(advice: &Advice, objects: &Objects) -> anyhow::Result<Change> {
    let object = |kind: &str, namespace: &str, name: &str| {
        objects.get(kind, &(namespace.to_owned(), name.to_owned())).cloned().context("there is no such object")
    };
    Ok(Change::Apply(match advice {
        Advice::CreatePolicy { manifest } => {
            ensure!(
                objects.get("NetworkPolicy", &name_of(manifest)).is_none(),
                "the policy exists: it would be replaced"
            );
            manifest.clone()
        }
        Advice::LabelPod { namespace, name, labels } => {
            let mut pod = object("Pod", namespace, name)?;
            for (key, value) in labels {
                pod["metadata"]["labels"][key] = json!(value);
            }
            pod
        }
        Advice::PatchPolicy { namespace, name, patch } => {
            let mut policy = object("NetworkPolicy", namespace, name)?;
            for step in patch.as_array().context("no list of steps")? {
                ensure!(step["op"] == "add", "unknown step {step}");
                let path =
                    step["path"].as_str().and_then(|path| path.strip_suffix("/-")).context("no path of a list")?;
                let list = policy.pointer_mut(path).and_then(Value::as_array_mut).context("no list there")?;
                ensure!(!list.is_empty(), "an item in an empty list would narrow it");
                list.push(step["value"].clone());
            }
            policy
        }
    }))
}
