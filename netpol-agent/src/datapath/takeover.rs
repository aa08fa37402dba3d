//! What carries over from an agent of another version, and from an earlier life of the node.
//!
//! In: the pin directory and the live hooks. Out: revisions and endpoints to go on from. Rules:
//! - Maps of our own layout are shared with the programs that still run: flows above all. They are not looked at here.
//! - Of maps of another layout two things are read, for ever (see [`netpol_common::abi::layout`]): a slot's revision and an
//!   interface's slot. Everything else that userspace writes is written anew before the first hook is swapped.
//! - Other layouts are left as they are until every hook runs our programs, and removed then. So an agent that is killed
//!   on the way leaves enough for the next one, of either version; where both layouts speak of an interface and disagree,
//!   neither is believed.
//! - What is said of an interface counts only if a program of ours is live there: an interface index, a pin and an entry can
//!   all outlive the interface that they were about.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;

use aya::maps::MapInfo;
use netpol_common::abi::{ENDPOINT_PREFIX, Endpoint, EndpointFlags, Mac, POLICY_DENY, PolicyWord, V4, V6, map};

use super::attach::{AttachError, Hooks, Role};
use super::pins::{OtherLayout, PinDir, PinError};
use super::plan::StoreError;
use super::sizing::Sizing;
use super::store::KernelStore;
use super::sys;

/// Why it is unknown what another version left.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The pin directory cannot be read.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A map of another layout cannot be read.
    #[error("cannot read the pinned map {path}, which another version left: {source}", path = .pin.path.display())]
    Read {
        /// The map.
        pin: OtherLayout,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map of our own layout cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The hooks cannot be examined.
    #[error(transparent)]
    Hooks(#[from] AttachError),
}

/// The pinned maps of other layouts.
#[derive(Clone, Debug)]
pub struct Others {
    pins: PinDir,
    maps: BTreeSet<OtherLayout>,
}

/// What earlier agents left of interfaces that are still there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The endpoint of each: one of its addresses, its slot.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Interfaces with live programs: those of `endpoints`, and those of which nothing certain is known.
    pub live: BTreeSet<u32>,
    /// Slots of interfaces that are gone: flows may name them still.
    pub freed: BTreeSet<u16>,
}

impl Others {
    /// Looks for them.
    ///
    /// # Errors
    /// If the pin directory cannot be read.
    pub fn find(pins: &PinDir) -> Result<Self, PinError> {
        let sizing = Sizing::default();
        let specs = sizing.maps();
        let maps = pins.other_layouts(&specs.iter().map(|spec| spec.name).collect())?;
        Ok(Self { pins: pins.clone(), maps })
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// The most slots that another version has.
    #[must_use]
    pub fn slots(&self) -> Option<u32> {
        // One that cannot be opened is reported when its revisions are read.
        let sizes = self.named(map::POLICY_WORDS).filter_map(|pin| MapInfo::from_pin(&pin.path).ok());
        sizes.map(|info| info.max_entries()).max()
    }

    /// What it means that these maps are of another layout and our own of them are about to be made: one sentence each.
    #[must_use]
    pub fn losses(&self) -> Vec<&'static str> {
        const FLOWS: &str = "the maps of flows are laid out otherwise than those of the agent before this one: no open \
                             connection is known, each is judged again as if it were new, and one of which only answers \
                             are allowed breaks";
        const COUNTERS: &str =
            "the counters are laid out otherwise than those of the agent before this one, and start at 0";
        let sentence = |name: &str| match name {
            map::FLOWS_V4 | map::FLOWS_V6 | map::UNANSWERED_V4 | map::UNANSWERED_V6 => Some(FLOWS),
            map::COUNTERS => Some(COUNTERS),
            _ => None,
        };
        let renewed = self.maps.iter().filter(|other| !self.pins.map(&other.name).exists());
        let sentences: BTreeSet<&str> = renewed.filter_map(|other| sentence(&other.name)).collect();
        sentences.into_iter().collect()
    }

    /// The newest revision of each slot in any of them.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn revisions(&self) -> Result<BTreeMap<u16, u32>, TakeoverError> {
        let mut newest = BTreeMap::new();
        for pin in self.named(map::POLICY_WORDS) {
            let reader = Reader::open(pin)?;
            for slot in 0..=u16::MAX {
                let Some(bytes) = reader.value(u32::from(slot))? else { break };
                let word = PolicyWord(u64::from_ne_bytes(field(&bytes, 0)));
                if word != PolicyWord::default() {
                    let revision = newest.entry(slot).or_insert(word.revision());
                    *revision = newer(*revision, word.revision());
                }
            }
        }
        Ok(newest)
    }

    /// What each of them says of an interface.
    fn endpoints(&self, ifindex: u32) -> Result<Vec<Endpoint>, TakeoverError> {
        let mut endpoints = Vec::new();
        for pin in self.named(map::ENDPOINTS).chain(self.named(map::ENDPOINTS_FAR)) {
            if let Some(bytes) = Reader::open(pin)?.value(ifindex)? {
                endpoints.push(endpoint(&bytes));
            }
        }
        endpoints.retain(|endpoint| !endpoint.is_absent());
        Ok(endpoints)
    }

    /// Removes them: nothing that runs needs them any more.
    ///
    /// # Errors
    /// The first removal that failed.
    pub fn remove(&mut self) -> Result<(), PinError> {
        self.maps.iter().try_for_each(|pin| self.pins.remove(&pin.path))?;
        self.maps.clear();
        Ok(())
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &OtherLayout> {
        self.maps.iter().filter(move |pin| pin.name == name)
    }
}

