//! The kernel's maps as a [`MapStore`], and what they hold now.
//!
//! In: operations of a plan, endpoints, address roles. Out: the maps changed, or which operation the kernel refused.
//! Everything is opened from the pins, so that sizes and layouts are the kernel's and not the object's. It keeps no
//! state of its own and decides no order: `plan` and `apply` do.

mod actual;
mod maps;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, lpm_trie};
use ipnet::IpNet;
use netpol_common::abi::{
    AllowKey, AllowValue, Counter, CounterIndex, Direction, Endpoint, POLICY_NOT_ISOLATED, PORT_SET_BYTES, PolicyWord,
    PortRule, Reason, TokenBucket, V4, V6, map,
};

pub use actual::{Actual, SlotCounters};
use maps::io_error;

pub(in crate::datapath) use actual::sum_of_slot;
pub(in crate::datapath) use maps::Pinned;

use super::pins::PinDir;
use super::plan::{MapStore, Op, StoreError};
use super::sys::MappedWords;

/// A pinned map that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the pinned map {path}: {source}; if another version left it behind, run `netpol-agent cleanup`")]
pub struct OpenError {
    /// The pin.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// The pinned maps that userspace writes and reads.
pub struct KernelStore {
    endpoints: Array<MapData, Endpoint>,
    endpoints_far: HashMap<MapData, u32, Endpoint>,
    pods: Array<MapData, Endpoint>,
    words: MappedWords,
    identity_v4: HashMap<MapData, V4, u32>,
    identity_v6: HashMap<MapData, V6, u32>,
    cidr_v4: LpmTrie<MapData, V4, u32>,
    cidr_v6: LpmTrie<MapData, V6, u32>,
    allow: HashMap<MapData, AllowKey, AllowValue>,
    port_sets: Array<MapData, [u8; PORT_SET_BYTES]>,
    roles_v4: HashMap<MapData, V4, u32>,
    roles_v6: HashMap<MapData, V6, u32>,
    node_ports: Array<MapData, [u8; PORT_SET_BYTES]>,
    counters: PerCpuArray<MapData, Counter>,
    events_lost: PerCpuArray<MapData, u64>,
    event_tokens: PerCpuArray<MapData, TokenBucket>,
}

type Stored = Result<(), StoreError>;

impl KernelStore {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// The first map that is missing or of another layout.
    pub fn open(pins: &PinDir) -> Result<Self, OpenError> {
        let pinned = Pinned(pins);
        let words: Array<MapData, PolicyWord> = pinned.open(map::POLICY_WORDS)?;
        let length = words.len();
        let path = pins.map(map::POLICY_WORDS);
        let words = pinned.data(map::POLICY_WORDS).and_then(|data| {
            MappedWords::new(data.fd().as_fd(), length).map_err(|source| OpenError { path, source })
        })?;
        Ok(Self {
            endpoints: pinned.open(map::ENDPOINTS)?,
            endpoints_far: pinned.open(map::ENDPOINTS_FAR)?,
            pods: pinned.open(map::PODS)?,
            words,
            identity_v4: pinned.open(map::IDENTITY_V4)?,
            identity_v6: pinned.open(map::IDENTITY_V6)?,
            cidr_v4: pinned.open(map::CIDR_V4)?,
            cidr_v6: pinned.open(map::CIDR_V6)?,
            allow: pinned.open(map::ALLOW)?,
            port_sets: pinned.open(map::PORT_SETS)?,
            roles_v4: pinned.open(map::ADDRESS_ROLES_V4)?,
            roles_v6: pinned.open(map::ADDRESS_ROLES_V6)?,
            node_ports: pinned.open(map::NODE_PORTS)?,
            counters: pinned.open(map::COUNTERS)?,
            events_lost: pinned.open(map::EVENTS_LOST)?,
            event_tokens: pinned.open(map::EVENT_TOKENS)?,
        })
    }

    /// Number of slots, slot 0 included.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.words.len()
    }

    /// The policy word of a slot; `None` if there is no such slot.
    #[must_use]
    pub fn policy_word(&self, slot: u16) -> Option<PolicyWord> {
        self.words.load(usize::from(slot)).map(PolicyWord)
    }

    /// Lets every pod's packets pass, followed as before: for the end of netpol on a node. Hooks go one after the other, and a
    /// hook whose fellow is gone would refuse the answers to what it did not see.
    ///
    /// # Errors
    /// If there is no such slot, which cannot be.
    pub fn let_all_pass(&mut self) -> Result<(), StoreError> {
        for slot in (0..u16::MAX).take(self.slots()) {
            let Some(word) = self.policy_word(slot) else { break };
            if Direction::ALL.iter().any(|&direction| word.is_isolated(direction)) {
                let open = PolicyWord::new(POLICY_NOT_ISOLATED, POLICY_NOT_ISOLATED, word.revision().wrapping_add(1));
                self.write_policy_word(slot, open)?;
            }
        }
        Ok(())
    }

