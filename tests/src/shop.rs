//! A case directory built as a node: pods from its manifests, servers from its tables, addresses outside the cluster.
//!
//! In: `tests/cases/NAME/` with `cluster/` (namespaces and pods), `policies/`, `changes/` (files that take a policy file's
//! place) and `expect-*.txt`. Out: a [`Shop`], whose tables can be measured while an agent enforces what is in force. Used
//! by the demo and by the tests of the netns level.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::manifests::{self, PodAddresses};
use crate::node::{NODE, Node, OUTSIDE};
use crate::probe::{Outcome, PATIENCE, Probe, SILENCE};
use crate::table::{Cell, Table, Target};

/// An address out on the internet, by its name in tables.
pub const INTERNET: &str = "internet";
/// The address of a cloud's metadata service, by its name in tables.
pub const METADATA: &str = "metadata";

const INTERNET_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7))];
const METADATA_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// A case on a node.
#[derive(Debug)]
pub struct Shop {
    case: PathBuf,
    /// The node with the case's pods.
    pub node: Node,
}

/// The case directory of this name.
#[must_use]
pub fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name)
}

impl Shop {
    /// Builds the node: pods, servers for every target of `tables`, and the cluster's manifests where the agent reads.
    ///
    /// # Errors
    /// If a manifest or the kernel refuses.
    pub fn build(case: &Path, tables: &[&Table]) -> Result<Self> {
        let outside = [INTERNET_ADDRESSES, METADATA_ADDRESSES].concat();
        let mut node = Node::start(&outside)?;
        let cluster = case.join("cluster");
        for pod in manifests::pods(&cluster)? {
            node.add_pod(&pod)?;
        }
        let shop = Self { case: case.to_owned(), node };
        shop.serve(tables)?;
        for file in manifests::files(&cluster)? {
            shop.put(&file)?;
        }
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
        let files = manifests::files(&self.case.join("policies"))?;
        files.iter().try_for_each(|file| self.put(file))?;
        Ok(files)
    }

    /// Puts one file of `changes/` in the place of the policy file of the same name.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn put_change(&self, name: &str) -> Result<PathBuf> {
        let file = self.case.join("changes").join(name);
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
        let files = manifests::files(&self.case.join("policies"))?;
        files.iter().filter_map(|file| file.file_name()?.to_str()).try_for_each(|name| self.remove(name))
    }

    /// Takes a pod away and brings it back with its addresses, another interface and no servers.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn restart_pod(&mut self, key: &str) -> Result<()> {
        let pod = PodAddresses::new(key, self.node.addresses(key)?);
        self.node.remove_pod(key)?;
        self.node.add_pod(&pod)?;
        Ok(())
    }

    /// The probe that answers one cell.
    ///
    /// # Errors
    /// If the places are unknown.
    pub fn probe(&self, source: &str, target: &Target, ipv6: bool) -> Result<Probe> {
        let place = place_of(&target.name);
        let address = match target.name.as_str() {
            INTERNET => of_family(INTERNET_ADDRESSES, ipv6),
            METADATA => of_family(METADATA_ADDRESSES, ipv6),
            place => self.node.address(place, ipv6)?,
        };
        let at = SocketAddr::new(address, target.port);
        Ok(Probe { from: source.to_owned(), to: place.to_owned(), at, transport: target.transport })
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
        let asked = pairs.iter().filter(|(source, target, _)| *source != place_of(&target.name));
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
        let cells =
            pairs.iter().map(
                |(source, target, _)| {
                    if *source == place_of(&target.name) { Cell::Skipped } else { cell_of(outcomes.next()) }
                },
            );
        let measured = expected.with_cells(cells);
        Ok((measured, odd))
    }

    fn serve(&self, tables: &[&Table]) -> Result<()> {
        let mut targets: Vec<_> = tables
            .iter()
            .flat_map(|table| table.targets())
            .map(|target| (place_of(&target.name), target.transport, target.port))
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets.into_iter().try_for_each(|(place, transport, port)| self.node.serve(place, transport, [port]))
    }
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
