//! The object's maps as the scenes need them: filled from the host's tables, emptied, read, made older.

use std::borrow::Borrow;
use std::hash::Hash;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use netpol_common::abi::{
    AllowKey, AllowValue, Counter, CounterIndex, Endpoint, EventGate, Flow, FlowKey, Fragment, FragmentKey,
    PORT_SET_BYTES, PolicyWord, SLOT_NONE, TokenBucket, V4, V6, map,
};
use netpol_common::host::{FamilyTables, HostTables};
use netpol_common::packet::Address;

use super::EventTotals;
use super::flows::{FlowTables, FragmentTables, Place};

/// The maps of one family.
struct FamilyMaps<A: Pod>
where
    FlowKey<A>: Pod,
    FragmentKey<A>: Pod,
{
    identities: HashMap<MapData, A, u32>,
    cidrs: LpmTrie<MapData, A, u32>,
    roles: HashMap<MapData, A, u32>,
    flows: HashMap<MapData, FlowKey<A>, Flow>,
    unanswered: HashMap<MapData, FlowKey<A>, Flow>,
    fragments: HashMap<MapData, FragmentKey<A>, Fragment>,
}

/// The maps.
pub(super) struct Maps {
    endpoints: Array<MapData, Endpoint>,
    far_endpoints: HashMap<MapData, u32, Endpoint>,
    policy_words: Array<MapData, PolicyWord>,
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
            policy_words: take(ebpf, map::POLICY_WORDS)?,
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
                fragments: take(ebpf, map::FRAGMENTS_V4)?,
            },
            v6: FamilyMaps {
                identities: take(ebpf, map::IDENTITY_V6)?,
                cidrs: take(ebpf, map::CIDR_V6)?,
                roles: take(ebpf, map::ADDRESS_ROLES_V6)?,
                flows: take(ebpf, map::FLOWS_V6)?,
                unanswered: take(ebpf, map::UNANSWERED_V6)?,
                fragments: take(ebpf, map::FRAGMENTS_V6)?,
            },
        })
    }

    pub(super) fn reset(&mut self, host: &HostTables) -> Result<()> {
        self.v4.reset(&host.v4)?;
        self.v6.reset(&host.v6)?;
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

    pub(super) fn set_subject(&mut self, ifindex: u32, endpoint: Endpoint, policy: PolicyWord) -> Result<()> {
        if ifindex < self.endpoints.len() {
            self.endpoints.set(ifindex, endpoint, 0)?;
        } else {
            self.far_endpoints.insert(ifindex, endpoint, 0)?;
        }
        let slot = u32::from(endpoint.slot);
        if endpoint.slot != SLOT_NONE && slot < self.policy_words.len() {
            self.policy_words.set(slot, policy, 0)?;
        }
        Ok(())
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
        self.v6.age(jiffies)
    }

    pub(super) fn flows(&self) -> Result<FlowTables> {
        let mut tables = FlowTables::default();
        self.v4.add_flows(&mut tables)?;
        self.v6.add_flows(&mut tables)?;
        Ok(tables)
    }

    pub(super) fn fragments(&self) -> Result<FragmentTables> {
        let mut tables = FragmentTables::default();
        for entry in self.v4.fragments.iter() {
            let (key, fragment) = entry?;
            tables.add(&key, fragment);
        }
        for entry in self.v6.fragments.iter() {
            let (key, fragment) = entry?;
            tables.add(&key, fragment);
        }
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
    FragmentKey<A>: Pod,
{
    fn reset(&mut self, host: &FamilyTables<A>) -> Result<()> {
        clear(&mut self.identities)?;
        clear(&mut self.roles)?;
        clear(&mut self.flows)?;
        clear(&mut self.unanswered)?;
        clear(&mut self.fragments)?;
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
        for (key, fragment) in entries(&self.fragments)? {
            self.fragments.insert(key, Fragment { seen: fragment.seen.wrapping_sub(jiffies), ..fragment }, 0)?;
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
