//! One node's agent without a kernel: decodes, compiles and applies as the real one does, into [`HostTables`].
//!
//! In: raw changes. Out: tables, and for each local pod its endpoint and policy word. Slots go to pods in the order in
//! which they turn up, and a freed slot is used again at once: the compiler must cope with that.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by a field that it lacks gives null")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use netpol_agent::cluster::model::{ClusterEvent, ObjectKey, ObjectRef, PodKey};
use netpol_agent::datapath::apply::{Applier, OnFailure};
use netpol_agent::datapath::ids::NumbersInUse;
use netpol_agent::datapath::installed::Installed;
use netpol_agent::datapath::plan::{MapStore, Op, StoreError};
use netpol_agent::policy::{Compiler, Limits};
use netpol_agent::source::{Outcome, decode_value};
use netpol_common::abi::{AddressRole, Config, Endpoint, EndpointFlags, Mac, Mark, PolicyWord, Sender, V4, V6};
use netpol_common::host::HostTables;
use serde_json::Value;

use crate::judge::{Change, Name, Objects};

/// A pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// What the hooks know of its interface.
    pub endpoint: Endpoint,
    /// What it is subject to.
    pub word: PolicyWord,
}

impl LocalPod {
    /// MAC address of the pod's side.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.endpoint.mac.octets()
    }
}

/// The agent of one node.
pub struct Agent {
    name: String,
    addresses: Vec<IpAddr>,
    objects: Objects,
    slots: BTreeMap<Name, u16>,
    pods: BTreeMap<Name, LocalPod>,
    compiler: Compiler,
    applier: Applier,
    maps: Maps,
}

impl Agent {
    /// The agent of a node that has these addresses.
    #[must_use]
    pub fn new(name: &str, addresses: &[IpAddr], config: Config) -> Self {
        let mut tables = HostTables::new(config);
        for address in addresses {
            tables.set_role(*address, AddressRole::OWN);
        }
        Self {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            objects: Objects::default(),
            slots: BTreeMap::new(),
            pods: BTreeMap::new(),
            compiler: Compiler::new(Limits::default(), NumbersInUse::default()),
            applier: Applier::new(Installed::default(), OnFailure::Deny),
            maps: Maps { tables, words: BTreeMap::new() },
        }
    }

    /// Takes changes in, and carries every step out that follows from them.
    ///
    /// # Errors
    /// An object is not taken as written, or a step is not carried out completely: inputs here are legal and nothing fails.
    pub fn change(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        for change in changes {
            self.objects.change(change);
            for event in events(change)? {
                self.compiler.apply(event);
            }
        }
        self.assign_slots()?;
        while let Some(step) = self.compiler.next_step() {
            let outcome = self.applier.apply(self.compiler.desired(), &step.touched, &mut self.maps);
            ensure!(outcome.complete, "a step was not carried out: {outcome:?}");
            self.compiler.applied(true);
        }
        for (name, slot) in &self.slots {
            let pod = self.objects.get("Pod", name).context("a slot without a pod")?;
            let word = self.maps.words.get(slot).copied().unwrap_or_default();
            self.pods.insert(name.clone(), LocalPod { endpoint: endpoint(*slot, &addresses(pod)), word });
        }
        Ok(())
    }

    /// The pod's interface, if it has one on this node.
    #[must_use]
    pub fn local(&self, pod: &Name) -> Option<&LocalPod> {
        self.pods.get(pod)
    }

    /// Name of the node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every pod that has an interface on this node.
    pub fn pods(&self) -> impl Iterator<Item = (&Name, &LocalPod)> {
        self.pods.iter()
    }

    /// Whether a pod of this node has the address.
    #[must_use]
    pub fn has_pod_at(&self, address: IpAddr) -> bool {
        let has = |name: &Name| self.objects.get("Pod", name).is_some_and(|pod| addresses(pod).contains(&address));
        self.pods.keys().any(has)
    }

    /// The maps.
    #[must_use]
    pub const fn tables(&self) -> &HostTables {
        &self.maps.tables
    }

    /// True for the node's own addresses.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The mark that `from_pod` puts on a pod's packet that it has judged.
    #[must_use]
    pub const fn mark_of_judged(&self) -> u32 {
        let config = &self.maps.tables.config;
        Mark::new(config.mark_mask, config.mark_shift).write(0, Sender::Judged)
    }

    /// Empties the flow tables.
    pub fn forget_flows(&mut self) {
        let tables = &mut self.maps.tables;
        tables.v4.flows.get_mut().clear();
        tables.v4.unanswered.get_mut().clear();
        tables.v6.flows.get_mut().clear();
        tables.v6.unanswered.get_mut().clear();
        tables.reports.get_mut().clear();
    }

