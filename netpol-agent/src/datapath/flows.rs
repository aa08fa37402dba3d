//! Puts flows into the pinned tables, beside the programs that use them: connections from before the first agent.
//!
//! In: [`Seeds`]. Out: entries, each with a place in its pod's ring of keys (`netpol-ebpf/src/rings.rs`), so that no pod has
//! more than its share and its own new flows take the room again. To the programs this is one more CPU that opens flows.
//! Start at [`FlowTables::plant`].

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, MapError};
use netpol_common::abi::{
    Backend, BackendKey, Config, Flow, FlowKey, FlowWord, PORT_SET_BYTES, RingHeads, V4, V6, map,
};
use netpol_common::host::HostTables;
use netpol_common::packet::protocol;

use super::jiffies::Jiffies;
use super::pins::PinDir;
use super::seed::{Replay, Seed, Seeds};
use super::store::{OpenError, Pinned};

/// Which of a slot's heads is a ring's.
type Head = fn(&mut RingHeads) -> &mut u32;

/// Places that are looked at for one entry.
const PLACES: u32 = 4;
/// How often what was planted is looked through again.
const REVIEWS: u32 = 5;
/// `BPF_NOEXIST` and `BPF_EXIST`.
const NEW: u64 = 1;
const PRESENT: u64 = 2;

/// The flow tables with their rings.
pub struct FlowTables {
    v4: Family<V4>,
    v6: Family<V6>,
    backends: HashMap<MapData, BackendKey, Backend>,
    backends_ring: Array<MapData, BackendKey>,
    heads: Array<MapData, RingHeads>,
    secret: Array<MapData, [u32; 2]>,
    config: Config,
    clock: Jiffies,
}

struct Family<A>
where
    FlowKey<A>: Pod,
{
    answered: Table<A>,
    unanswered: Table<A>,
}

struct Table<A>
where
    FlowKey<A>: Pod,
{
    entries: HashMap<MapData, FlowKey<A>, Flow>,
    ring: Array<MapData, FlowKey<A>>,
    head: Head,
}

/// What became of seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// New entries.
    pub new: u64,
    /// Entries of the programs' own that had taken an answer for the opening.
    pub corrected: u64,
    /// Flows that the programs know as they are.
    pub known: u64,
    /// Flows for which their pod has no room.
    pub refused: u64,
}

/// What a single seed came to.
enum Fate {
    New,
    Corrected,
    Known,
    Refused,
}

impl Planted {
    const fn count(&mut self, fate: &Fate) {
        match fate {
            Fate::New => self.new += 1,
            Fate::Corrected => self.corrected += 1,
            Fate::Known => self.known += 1,
            Fate::Refused => self.refused += 1,
        }
    }
}

impl FlowTables {
    /// Opens the tables; `config` is what the programs run with.
    ///
    /// # Errors
    /// If a pinned map is missing or of another layout.
    pub fn open(pins: &PinDir, config: Config, clock: Jiffies) -> Result<Self, OpenError> {
        let pinned = Pinned(pins);
        Ok(Self {
            v4: Family {
                answered: Table {
                    entries: pinned.open(map::FLOWS_V4)?,
                    ring: pinned.open(map::FLOWS_V4_RING)?,
                    head: |heads| &mut heads.flows_v4,
                },
                unanswered: Table {
                    entries: pinned.open(map::UNANSWERED_V4)?,
                    ring: pinned.open(map::UNANSWERED_V4_RING)?,
                    head: |heads| &mut heads.unanswered_v4,
                },
            },
            v6: Family {
                answered: Table {
                    entries: pinned.open(map::FLOWS_V6)?,
                    ring: pinned.open(map::FLOWS_V6_RING)?,
                    head: |heads| &mut heads.flows_v6,
                },
                unanswered: Table {
                    entries: pinned.open(map::UNANSWERED_V6)?,
                    ring: pinned.open(map::UNANSWERED_V6_RING)?,
                    head: |heads| &mut heads.unanswered_v6,
                },
            },
            backends: pinned.open(map::BACKENDS)?,
            backends_ring: pinned.open(map::BACKENDS_RING)?,
            heads: pinned.open(map::RING_HEADS)?,
            secret: pinned.open(map::SECRET)?,
            config,
            clock,
        })
    }

