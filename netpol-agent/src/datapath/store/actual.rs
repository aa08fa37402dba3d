//! Reading the maps back: what an earlier agent left in force, and the counters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::*;

/// What the maps hold. A restarted agent starts from it: every number in here is taken, and a slot's revision goes on
/// from its word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Policy words that are not zero, by slot.
    pub words: BTreeMap<u16, PolicyWord>,
    /// Allow entries.
    pub allow: BTreeMap<AllowKey, AllowValue>,
    /// Exact addresses.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// ipBlock regions.
    pub cidrs: BTreeMap<IpNet, u32>,
    /// Endpoints by interface index.
    pub endpoints: BTreeMap<u32, Endpoint>,
}

impl Actual {
    /// Policy ids that a slot or an allow entry names.
    #[must_use]
    pub fn policies(&self) -> BTreeSet<u16> {
        let words = self.words.values().flat_map(|word| Direction::ALL.map(|direction| word.policy(direction)));
        words.chain(self.allow.keys().map(|key| key.policy)).collect()
    }

    /// Identities that an address, a region or an allow entry names.
    #[must_use]
    pub fn identities(&self) -> BTreeSet<u32> {
        let addresses = self.addresses.values().chain(self.cidrs.values()).copied();
        addresses.chain(self.allow.keys().map(|key| key.identity)).collect()
    }

    /// Port sets that an allow entry names.
    #[must_use]
    pub fn port_sets(&self) -> BTreeSet<u16> {
        let fields = self.allow.values().flat_map(|value| [value.tcp, value.udp, value.sctp]);
        fields.filter(|field| matches!(PortRule::decode(*field), PortRule::Set(_))).collect()
    }
}

/// Counters of one slot that are not zero, summed over the CPUs.
pub type SlotCounters = BTreeMap<(Direction, Reason), Counter>;

impl KernelStore {
    /// Everything that the maps hold. A read of a hash that programs do not write is exact.
    ///
    /// # Errors
    /// The first read that the kernel refused.
    pub fn actual(&self) -> Result<Actual, StoreError> {
        let mut words = BTreeMap::new();
        for slot in 0..=u16::MAX {
            let Some(word) = self.policy_word(slot) else { break };
            if word.0 != 0 {
                words.insert(slot, word);
            }
        }
        let mut addresses = BTreeMap::new();
        collect(&mut addresses, map::IDENTITY_V4, self.identity_v4.iter(), |key| IpAddr::V4(key.into()))?;
        collect(&mut addresses, map::IDENTITY_V6, self.identity_v6.iter(), |key| IpAddr::V6(key.into()))?;
        Ok(Actual {
            words,
            allow: self.allow.iter().collect::<Result<_, _>>().map_err(read_error(map::ALLOW))?,
            addresses,
            cidrs: self.cidrs()?,
            endpoints: self.endpoints()?,
        })
    }

    /// Every pod's endpoint by interface index.
    ///
    /// # Errors
    /// The first read that the kernel refused.
    pub fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, StoreError> {
        let mut endpoints = BTreeMap::new();
        for (ifindex, endpoint) in (0_u32..).zip(self.endpoints.iter()) {
            let endpoint = endpoint.map_err(read_error(map::ENDPOINTS))?;
            if !endpoint.is_absent() {
                endpoints.insert(ifindex, endpoint);
            }
        }
        collect(&mut endpoints, map::ENDPOINTS_FAR, self.endpoints_far.iter(), |ifindex| ifindex)?;
        // Of a device that is no pod's, its lack of a link header is all that an entry says.
        endpoints.retain(|_, endpoint| !endpoint.is_absent());
        Ok(endpoints)
    }

    /// The role bits of every address that has any.
    ///
    /// # Errors
    /// The first read that the kernel refused.
    pub fn address_roles(&self) -> Result<BTreeMap<IpAddr, u32>, StoreError> {
        let mut roles = BTreeMap::new();
        collect(&mut roles, map::ADDRESS_ROLES_V4, self.roles_v4.iter(), |key| IpAddr::V4(key.into()))?;
        collect(&mut roles, map::ADDRESS_ROLES_V6, self.roles_v6.iter(), |key| IpAddr::V6(key.into()))?;
        Ok(roles)
    }