    /// A slot for each live pod of this node that has an address; the slots of the others are free again.
    fn assign_slots(&mut self) -> anyhow::Result<()> {
        let is_local = |pod: &Value| {
            pod["spec"]["nodeName"].as_str() == Some(&self.name)
                && pod["spec"]["hostNetwork"].as_bool() != Some(true)
                && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
                && !addresses(pod).is_empty()
        };
        let local: Vec<&Name> = self.objects.of("Pod").filter(|(_, pod)| is_local(pod)).map(|(name, _)| name).collect();
        self.slots.retain(|name, _| local.contains(&name));
        self.pods.retain(|name, _| local.contains(&name));
        for name in local {
            if !self.slots.contains_key(name) {
                let is_free = |slot: &u16| !self.slots.values().any(|taken| taken == slot);
                let slot = (1..=u16::MAX).find(is_free).context("no slot is left")?;
                self.slots.insert(name.clone(), slot);
            }
        }
        let slots = self.slots.iter().map(|((namespace, name), slot)| (*slot, PodKey::new(namespace, name)));
        self.compiler.set_local(slots.collect());
        Ok(())
    }
}

/// The maps of the BPF object.
struct Maps {
    tables: HostTables,
    words: BTreeMap<u16, PolicyWord>,
}

impl MapStore for Maps {
    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, StoreError)> {
        let tables = &mut self.tables;
        for op in ops {
            match op {
                Op::WritePortSet { number, bits } => _ = tables.port_sets.insert(*number, bits.to_vec()),
                Op::WriteAllow(key, value) => _ = tables.allow.insert(*key, *value),
                Op::RemoveAllow(key) => _ = tables.allow.remove(key),
                Op::WriteAddress(address, identity) => tables.set_identity(*address, *identity),
                Op::RemoveAddress(IpAddr::V4(address)) => _ = tables.v4.identities.remove(&(*address).into()),
                Op::RemoveAddress(IpAddr::V6(address)) => _ = tables.v6.identities.remove(&(*address).into()),
                Op::WriteCidr(block, identity) => {
                    remove_cidr(tables, block.addr(), block.prefix_len());
                    tables.set_cidr(block.addr(), block.prefix_len(), *identity);
                }
                Op::RemoveCidr(block) => remove_cidr(tables, block.addr(), block.prefix_len()),
                Op::WritePolicyWord { slot, word } => _ = self.words.insert(*slot, *word),
            }
        }
        Ok(())
    }
}

fn remove_cidr(tables: &mut HostTables, network: IpAddr, length: u8) {
    match network {
        IpAddr::V4(network) => {
            let network = V4::from(network);
            tables.v4.cidrs.retain(|(address, its_length, _)| (*address, *its_length) != (network, length));
        }
        IpAddr::V6(network) => {
            let network = V6::from(network);
            tables.v6.cidrs.retain(|(address, its_length, _)| (*address, *its_length) != (network, length));
        }
    }
}

/// What the source makes of a change.
fn events(change: &Change) -> anyhow::Result<Vec<ClusterEvent>> {
    match change {
        Change::Apply(object) => {
            let decoded = decode_value("test", object);
            let taken = decoded.items.into_iter().map(|item| match item.outcome {
                Outcome::Taken(object) => Ok(ClusterEvent::Apply(object)),
                outcome @ (Outcome::Narrowed(_) | Outcome::Refused | Outcome::Skipped) => {
                    bail!("not taken as written: {outcome:?}: {:?}", item.problems)
                }
            });
            taken.collect()
        }
        Change::Delete { kind, name: (namespace, name) } => {
            let key = ObjectKey::new(namespace, name);
            Ok(vec![ClusterEvent::Delete(match kind.as_str() {
                "Namespace" => ObjectRef::Namespace(name.as_str().into()),
                "Pod" => ObjectRef::Pod(key),
                "NetworkPolicy" => ObjectRef::NetworkPolicy(key),
                kind => bail!("nobody deletes a {kind} here"),
            })])
        }
    }
}

fn addresses(pod: &Value) -> Vec<IpAddr> {
    let entries = pod["status"]["podIPs"].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
}

fn endpoint(slot: u16, addresses: &[IpAddr]) -> Endpoint {
    let [high, low] = slot.to_be_bytes();
    let mac = Mac::from_octets([0x0a, 0x58, 0, 1, high, low]);
    let mut endpoint = Endpoint { slot, mac, ..Endpoint::default() };
    for address in addresses {
        match *address {
            IpAddr::V4(address) => {
                endpoint.flags |= EndpointFlags::HAS_V4;
                endpoint.ipv4 = address.into();
            }
            IpAddr::V6(address) => {
                endpoint.flags |= EndpointFlags::HAS_V6;
                endpoint.ipv6 = address.into();
            }
        }
    }
    endpoint
}