/// Lets every slot go on from the newest revision that flows may have been judged under, whichever version's programs did
/// it. What the slot may do is not taken from there; one that is new to our map is closed until its policy is written.
///
/// # Errors
/// If one cannot be read, or has more slots than our own map.
pub fn carry_revisions(store: &mut KernelStore, others: &Others) -> Result<(), TakeoverError> {
    for (slot, revision) in others.revisions()? {
        if let Some(word) = store.policy_word(slot).and_then(|own| carried(own, revision)) {
            store.write_policy_word(slot, word)?;
        }
    }
    Ok(())
}

/// A slot's word after another version judged flows under `revision`; `None` if ours is newer.
fn carried(own: PolicyWord, revision: u32) -> Option<PolicyWord> {
    use netpol_common::abi::Direction::{Egress, Ingress};
    let is_new = own == PolicyWord::default();
    if !is_new && own.revision() != revision && newer(own.revision(), revision) == own.revision() {
        return None;
    }
    let id = |direction| if is_new { POLICY_DENY } else { own.policy(direction) };
    Some(PolicyWord::new(id(Ingress), id(Egress), revision.wrapping_add(1)))
}

/// The later of two revisions; they wrap around.
const fn newer(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b) < 1 << 31 { a } else { b }
}

/// Finds what earlier agents left of the interfaces of this network namespace, and removes what pins and our map say of
/// others.
///
/// # Errors
/// If a map or the hooks cannot be read.
pub fn left(store: &mut KernelStore, others: &Others, hooks: &Hooks) -> Result<Left, TakeoverError> {
    let mut said = BTreeMap::new();
    hooks.forget_vanished()?;
    for ifindex in hooks.interfaces()? {
        if hooks.is_live(ifindex, Role::Pod)? {
            let mut words = others.endpoints(ifindex)?;
            words.extend(store.endpoint(ifindex)?);
            said.insert(ifindex, words);
        }
    }
    let mut freed = BTreeSet::new();
    for (ifindex, stale) in store.endpoints()?.iter().filter(|(ifindex, _)| !said.contains_key(ifindex)) {
        freed.insert(stale.slot);
        store.remove_endpoint(*ifindex)?;
    }
    let live = said.keys().copied().collect();
    Ok(Left { endpoints: agreed(said), live, freed })
}

/// Endpoints whose slot nobody disputes; of several words about one interface the last that names a pod.
fn agreed(said: BTreeMap<u32, Vec<Endpoint>>) -> BTreeMap<u32, Endpoint> {
    let mut owners: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
    for (ifindex, words) in &said {
        for word in words {
            owners.entry(word.slot).or_default().insert(*ifindex);
        }
    }
    let mut endpoints = BTreeMap::new();
    for (ifindex, words) in said {
        let best = words.iter().rev().min_by_key(|word| word.has(EndpointFlags::PENDING));
        let Some(best) = best else { continue };
        let is_certain = words.iter().all(|word| word.slot == best.slot);
        if is_certain && owners.get(&best.slot).is_some_and(|owners| owners.len() == 1) {
            endpoints.insert(ifindex, *best);
        } else {
            tracing::warn!(
                ifindex,
                "starts that were cut short left two words on the slot of this interface: it gets a new one, and its open \
                 connections are judged again"
            );
        }
    }
    endpoints
}

/// Reads a map of any layout.
struct Reader<'a> {
    pin: &'a OtherLayout,
    map: std::os::fd::OwnedFd,
    value: u32,
}

impl<'a> Reader<'a> {
    fn open(pin: &'a OtherLayout) -> Result<Self, TakeoverError> {
        let failed = |source| TakeoverError::Read { pin: pin.clone(), source };
        let map = sys::open_pin(&pin.path).map_err(failed)?;
        let info = MapInfo::from_pin(&pin.path).map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self { pin, map, value: info.value_size() })
    }

    fn value(&self, key: u32) -> Result<Option<Vec<u8>>, TakeoverError> {
        let failed = |source| TakeoverError::Read { pin: self.pin.clone(), source };
        sys::map_value(self.map.as_fd(), key, self.value).map_err(failed)
    }
}

/// The part of an endpoint that all layouts have.
fn endpoint(bytes: &[u8]) -> Endpoint {
    let bytes = bytes.get(..ENDPOINT_PREFIX).unwrap_or_default();
    Endpoint {
        slot: u16::from_ne_bytes(field(bytes, 0)),
        flags: u16::from_ne_bytes(field(bytes, 2)),
        mac: Mac::from_octets(field(bytes, 4)),
        ipv4: V4::from_octets(field(bytes, 12)),
        ipv6: V6::from_octets(field(bytes, 16)),
        ..Endpoint::default()
    }
}

/// Some bytes of a value; zeros, which mean nobody, where it is too short to be one of ours.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests;