    /// The hooks as they are now, to play connections through: their settings, secret and clock, and these roles of addresses
    /// and ports of the node.
    ///
    /// # Errors
    /// If the secret or the clock cannot be read.
    pub fn replay(&self, roles: &BTreeMap<IpAddr, u32>, node_ports: &[[u8; PORT_SET_BYTES]; 3]) -> io::Result<Replay> {
        let secret = self.secret.get(&0, 0).map_err(io::Error::other)?;
        let mut tables = HostTables::new(self.config);
        tables.now.set(self.clock.now()?);
        tables.secret = secret;
        Ok(Replay::new(with_roles(tables, roles, node_ports)))
    }

    /// Adds what the programs do not know, and corrects what they took up the wrong way round. What is worth most comes first.
    ///
    /// A program that was at a flow in the very moment may have written what it knew over the seed: all is looked through again
    /// until nothing is to be corrected.
    ///
    /// # Errors
    /// The first entry that the kernel refused; what came before it is in the tables.
    pub fn plant(&mut self, seeds: &Seeds) -> io::Result<Planted> {
        let mut planted = self.plant_once(seeds)?;
        for _ in 0..REVIEWS {
            let again = self.plant_once(seeds)?;
            planted.corrected += again.corrected;
            if again.corrected == 0 && again.new == 0 {
                break;
            }
        }
        Ok(planted)
    }

    fn plant_once(&mut self, seeds: &Seeds) -> io::Result<Planted> {
        let Self { v4, v6, heads, .. } = self;
        let mut planted = Planted::default();
        // Behind services first: a reply that the flow's entry speaks of needs its backend.
        for (key, backend) in &seeds.backends {
            plant_backend((&mut self.backends, &mut self.backends_ring), heads, key, backend)
                .map_err(io::Error::other)?;
        }
        for seed in &seeds.v4 {
            planted.count(&v4.plant(heads, seed).map_err(io::Error::other)?);
        }
        for seed in &seeds.v6 {
            planted.count(&v6.plant(heads, seed).map_err(io::Error::other)?);
        }
        Ok(planted)
    }
}

/// The roles and ports as the maps have them.
#[must_use]
pub fn with_roles(
    mut tables: HostTables,
    roles: &BTreeMap<IpAddr, u32>,
    node_ports: &[[u8; PORT_SET_BYTES]; 3],
) -> HostTables {
    for (&address, &role) in roles {
        tables.set_role(address, role);
    }
    for (bits, number) in node_ports.iter().zip([protocol::TCP, protocol::UDP, protocol::SCTP]) {
        let set = |port: &u16| bits.get(usize::from(port / 8)).is_some_and(|byte| byte >> (port % 8) & 1 == 1);
        tables.node_ports.extend((0..=u16::MAX).filter(set).map(|port| (number, port)));
    }
    tables
}

impl<A: Copy> Family<A>
where
    FlowKey<A>: Pod,
{
    fn plant(&mut self, heads: &mut Array<MapData, RingHeads>, seed: &Seed<A>) -> Result<Fate, MapError> {
        if let Some(present) = present(self.answered.entries.get(&seed.key, 0))? {
            return self.answered.correct(seed, present);
        }
        let unanswered = present(self.unanswered.entries.get(&seed.key, 0))?;
        match unanswered {
            Some(present) if !seed.answered => self.unanswered.correct(seed, present),
            Some(_) => {
                // It is found first from now on, as one that was promoted.
                let fate = self.answered.add(heads, seed)?;
                if matches!(fate, Fate::New) {
                    absent_is_fine(self.unanswered.entries.remove(&seed.key))?;
                }
                Ok(fate)
            }
            None if seed.answered => self.answered.add(heads, seed),
            None => self.unanswered.add(heads, seed),
        }
    }
}

