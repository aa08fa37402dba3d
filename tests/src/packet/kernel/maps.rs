//! The object's maps as the scenes need them: filled from the host's tables, emptied, read, made older.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use netpol_common::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Counter, CounterIndex, Endpoint, EventGate, Flow, FlowKey, FragmentCell,
    PORT_SET_BYTES, PolicyWord, SLOT_NONE, TokenBucket, V4, V6, map,
};
use netpol_common::host::{FamilyTables, HostTables};
use netpol_common::packet::Address;

use super::EventTotals;
use super::flows::{FlowTables, Place};

/// The maps of one family.
struct FamilyMaps<A: Pod>
where
    FlowKey<A>: Pod,
{
    identities: HashMap<MapData, A, u32>,
    cidrs: LpmTrie<MapData, A, u32>,
    roles: HashMap<MapData, A, u32>,
    flows: HashMap<MapData, FlowKey<A>, Flow>,
    unanswered: HashMap<MapData, FlowKey<A>, Flow>,
}

/// The maps.
pub(super) struct Maps {
    endpoints: Array<MapData, Endpoint>,
    far_endpoints: HashMap<MapData, u32, Endpoint>,
    pods: Array<MapData, Endpoint>,
    policy_words: Array<MapData, PolicyWord>,
    node_ports: Array<MapData, [u8; PORT_SET_BYTES]>,
    secret: Array<MapData, [u32; 2]>,
    backends: HashMap<MapData, BackendKey, Backend>,
    fragments: Array<MapData, FragmentCell>,
    /// Fragments' cells that may not be zero.
    written: BTreeSet<u32>,
    allow: HashMap<MapData, AllowKey, AllowValue>,
    port_sets: Array<MapData, [u8; PORT_SET_BYTES]>,
    counters: PerCpuArray<MapData, Counter>,
    gates: PerCpuArray<MapData, EventGate>,
    tokens: PerCpuArray<MapData, TokenBucket>,
    lost: PerCpuArray<MapData, u64>,
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
}

impl Maps {
    /// Takes the maps out of the object; the programs hold on to them.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            endpoints: take(ebpf, map::ENDPOINTS)?,
            far_endpoints: take(ebpf, map::ENDPOINTS_FAR)?,
            pods: take(ebpf, map::PODS)?,
            policy_words: take(ebpf, map::POLICY_WORDS)?,
            node_ports: take(ebpf, map::NODE_PORTS)?,
            secret: take(ebpf, map::SECRET)?,
            backends: take(ebpf, map::BACKENDS)?,
            fragments: take(ebpf, map::FRAGMENTS)?,
            written: BTreeSet::new(),
            allow: take(ebpf, map::ALLOW)?,
            port_sets: take(ebpf, map::PORT_SETS)?,
            counters: take(ebpf, map::COUNTERS)?,
            gates: take(ebpf, map::EVENT_GATES)?,
            tokens: take(ebpf, map::EVENT_TOKENS)?,
            lost: take(ebpf, map::EVENTS_LOST)?,
            v4: FamilyMaps {
                identities: take(ebpf, map::IDENTITY_V4)?,
                cidrs: take(ebpf, map::CIDR_V4)?,
                roles: take(ebpf, map::ADDRESS_ROLES_V4)?,
                flows: take(ebpf, map::FLOWS_V4)?,
                unanswered: take(ebpf, map::UNANSWERED_V4)?,
            },
            v6: FamilyMaps {
                identities: take(ebpf, map::IDENTITY_V6)?,
                cidrs: take(ebpf, map::CIDR_V6)?,
                roles: take(ebpf, map::ADDRESS_ROLES_V6)?,
                flows: take(ebpf, map::FLOWS_V6)?,
                unanswered: take(ebpf, map::UNANSWERED_V6)?,
            },
        })
    }

    pub(super) fn reset(&mut self, host: &HostTables) -> Result<()> {
        self.v4.reset(&host.v4)?;
        self.v6.reset(&host.v6)?;
        self.secret.set(0, host.secret, 0)?;
        for index in std::mem::take(&mut self.written) {
            self.fragments.set(index, FragmentCell::default(), 0)?;
        }
        clear(&mut self.backends)?;
        for (key, backend) in host.backends.borrow().iter() {
            self.backends.insert(key, backend, 0)?;
        }
        for slot in 0..self.pods.len() {
            self.pods.set(slot, Endpoint::default(), 0)?;
        }
        for (endpoint, policy) in host.pods.values() {
            self.set_pod(endpoint, *policy)?;
        }
        self.set_node_ports(host)?;
        clear(&mut self.allow)?;
        for (key, value) in &host.allow {
            self.allow.insert(key, value, 0)?;
        }
        for (set, bits) in &host.port_sets {
            let bits = <[u8; PORT_SET_BYTES]>::try_from(bits.as_slice()).context("a port set of another size")?;
            self.port_sets.set(u32::from(*set), bits, 0)?;
        }
        Ok(())
    }

    /// Says which pod a slot stands for, and what it is subject to.
    pub(super) fn set_pod(&mut self, endpoint: &Endpoint, policy: PolicyWord) -> Result<()> {
        let slot = u32::from(endpoint.slot);
        if endpoint.slot != SLOT_NONE && slot < self.policy_words.len() {
            self.pods.set(slot, endpoint, 0)?;
            self.policy_words.set(slot, policy, 0)?;
        }
        Ok(())
    }

    fn set_node_ports(&mut self, host: &HostTables) -> Result<()> {
        for (index, protocol) in (0..).zip([6, 17, 132]) {
            let mut bits = [0; PORT_SET_BYTES];
            for (_, port) in host.node_ports.iter().filter(|(of, _)| *of == protocol) {
                if let Some(byte) = bits.get_mut(usize::from(port / 8)) {
                    *byte |= 1 << (port % 8);
                }
            }
            self.node_ports.set(index, bits, 0)?;
        }
        Ok(())
    }

    pub(super) fn record_backend(&mut self, key: BackendKey, backend: Backend) -> Result<()> {
        Ok(self.backends.insert(key, backend, 0)?)
    }

    pub(super) fn backends(&self) -> Result<BTreeMap<BackendKey, Backend>> {
        Ok(entries(&self.backends)?.into_iter().collect())
    }

    /// The cells of these indexes; they are cleared at the next reset.
    pub(super) fn fragments(&mut self, indexes: &[u32]) -> Result<Vec<FragmentCell>> {
        self.written.extend(indexes);
        indexes.iter().map(|index| Ok(self.fragments.get(index, 0)?)).collect()
    }

    pub(super) fn set_subject(&mut self, ifindex: u32, endpoint: Endpoint, policy: PolicyWord) -> Result<()> {
        if ifindex < self.endpoints.len() {
            self.endpoints.set(ifindex, endpoint, 0)?;
        } else {
            self.far_endpoints.insert(ifindex, endpoint, 0)?;
        }
        self.set_pod(&endpoint, policy)
    }

    pub(super) fn set_allow(&mut self, key: AllowKey, value: Option<AllowValue>) -> Result<()> {
        match value {
            Some(value) => self.allow.insert(key, value, 0)?,
            None if self.allow.get(&key, 0).is_ok() => self.allow.remove(&key)?,
            None => {}
        }
        Ok(())
    }

    pub(super) fn age(&mut self, jiffies: u32) -> Result<()> {
        self.v4.age(jiffies)?;
        self.v6.age(jiffies)?;
        for &index in &self.written {
            let cell = self.fragments.get(&index, 0)?;
            self.fragments.set(index, cell.older(jiffies), 0)?;
        }
        Ok(())
    }

    pub(super) fn flows(&self) -> Result<FlowTables> {
        let mut tables = FlowTables::default();
        self.v4.add_flows(&mut tables)?;
        self.v6.add_flows(&mut tables)?;
        Ok(tables)
    }

    /// Every counter of these slots.
    pub(super) fn counters(&self, slots: &[u16]) -> Result<Vec<(CounterIndex, Counter)>> {
        let first = |slot: u16| u32::from(slot) * CounterIndex::PER_SLOT;
        let indexes = slots.iter().flat_map(|&slot| first(slot)..first(slot) + CounterIndex::PER_SLOT);
        let sum = |index: u32| {
            let mut total = Counter::default();
            for counter in self.counters.get(&index, 0)?.iter() {
                total.packets += counter.packets;
                total.bytes += counter.bytes;
            }
            Ok((CounterIndex(index), total))
        };
        indexes.map(sum).collect()
    }

    pub(super) fn event_totals(&self, slot: u16) -> Result<EventTotals> {
        let mut totals = EventTotals::default();
        for gates in self.gates.iter() {
            totals.suppressed += gates?.iter().map(|gate| u64::from(gate.suppressed)).sum::<u64>();
        }
        totals.refused = self.tokens.get(&u32::from(slot), 0)?.iter().map(|bucket| bucket.refused).sum();
        totals.lost = self.lost.get(&0, 0)?.iter().sum();
        Ok(totals)
    }
}

