//! Counters read for metrics: handles of their own on pinned maps, so that a scrape does not disturb the loop.

use std::io;

use aya::maps::{MapData, PerCpuArray};
use netpol_common::abi::{Counter, map};

use super::pins::PinDir;
use super::plan::StoreError;
use super::store::{OpenError, Pinned, SlotCounters, sum_of_slot};

/// The counters.
pub struct Figures {
    counters: PerCpuArray<MapData, Counter>,
    events_lost: PerCpuArray<MapData, u64>,
}

impl Figures {
    /// Opens them.
    ///
    /// # Errors
    /// If a pinned map is missing or of another layout.
    pub fn open(pins: &PinDir) -> Result<Self, OpenError> {
        let pinned = Pinned(pins);
        Ok(Self { counters: pinned.open(map::COUNTERS)?, events_lost: pinned.open(map::EVENTS_LOST)? })
    }

    /// The counters of one slot, summed over the CPUs.
    ///
    /// # Errors
    /// If there is no such slot or the kernel refuses.
    pub fn slot(&self, slot: u16) -> Result<SlotCounters, StoreError> {
        sum_of_slot(&self.counters, slot)
    }

    /// Events that found the ring full, since the maps were made.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn events_lost(&self) -> io::Result<u64> {
        let per_cpu = self.events_lost.get(&0, 0).map_err(io::Error::other)?;
        Ok(per_cpu.iter().fold(0, |sum, lost| sum.wrapping_add(*lost)))
    }
}