impl<A: Copy> Table<A>
where
    FlowKey<A>: Pod,
{
    /// The programs know when a flow was seen and how far it is, but of one whose opening they did not see, not who opened it
    /// nor, before every hook was in place, what the node does to it on the way.
    fn correct(&mut self, seed: &Seed<A>, present: Flow) -> Result<Fate, MapError> {
        if nature(present) == nature(seed.flow) {
            return Ok(Fate::Known);
        }
        let flow = Flow { place: present.place, ..seed.flow };
        match self.entries.insert(seed.key, flow, PRESENT) {
            Err(error) if is(&error, libc::ENOENT) => Ok(Fate::Refused),
            other => other.map(|()| Fate::Corrected),
        }
    }

    fn add(&mut self, heads: &mut Array<MapData, RingHeads>, seed: &Seed<A>) -> Result<Fate, MapError> {
        let entries = &self.entries;
        let is_free = |number: u32, key: &FlowKey<A>| {
            Ok(present(entries.get(key, 0))?.is_none_or(|flow| flow.place != low_half(number)))
        };
        let Some(number) = take_place(heads, (&self.ring, self.head), seed.key.slot, is_free)? else {
            return Ok(Fate::Refused);
        };
        let flow = Flow { place: low_half(number), ..seed.flow };
        match self.entries.insert(seed.key, flow, NEW) {
            Ok(()) => {}
            // Its packet came just now; or no room is left in the table.
            Err(error) if is(&error, libc::EEXIST) => return Ok(Fate::Known),
            Err(error) if is(&error, libc::E2BIG) => return Ok(Fate::Refused),
            Err(error) => return Err(error),
        }
        self.ring.set(number, seed.key, 0)?;
        Ok(Fate::New)
    }
}

/// What of a flow is so from its first packet on: who opened it, who hides behind the peer's address, and where it is judged.
const fn nature(flow: Flow) -> (u8, u16, u8) {
    let kept = FlowWord::EXEMPT | FlowWord::DEFERRED;
    (flow.word.opener() as u8, flow.origin, flow.word.flags() & kept)
}

fn plant_backend(
    (table, ring): (&mut HashMap<MapData, BackendKey, Backend>, &mut Array<MapData, BackendKey>),
    heads: &mut Array<MapData, RingHeads>,
    key: &BackendKey,
    backend: &Backend,
) -> Result<(), MapError> {
    if present(table.get(key, 0))?.is_some() {
        return Ok(());
    }
    let is_free = |_, key: &BackendKey| Ok(present(table.get(key, 0))?.is_none());
    let head: Head = |heads| &mut heads.backends;
    let Some(number) = take_place(heads, (&*ring, head), key.slot, is_free)? else { return Ok(()) };
    match table.insert(key, backend, NEW) {
        Err(error) if is(&error, libc::EEXIST) || is(&error, libc::E2BIG) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => ring.set(number, key, 0),
    }
}

/// The number of a free place in a slot's stretch of a ring, and the head behind it; none if the next few are taken.
fn take_place<K: Pod>(
    heads: &mut Array<MapData, RingHeads>,
    (ring, head): (&Array<MapData, K>, Head),
    slot: u16,
    is_free: impl Fn(u32, &K) -> Result<bool, MapError>,
) -> Result<Option<u32>, MapError> {
    let slot = u32::from(slot);
    let length = ring.len() / heads.len().max(1);
    if slot >= heads.len() || length == 0 {
        return Ok(None);
    }
    let mut of_slot = heads.get(&slot, 0)?;
    let first = *head(&mut of_slot);
    for at in (0..PLACES.min(length)).map(|step| first.wrapping_add(step)) {
        let number = slot * length + at % length;
        if is_free(number, &ring.get(&number, 0)?)? {
            *head(&mut of_slot) = at.wrapping_add(1);
            heads.set(slot, of_slot, 0)?;
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn present<V>(found: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if is(&error, libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn is(error: &MapError, number: i32) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(number))
}

/// As [`Flow::place`] has it.
#[expect(clippy::cast_possible_truncation, reason = "takes 16 bits on purpose")]
const fn low_half(number: u32) -> u16 {
    number as u16
}