impl<A: Address + Pod + Hash> FamilyMaps<A>
where
    FlowKey<A>: Pod,
{
    fn reset(&mut self, host: &FamilyTables<A>) -> Result<()> {
        clear(&mut self.identities)?;
        clear(&mut self.roles)?;
        clear(&mut self.flows)?;
        clear(&mut self.unanswered)?;
        let prefixes: Vec<Key<A>> = self.cidrs.keys().collect::<Result<_, MapError>>()?;
        for prefix in prefixes {
            self.cidrs.remove(&prefix)?;
        }
        for (address, identity) in &host.identities {
            self.identities.insert(address, identity, 0)?;
        }
        for (network, length, identity) in &host.cidrs {
            self.cidrs.insert(&Key::new(u32::from(*length), *network), identity, 0)?;
        }
        for (address, role) in &host.roles {
            self.roles.insert(address, role, 0)?;
        }
        Ok(())
    }

    fn age(&mut self, jiffies: u32) -> Result<()> {
        for table in [&mut self.flows, &mut self.unanswered] {
            for (key, flow) in entries(table)? {
                table.insert(key, Flow { last_seen: flow.last_seen.wrapping_sub(jiffies), ..flow }, 0)?;
            }
        }
        Ok(())
    }

    fn add_flows(&self, tables: &mut FlowTables) -> Result<()> {
        for (table, place) in [(&self.flows, Place::Answered), (&self.unanswered, Place::Unanswered)] {
            for entry in table.iter() {
                let (key, flow) = entry?;
                tables.add(&key, flow, place);
            }
        }
        Ok(())
    }
}

fn take<T: TryFrom<aya::maps::Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name}"))
}

fn entries<K: Pod, V: Pod>(table: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>> {
    Ok(table.iter().collect::<Result<_, MapError>>()?)
}

fn clear<K: Pod, V: Pod>(table: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = table.keys().collect::<Result<_, MapError>>()?;
    for key in keys {
        table.remove(key.borrow())?;
    }
    Ok(())
}