    /// The bits of a port set.
    ///
    /// # Errors
    /// If there is no such set or the kernel refuses.
    pub fn port_set(&self, number: u16) -> Result<Box<[u8; PORT_SET_BYTES]>, StoreError> {
        self.port_sets.get(&u32::from(number), 0).map(Box::new).map_err(read_error(map::PORT_SETS))
    }

    /// The counters of one slot, summed over the CPUs. Counts that a CPU writes meanwhile may be one packet old.
    ///
    /// # Errors
    /// If there is no such slot or the kernel refuses.
    pub fn counters(&self, slot: u16) -> Result<SlotCounters, StoreError> {
        sum_of_slot(&self.counters, slot)
    }

    /// Events that found the ring full, since the maps were made.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn events_lost(&self) -> Result<u64, StoreError> {
        let per_cpu = self.events_lost.get(&0, 0).map_err(read_error(map::EVENTS_LOST))?;
        Ok(per_cpu.iter().fold(0, |sum, lost| sum.wrapping_add(*lost)))
    }

    /// Events of a slot that were not sent as the pod had sent its share.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn events_refused(&self, slot: u16) -> Result<u64, StoreError> {
        let per_cpu = self.event_tokens.get(&u32::from(slot), 0).map_err(read_error(map::EVENT_TOKENS))?;
        Ok(per_cpu.iter().fold(0, |sum, bucket| sum.wrapping_add(bucket.refused)))
    }

    fn cidrs(&self) -> Result<BTreeMap<IpNet, u32>, StoreError> {
        let mut cidrs = BTreeMap::new();
        for entry in self.cidr_v4.iter() {
            let (key, identity) = entry.map_err(read_error(map::CIDR_V4))?;
            let block = prefix(key.prefix_len(), |length| Ipv4Net::new(Ipv4Addr::from(key.data()), length));
            cidrs.insert(IpNet::V4(block.map_err(read_error(map::CIDR_V4))?), identity);
        }
        for entry in self.cidr_v6.iter() {
            let (key, identity) = entry.map_err(read_error(map::CIDR_V6))?;
            let block = prefix(key.prefix_len(), |length| Ipv6Net::new(Ipv6Addr::from(key.data()), length));
            cidrs.insert(IpNet::V6(block.map_err(read_error(map::CIDR_V6))?), identity);
        }
        Ok(cidrs)
    }
}

fn prefix<N>(length: u32, block: impl FnOnce(u8) -> Result<N, ipnet::PrefixLenError>) -> Result<N, MapError> {
    let length = u8::try_from(length).map_err(|error| MapError::IoError(io::Error::other(error)))?;
    block(length).map_err(|error| MapError::IoError(io::Error::other(error)))
}

fn collect<K, V, L: Ord>(
    into: &mut BTreeMap<L, V>,
    map: &'static str,
    entries: impl Iterator<Item = Result<(K, V), MapError>>,
    key: impl Fn(K) -> L,
) -> Result<(), StoreError> {
    for entry in entries {
        let (found, value) = entry.map_err(read_error(map))?;
        into.insert(key(found), value);
    }
    Ok(())
}

fn read_error(map: &'static str) -> impl FnOnce(MapError) -> StoreError {
    move |error| StoreError { operation: "read an entry".to_owned(), map, source: io_error(error) }
}

/// The counters of one slot, summed over the CPUs.
pub(in crate::datapath) fn sum_of_slot(
    table: &PerCpuArray<MapData, Counter>,
    slot: u16,
) -> Result<SlotCounters, StoreError> {
    let mut counters = SlotCounters::new();
    for direction in Direction::ALL {
        for reason in Reason::ALL {
            let CounterIndex(index) = CounterIndex::new(slot, direction, *reason);
            let per_cpu = table.get(&index, 0).map_err(read_error(map::COUNTERS))?;
            let sum = per_cpu.iter().fold(Counter::default(), |sum, cpu| Counter {
                packets: sum.packets.wrapping_add(cpu.packets),
                bytes: sum.bytes.wrapping_add(cpu.bytes),
            });
            if sum.packets != 0 {
                counters.insert((direction, *reason), sum);
            }
        }
    }
    Ok(counters)
}