    /// Moves a slot to another policy word.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn write_policy_word(&mut self, slot: u16, word: PolicyWord) -> Stored {
        let written = self.words.store(usize::from(slot), word.0);
        let beyond = || io::Error::other(format!("there are only {} slots", self.words.len()));
        written.then_some(()).ok_or_else(beyond).map_err(|source| StoreError {
            operation: format!("move slot {slot} to policy word {:#x}", word.0),
            map: map::POLICY_WORDS,
            source,
        })
    }

    /// Writes the endpoint of an interface. Write it before the hooks are attached.
    ///
    /// # Errors
    /// If the kernel refuses, e.g. as the map of large interface indexes is full.
    pub fn write_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Stored {
        let operation = || format!("write the endpoint of interface {ifindex} (slot {})", endpoint.slot);
        if ifindex < self.endpoints.len() {
            maps::stored(map::ENDPOINTS, operation, self.endpoints.set(ifindex, endpoint, 0))
        } else {
            maps::stored(map::ENDPOINTS_FAR, operation, self.endpoints_far.insert(ifindex, endpoint, 0))
        }
    }

    /// The endpoint of an interface, if it has one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn endpoint(&self, ifindex: u32) -> Result<Option<Endpoint>, StoreError> {
        let found = if ifindex < self.endpoints.len() {
            self.endpoints.get(&ifindex, 0).map(Some)
        } else {
            match self.endpoints_far.get(&ifindex, 0) {
                Err(aya::maps::MapError::KeyNotFound) => Ok(None),
                other => other.map(Some),
            }
        };
        let map = if ifindex < self.endpoints.len() { map::ENDPOINTS } else { map::ENDPOINTS_FAR };
        let found = found.map_err(|error| StoreError {
            operation: format!("read the endpoint of interface {ifindex}"),
            map,
            source: std::io::Error::other(error),
        })?;
        Ok(found.filter(|endpoint| !endpoint.is_absent()))
    }

    /// Removes the endpoint of an interface; absent is fine. Detach the hooks first: a hook without endpoint drops.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_endpoint(&mut self, ifindex: u32) -> Stored {
        let operation = || format!("remove the endpoint of interface {ifindex}");
        if ifindex < self.endpoints.len() {
            maps::stored(map::ENDPOINTS, operation, self.endpoints.set(ifindex, Endpoint::default(), 0))
        } else {
            maps::stored(map::ENDPOINTS_FAR, operation, maps::absent_is_fine(self.endpoints_far.remove(&ifindex)))
        }
    }

    /// Says which pod a slot stands for in the marks of its packets. Write it before the hooks are attached.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn write_pod(&mut self, endpoint: &Endpoint) -> Stored {
        let operation = || format!("write the pod of slot {}", endpoint.slot);
        maps::stored(map::PODS, operation, self.pods.set(u32::from(endpoint.slot), endpoint, 0))
    }

    /// A slot stands for no pod any more. Detach the hooks first.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_pod(&mut self, slot: u16) -> Stored {
        let operation = || format!("remove the pod of slot {slot}");
        maps::stored(map::PODS, operation, self.pods.set(u32::from(slot), Endpoint::default(), 0))
    }

    /// Makes the node's own ports that services translate exactly these: a set of bits for each of TCP, UDP, SCTP.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn write_node_ports(&mut self, sets: &[[u8; PORT_SET_BYTES]; 3]) -> Stored {
        for (index, bits) in (0..).zip(sets) {
            maps::stored(map::NODE_PORTS, || format!("write node ports {index}"), self.node_ports.set(index, bits, 0))?;
        }
        Ok(())
    }

    /// Makes the address roles exactly `wanted` (bits of `AddressRole`). New roles are written before old ones go.
    ///
    /// # Errors
    /// The first write or removal that the kernel refused; what came before it is done.
    pub fn sync_address_roles(&mut self, wanted: &BTreeMap<IpAddr, u32>) -> Stored {
        let present = self.address_roles()?;
        for (address, roles) in wanted.iter().filter(|(address, roles)| present.get(address) != Some(roles)) {
            let operation = || format!("write roles {roles:#x} of address {address}");
            match *address {
                IpAddr::V4(v4) => {
                    maps::stored(map::ADDRESS_ROLES_V4, operation, self.roles_v4.insert(V4::from(v4), roles, 0))
                }
                IpAddr::V6(v6) => {
                    maps::stored(map::ADDRESS_ROLES_V6, operation, self.roles_v6.insert(V6::from(v6), roles, 0))
                }
            }?;
        }
        for address in present.keys().filter(|address| !wanted.contains_key(address)) {
            let operation = || format!("remove the roles of address {address}");
            match *address {
                IpAddr::V4(v4) => {
                    let removed = maps::absent_is_fine(self.roles_v4.remove(&V4::from(v4)));
                    maps::stored(map::ADDRESS_ROLES_V4, operation, removed)
                }
                IpAddr::V6(v6) => {
                    let removed = maps::absent_is_fine(self.roles_v6.remove(&V6::from(v6)));
                    maps::stored(map::ADDRESS_ROLES_V6, operation, removed)
                }
            }?;
        }
        Ok(())
    }

    fn write_address(&mut self, address: IpAddr, identity: u32) -> Stored {
        let operation = || format!("give address {address} the identity {identity}");
        match address {
            IpAddr::V4(v4) => {
                maps::stored(map::IDENTITY_V4, operation, self.identity_v4.insert(V4::from(v4), identity, 0))
            }
            IpAddr::V6(v6) => {
                maps::stored(map::IDENTITY_V6, operation, self.identity_v6.insert(V6::from(v6), identity, 0))
            }
        }
    }

    fn remove_address(&mut self, address: IpAddr) -> Stored {
        let operation = || format!("remove the identity of address {address}");
        match address {
            IpAddr::V4(v4) => {
                let removed = maps::absent_is_fine(self.identity_v4.remove(&V4::from(v4)));
                maps::stored(map::IDENTITY_V4, operation, removed)
            }
            IpAddr::V6(v6) => {
                let removed = maps::absent_is_fine(self.identity_v6.remove(&V6::from(v6)));
                maps::stored(map::IDENTITY_V6, operation, removed)
            }
        }
    }

    fn write_cidr(&mut self, block: IpNet, identity: u32) -> Stored {
        let operation = || format!("give block {block} the identity {identity}");
        match block {
            IpNet::V4(v4) => maps::stored(map::CIDR_V4, operation, self.cidr_v4.insert(&prefix_v4(v4), identity, 0)),
            IpNet::V6(v6) => maps::stored(map::CIDR_V6, operation, self.cidr_v6.insert(&prefix_v6(v6), identity, 0)),
        }
    }

    fn remove_cidr(&mut self, block: IpNet) -> Stored {
        let operation = || format!("remove the identity of block {block}");
        match block {
            IpNet::V4(v4) => {
                let removed = maps::absent_is_fine(self.cidr_v4.remove(&prefix_v4(v4)));
                maps::stored(map::CIDR_V4, operation, removed)
            }
            IpNet::V6(v6) => {
                let removed = maps::absent_is_fine(self.cidr_v6.remove(&prefix_v6(v6)));
                maps::stored(map::CIDR_V6, operation, removed)
            }
        }
    }

    fn carry_out(&mut self, op: &Op) -> Stored {
        match op {
            Op::WritePortSet { number, bits } => {
                let operation = || format!("write port set {number}");
                let written = self.port_sets.set(u32::from(*number), **bits, 0);
                maps::stored(map::PORT_SETS, operation, written)
            }
            Op::WriteAllow(key, value) => {
                let operation = || format!("allow {value:?} to identity {} under policy {}", key.identity, key.policy);
                maps::stored(map::ALLOW, operation, self.allow.insert(key, value, 0))
            }
            Op::RemoveAllow(key) => {
                let operation = || format!("remove identity {} under policy {}", key.identity, key.policy);
                maps::stored(map::ALLOW, operation, maps::absent_is_fine(self.allow.remove(key)))
            }
            Op::WriteAddress(address, identity) => self.write_address(*address, *identity),
            Op::RemoveAddress(address) => self.remove_address(*address),
            Op::WriteCidr(block, identity) => self.write_cidr(*block, *identity),
            Op::RemoveCidr(block) => self.remove_cidr(*block),
            Op::WritePolicyWord { slot, word } => self.write_policy_word(*slot, *word),
        }
    }
}

impl MapStore for KernelStore {
    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, StoreError)> {
        ops.iter().enumerate().try_for_each(|(index, op)| self.carry_out(op).map_err(|error| (index, error)))
    }
}

fn prefix_v4(block: ipnet::Ipv4Net) -> lpm_trie::Key<V4> {
    lpm_trie::Key::new(u32::from(block.prefix_len()), V4::from(block.network()))
}

fn prefix_v6(block: ipnet::Ipv6Net) -> lpm_trie::Key<V6> {
    lpm_trie::Key::new(u32::from(block.prefix_len()), V6::from(block.network()))
}

#[cfg(test)]
mod tests;
