//! Nodes with an agent each, kept from case to case, and what a case has in them: pods, addresses, manifests, services.
//!
//! [`Site::settle`] makes the nodes be what the objects say and returns when every agent has it in force: pods appear and
//! vanish as namespaces, a pod that takes over an address is another namespace behind another interface, what a manifest
//! says is rewritten only if it changed. Must not know what policies mean.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::prober::{Ask, Outcome, Prober};
use super::services::Services;
use crate::agent::{Agent, Counter, Options, Settled};
use crate::cluster::{Cluster, OUTSIDE, Plan};
use crate::judge::{Name, Objects};
use crate::kube_proxy::{Form, Table};

/// How long the agents may take until they have found every pod.
const LIMIT: Duration = Duration::from_secs(10);

/// Names of nodes, with the numbers of their plans.
pub(super) type Nodes = Vec<(String, u8)>;

/// What there is to be.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Nodes, namespaces, pods and policies.
    pub(super) objects: &'a Objects,
    /// All addresses of the plan by the node of those that are on one.
    pub(super) plan: &'a BTreeMap<IpAddr, Option<String>>,
    /// Hosts outside.
    pub(super) externals: &'a BTreeSet<IpAddr>,
    /// Services, where probes go through them.
    pub(super) services: Option<&'a Services>,
    /// The first step of a case: namespaces of the case before may serve again under other names.
    pub(super) fresh: bool,
}

/// A pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tenant {
    owner: Name,
    node: String,
    alone: bool,
    place: String,
}

/// Nodes and agents.
pub(super) struct Site {
    nodes: Nodes,
    // Agents end before what they run on.
    agents: Vec<Agent>,
    prober: Prober,
    cluster: Cluster,
    tenants: BTreeMap<IpAddr, Tenant>,
    /// Addresses of nodes and of the outside host that are there for the case.
    hosts: BTreeMap<IpAddr, String>,
    files: BTreeMap<String, String>,
    form: Form,
    rules: Table,
    made: u32,
}

impl Site {
    /// Makes the nodes and starts their agents, which die with the calling thread.
    pub(super) fn start(nodes: &Nodes, form: Form) -> Result<Self> {
        let planned = nodes.iter().map(|(name, number)| {
            let plan = Plan::of(*number).with_context(|| format!("at most {} nodes", Plan::MOST))?;
            Ok((name.as_str(), plan.hidden()))
        });
        let cluster = Cluster::start_planned(&planned.collect::<Result<Vec<_>>>()?, &[])?;
        let start = |(name, _): &(String, u8)| {
            let options = Options { node: Some(name.clone()), ..Options::default() };
            Agent::start(&cluster, &options).with_context(|| format!("the agent of {name}"))
        };
        let agents = nodes.iter().map(start).collect::<Result<_>>()?;
        Ok(Self {
            nodes: nodes.clone(),
            agents,
            prober: Prober::start()?,
            cluster,
            tenants: BTreeMap::new(),
            hosts: BTreeMap::new(),
            files: BTreeMap::new(),
            form,
            rules: Table::default(),
            made: 0,
        })
    }

    /// The nodes.
    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Makes everything as wanted, and waits until the agents have it in force.
    pub(super) fn settle(&mut self, wanted: &Wanted<'_>) -> Result<Vec<Settled>> {
        let tenants = self.tenants_of(wanted)?;
        let hosts = self.hosts_of(wanted)?;
        self.remove_unwanted(&tenants, &hosts, wanted.fresh)?;
        self.add_missing(tenants, hosts)?;
        // After its sandbox, as an address is known from it only. One that is looked for too early is found a second later.
        self.write(manifests(wanted))?;
        let rules = wanted.services.map(Services::table).unwrap_or_default();
        if rules != self.rules {
            self.cluster.kube_proxy(self.form).without_cluster_cidr().sync(&rules)?;
            self.rules = rules;
        }
        self.sync()
    }

    /// Asks; see [`Prober::ask`].
    pub(super) fn ask(
        &mut self,
        asks: &[Ask],
        mut accounted: impl FnMut(&[Agent], usize) -> Result<bool>,
    ) -> Result<Vec<Outcome>> {
        let Self { prober, cluster, agents, .. } = self;
        agents.iter().for_each(|agent| agent.drops().clear());
        prober.ask(cluster, asks, |open| accounted(agents, open))
    }

    /// Counters of all agents.
    pub(super) fn counters(agents: &[Agent]) -> Result<Vec<Counter>> {
        let counters = agents.iter().map(Agent::counters).collect::<Result<Vec<_>>>()?;
        Ok(counters.into_iter().flatten().collect())
    }

    /// The agents.
    pub(super) fn agents(&self) -> &[Agent] {
        &self.agents
    }

    fn write(&mut self, files: BTreeMap<String, String>) -> Result<()> {
        let run = self.cluster.run();
        for (name, text) in files.iter().filter(|(name, text)| self.files.get(*name) != Some(*text)) {
            run.put_manifest(name, text)?;
        }
        for name in self.files.keys().filter(|name| !files.contains_key(*name)) {
            run.remove_manifest(name)?;
        }
        self.files = files;
        Ok(())
    }

