//! A case directory built as a cluster: pods from its manifests, servers from its tables, addresses outside the cluster.
//!
//! Pods without `spec.nodeName` are on the first node. Services, if there are any, are translated by kube-proxy's rules; their
//! cluster IPs are `NAME.NAMESPACE.svc` in tables. A case may be laid over another, which it adds to.
//!
//! In: `tests/cases/NAME/` with `cluster/` (namespaces and pods), `policies/`, `changes/` (files that take a policy file's
//! place) and `expect-*.txt`. Out: a [`Shop`], whose tables can be measured while an agent enforces what is in force. Used
//! by the demo and by the tests of the netns level.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cluster::{Cluster, OUTSIDE};
use crate::kube_proxy::{self, Form, ServicePort};
use crate::manifests::{self, PodAddresses};
use crate::node::NODE;
use crate::probe::{Outcome, PATIENCE, Probe, SILENCE};
use crate::table::{Cell, Table, Target};

/// An address out on the internet, by its name in tables.
pub const INTERNET: &str = "internet";
/// The address of a cloud's metadata service, by its name in tables.
pub const METADATA: &str = "metadata";

/// Ends the names of services in tables.
const SERVICE: &str = ".svc";

const INTERNET_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7))];
const METADATA_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// A case, up.
#[derive(Debug)]
pub struct Shop {
    layers: Vec<PathBuf>,
    services: kube_proxy::Table,
    /// The nodes with the case's pods.
    pub node: Cluster,
}

/// The case directory of this name.
#[must_use]
pub fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name)
}

impl Shop {
    /// Builds the cluster: pods, servers for every target of `tables`, and the manifests where the agent reads.
    ///
    /// # Errors
    /// If a manifest or the kernel refuses.
    pub fn build(case: &Path, tables: &[&Table]) -> Result<Self> {
        Self::build_layers(&[case], tables)
    }

    /// As [`Shop::build`], of cases laid over each other.
    ///
    /// # Errors
    /// If a manifest, the kernel or a program that loads kube-proxy's rules refuses.
    pub fn build_layers(cases: &[&Path], tables: &[&Table]) -> Result<Self> {
        let layers: Vec<PathBuf> = cases.iter().map(|case| case.to_path_buf()).collect();
        let files = files_of(&layers, "cluster")?;
        let pods =
            layers.iter().map(|case| manifests::pods(&case.join("cluster"))).collect::<Result<Vec<_>>>()?.concat();
        let objects = files.iter().map(|file| manifests::objects(file)).collect::<Result<Vec<_>>>()?.concat();
        let mut nodes = vec![NODE];
        for node in pods.iter().filter_map(|pod| pod.node.as_deref()) {
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        let mut cluster = Cluster::start(&nodes, &[INTERNET_ADDRESSES, METADATA_ADDRESSES].concat())?;
        for pod in &pods {
            cluster.add_pod(pod.node.as_deref().unwrap_or(NODE), pod)?;
        }
        let shop = Self { layers, services: kube_proxy::Table::read(&objects)?, node: cluster };
        shop.serve(tables)?;
        if !shop.services.services.is_empty() {
            shop.node.kube_proxy(Form::any()?).sync(&shop.services)?;
        }
        files.iter().try_for_each(|file| shop.put(file))?;
        Ok(shop)
    }

    /// Reads `expect-NAME.txt`.
    ///
    /// # Errors
    /// If there is none, or it is not a table.
    pub fn expectation(case: &Path, name: &str) -> Result<Table> {
        let path = case.join(format!("expect-{name}.txt"));
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Table::parse(&text).with_context(|| format!("{}", path.display()))
    }

    /// Puts every policy in force (at the agent's next look).
    ///
    /// # Errors
    /// If a file cannot be copied.
    pub fn put_policies(&self) -> Result<Vec<PathBuf>> {
        let files = files_of(&self.layers, "policies")?;
        files.iter().try_for_each(|file| self.put(file))?;
        Ok(files)
    }

    /// Puts one file of `changes/` in the place of the policy file of the same name.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn put_change(&self, name: &str) -> Result<PathBuf> {
        let files = self.layers.iter().map(|case| case.join("changes").join(name));
        let file = files.into_iter().find(|file| file.exists()).with_context(|| format!("no change {name}"))?;
        self.put(&file)?;
        Ok(file)
    }