    /// Pods with a network of their own, by address. One that has completed has none any more.
    fn tenants_of(&self, wanted: &Wanted<'_>) -> Result<BTreeMap<IpAddr, Tenant>> {
        let mut tenants = BTreeMap::new();
        for (name, pod) in wanted.objects.of("Pod") {
            let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let is_host = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true);
            if is_host || ["Succeeded", "Failed"].contains(&text("/status/phase")) {
                continue;
            }
            let address: IpAddr = text("/status/podIP").parse().with_context(|| format!("podIP of {name:?}"))?;
            let node = text("/spec/nodeName").to_owned();
            let alone = self.is_alone(&node, address, wanted.plan)?;
            let tenant = Tenant { owner: name.clone(), node, alone, place: String::new() };
            if let Some(other) = tenants.insert(address, tenant) {
                bail!("{:?} and {name:?} both have {address}", other.owner);
            }
        }
        Ok(tenants)
    }

    /// False if the node's own network is the pod's, and nobody else's.
    fn is_alone(&self, node: &str, address: IpAddr, plan: &BTreeMap<IpAddr, Option<String>>) -> Result<bool> {
        let [v4, v6] = self.cluster.node(node)?.plan().overlay();
        let own = if address.is_ipv4() { IpNet::new(v4, 24)? } else { IpNet::new(v6, 64)? };
        let stranger = |(at, of): (&IpAddr, &Option<String>)| own.contains(at) && of.as_deref() != Some(node);
        Ok(!own.contains(&address) || plan.iter().any(stranger))
    }

    fn hosts_of(&self, wanted: &Wanted<'_>) -> Result<BTreeMap<IpAddr, String>> {
        let mut hosts: BTreeMap<IpAddr, String> =
            wanted.externals.iter().map(|&address| (address, OUTSIDE.to_owned())).collect();
        for ((_, name), node) in wanted.objects.of("Node") {
            let address = node.pointer("/status/addresses/0/address").and_then(Value::as_str).unwrap_or_default();
            hosts.insert(address.parse().with_context(|| format!("address of node {name}"))?, name.clone());
        }
        Ok(hosts)
    }

    fn remove_unwanted(
        &mut self,
        tenants: &BTreeMap<IpAddr, Tenant>,
        hosts: &BTreeMap<IpAddr, String>,
        fresh: bool,
    ) -> Result<()> {
        let stays = |address: &IpAddr, tenant: &Tenant| {
            tenants.get(address).is_some_and(|it| {
                (fresh || it.owner == tenant.owner) && (&it.node, it.alone) == (&tenant.node, tenant.alone)
            })
        };
        let gone = self.tenants.iter().filter(|(address, tenant)| !stays(address, tenant));
        for address in gone.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.prober.close(address);
            if let Some(tenant) = self.tenants.remove(&address) {
                self.cluster.remove_pod(&tenant.place)?;
            }
        }
        let gone = self.hosts.iter().filter(|(address, place)| hosts.get(*address) != Some(*place));
        for (address, place) in gone.map(|(address, place)| (*address, place.clone())).collect::<Vec<_>>() {
            self.prober.close(address);
            self.cluster.remove_address(&place, address)?;
            self.hosts.remove(&address);
        }
        Ok(())
    }

    fn add_missing(&mut self, tenants: BTreeMap<IpAddr, Tenant>, hosts: BTreeMap<IpAddr, String>) -> Result<()> {
        for (address, place) in hosts {
            if self.prober.has(address) {
                continue;
            }
            self.cluster.add_address(&place, address)?;
            self.prober.open(&self.cluster, &place, address)?;
            self.hosts.insert(address, place);
        }
        for (address, tenant) in tenants {
            if let Some(known) = self.tenants.get_mut(&address) {
                known.owner = tenant.owner;
                continue;
            }
            self.made += 1;
            let place = format!("pod/{}", self.made);
            self.cluster.add_pod_anywhere(&tenant.node, (&place, address), tenant.alone)?;
            self.prober.open(&self.cluster, &place, address)?;
            self.tenants.insert(address, Tenant { place, ..tenant });
        }
        Ok(())
    }

    /// Until every agent has settled on exactly the pods that its node has.
    fn sync(&self) -> Result<Vec<Settled>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let settled = thread::scope(|scope| {
                let asked: Vec<_> = self.agents.iter().map(|agent| scope.spawn(|| agent.sync())).collect();
                asked
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|_| bail!("a sync panicked")))
                    .collect::<Result<Vec<_>>>()
            })?;
            let missing = self.nodes.iter().zip(&settled).find_map(|((node, _), settled)| self.missing(node, settled));
            let Some(missing) = missing else { return Ok(settled) };
            ensure!(Instant::now() < deadline, "{missing} after {LIMIT:?}: {settled:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn missing(&self, node: &str, settled: &Settled) -> Option<String> {
        self.tenants.values().filter(|tenant| tenant.node == node).find_map(|tenant| {
            let name = format!("{}/{}", tenant.owner.0, tenant.owner.1);
            let interface = self.cluster.pod(&tenant.place).map(|pod| pod.interface().to_owned()).unwrap_or_default();
            let found = settled.endpoints.iter().any(|endpoint| {
                (&endpoint.pod, &endpoint.interface) == (&name, &interface) && endpoint.state == "enforced"
            });
            (!found).then(|| format!("the agent of {node} does not have {name} at {interface}"))
        })
    }
}

/// The files that agents read, an object each.
fn manifests(wanted: &Wanted<'_>) -> BTreeMap<String, String> {
    let kinds = ["Namespace", "Pod", "NetworkPolicy"];
    let objects = kinds.into_iter().flat_map(|kind| {
        wanted
            .objects
            .of(kind)
            .map(move |((namespace, name), object)| (file(kind, namespace, name), object.to_string()))
    });
    let services = wanted.services.into_iter().flat_map(Services::objects);
    let services = services.map(|(name, object)| (file("Service", "default", &name), object.to_string()));
    objects.chain(services).collect()
}

/// A file name that no other object has.
fn file(kind: &str, namespace: &str, name: &str) -> String {
    let safe = |text: &str| text.replace('%', "%25").replace('/', "%2F");
    format!("{kind}_{}_{}.json", safe(namespace), safe(name))
}