    /// Copies a file to where the agent reads, in one step: no reader ever sees half of it.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn put(&self, file: &Path) -> Result<()> {
        let name = file.file_name().and_then(|name| name.to_str()).context("a manifest has a name")?;
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.put_text(name, &text)
    }

    /// Writes a manifest, in one step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put_text(&self, name: &str, text: &str) -> Result<()> {
        self.node.run().put_manifest(name, text)
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.node.run().remove_manifest(name)
    }

    /// Removes every policy of the case.
    ///
    /// # Errors
    /// If one is not there.
    pub fn remove_policies(&self) -> Result<()> {
        let files = files_of(&self.layers, "policies")?;
        files.iter().filter_map(|file| file.file_name()?.to_str()).try_for_each(|name| self.remove(name))
    }

    /// Takes a pod away and brings it back with its addresses, another interface and no servers.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn restart_pod(&mut self, key: &str) -> Result<()> {
        let pod = PodAddresses::new(key, self.node.addresses(key)?);
        let node = self.node.pod(key)?.node().to_owned();
        self.node.remove_pod(key)?;
        self.node.add_pod(&node, &pod)?;
        Ok(())
    }

    /// The probe that answers one cell.
    ///
    /// # Errors
    /// If the places are unknown.
    pub fn probe(&self, source: &str, target: &Target, ipv6: bool) -> Result<Probe> {
        let address = match target.name.as_str() {
            INTERNET => of_family(INTERNET_ADDRESSES, ipv6),
            METADATA => of_family(METADATA_ADDRESSES, ipv6),
            name if is_service(name) => {
                let cluster_addresses = self.service(target)?.cluster_addresses.iter().copied();
                let mut of_family = cluster_addresses.filter(|ip| ip.is_ipv6() == ipv6);
                of_family.next().with_context(|| format!("{target} has no such address"))?
            }
            place => self.node.address(place, ipv6)?,
        };
        let at = SocketAddr::new(address, target.port);
        let (to, _port) = self.server(target)?;
        Ok(Probe { from: source.to_owned(), to, at, transport: target.transport })
    }

    /// Measures every pair of `expected` but a place with itself, and what odd answers there were.
    ///
    /// A silence where an answer is expected is asked again with more patience: on a busy machine an answer may be late,
    /// while an answer where none is expected is an answer.
    ///
    /// # Errors
    /// If a place is unknown.
    pub fn measure(&self, expected: &Table, ipv6: bool) -> Result<(Table, Vec<String>)> {
        let pairs: Vec<_> = expected.cells().collect();
        let asked = pairs.iter().filter(|(source, target, _)| !is_itself(source, target));
        let probes: Vec<Probe> =
            asked.clone().map(|(source, target, _)| self.probe(source, target, ipv6)).collect::<Result<_>>()?;
        let mut outcomes = self.node.probe_all(&probes, SILENCE)?;

        let late: Vec<usize> = asked
            .zip(&outcomes)
            .enumerate()
            .filter(|(_, ((_, _, cell), outcome))| *cell == Cell::Allowed && **outcome == Outcome::Silence)
            .map(|(index, _)| index)
            .collect();
        let again: Vec<Probe> = late.iter().filter_map(|&index| probes.get(index).cloned()).collect();
        for (index, outcome) in late.into_iter().zip(self.node.probe_all(&again, PATIENCE)?) {
            if let Some(first) = outcomes.get_mut(index) {
                *first = outcome;
            }
        }

        let odd = probes.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Other(_)));
        let odd = odd.map(|(probe, outcome)| format!("{probe}: {outcome}")).collect();
        let mut outcomes = outcomes.into_iter();
        let cells = pairs.iter().map(
            |(source, target, _)| {
                if is_itself(source, target) { Cell::Skipped } else { cell_of(outcomes.next()) }
            },
        );
        let measured = expected.with_cells(cells);
        Ok((measured, odd))
    }

    fn serve(&self, tables: &[&Table]) -> Result<()> {
        let mut served = Vec::new();
        for target in tables.iter().flat_map(|table| table.targets()) {
            let (place, port) = self.server(target)?;
            served.push((place, target.transport, port));
        }
        served.sort_unstable();
        served.dedup();
        served.iter().try_for_each(|(place, transport, port)| self.node.serve(place, *transport, [*port]))
    }

    /// The place that answers for a target, and its port there.
    fn server(&self, target: &Target) -> Result<(String, u16)> {
        if !is_service(&target.name) {
            return Ok((place_of(&target.name).to_owned(), target.port));
        }
        let backend = self.service(target)?.endpoints.first().with_context(|| format!("{target} has no endpoint"))?;
        let is_there = |place: &&str| self.node.addresses(place).is_ok_and(|all| all.contains(&backend.ip()));
        let place = self.node.places().find(is_there).with_context(|| format!("nobody is at {backend}"))?;
        Ok((place.to_owned(), backend.port()))
    }

    fn service(&self, target: &Target) -> Result<&ServicePort> {
        let found = self.services.services.iter().find(|it| {
            let (service, _port) = it.name.split_once(':').unwrap_or_default();
            let (namespace, name) = service.split_once('/').unwrap_or_default();
            target.name == format!("{name}.{namespace}{SERVICE}")
                && (it.transport, it.port) == (target.transport.into(), target.port)
        });
        found.with_context(|| format!("no service {target}"))
    }
}

/// Manifests of one kind, layer by layer.
fn files_of(layers: &[PathBuf], kind: &str) -> Result<Vec<PathBuf>> {
    let files = layers.iter().map(|case| case.join(kind)).filter(|directory| directory.exists());
    Ok(files.map(|directory| manifests::files(&directory)).collect::<Result<Vec<_>>>()?.concat())
}

fn is_service(name: &str) -> bool {
    name.ends_with(SERVICE)
}

/// True if a place would ask for its own address. Through its service it may.
fn is_itself(source: &str, target: &Target) -> bool {
    !is_service(&target.name) && source == place_of(&target.name)
}

fn of_family([v4, v6]: [IpAddr; 2], ipv6: bool) -> IpAddr {
    if ipv6 { v6 } else { v4 }
}

fn place_of(name: &str) -> &str {
    match name {
        INTERNET | METADATA => OUTSIDE,
        NODE => NODE,
        pod => pod,
    }
}

fn cell_of(outcome: Option<Outcome>) -> Cell {
    match outcome {
        Some(Outcome::Answered) => Cell::Allowed,
        Some(Outcome::Silence) => Cell::Denied,
        Some(Outcome::Other(_)) => Cell::Odd,
        None => Cell::Skipped,
    }
}
