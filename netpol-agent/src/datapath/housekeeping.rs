//! Takes flow entries away whose time has long been over, so that they hold no memory.
//!
//! In: the pinned flow tables. Out: fewer entries. It is never the truth: the programs judge an entry by its age at each
//! look-up, and a pod that needs room takes its own (`netpol-ebpf/src/rings.rs`); this also finds the rare entry whose
//! place in the ring another CPU took in the same moment. Start at [`Housekeeper::sweep`].

use std::io;

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use netpol_common::abi::{Config, Flow, FlowKey, FlowState, V4, V6, map};
use netpol_common::flow::{self, Setting};

use super::jiffies::Jiffies;
use super::pins::PinDir;
use super::store::{OpenError, Pinned};

/// Seconds that an entry has been over before it is taken away: a packet that opens its flow again in the very moment
/// would lose the entry that it wrote in place.
const MARGIN: u32 = 60;

/// The flow tables, opened for itself: a sweep runs on a thread of its own.
pub struct Housekeeper {
    v4: [HashMap<MapData, FlowKey<V4>, Flow>; 2],
    v6: [HashMap<MapData, FlowKey<V6>, Flow>; 2],
    config: Config,
    clock: Jiffies,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that were looked at.
    pub seen: u64,
    /// Entries that were taken away.
    pub removed: u64,
}

impl Housekeeper {
    /// Opens the flow tables; `config` has the timeouts that the programs run with.
    ///
    /// # Errors
    /// If a pinned map is missing or of another layout.
    pub fn open(pins: &PinDir, config: Config, clock: Jiffies) -> Result<Self, OpenError> {
        let pinned = Pinned(pins);
        Ok(Self {
            v4: [pinned.open(map::FLOWS_V4)?, pinned.open(map::UNANSWERED_V4)?],
            v6: [pinned.open(map::FLOWS_V6)?, pinned.open(map::UNANSWERED_V6)?],
            config,
            clock,
        })
    }

    /// Looks at every entry once.
    ///
    /// # Errors
    /// If the clock or a map cannot be read.
    pub fn sweep(&mut self) -> io::Result<Swept> {
        let now = self.clock.now()?;
        let mut swept = Swept::default();
        for table in &mut self.v4 {
            sweep(table, &self.config, now, &mut swept)?;
        }
        for table in &mut self.v6 {
            sweep(table, &self.config, now, &mut swept)?;
        }
        Ok(swept)
    }
}

fn sweep<A>(
    table: &mut HashMap<MapData, FlowKey<A>, Flow>,
    config: &Config,
    now: u32,
    swept: &mut Swept,
) -> io::Result<()>
where
    A: Copy,
    FlowKey<A>: Pod,
{
    let margin = MARGIN.saturating_mul(config.hz);
    let mut over = Vec::new();
    for entry in table.iter() {
        // An entry that leaves while it is read is not an error, and nothing to take away.
        let Ok((key, flow)) = entry else { continue };
        swept.seen += 1;
        if !flow::is_live(now, flow.last_seen, limit(config, &key, &flow).saturating_add(margin)) {
            over.push(key);
        }
    }
    for key in over {
        match table.remove(&key) {
            Ok(()) => swept.removed += 1,
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

/// How long such an entry may be idle, in jiffies.
fn limit<A>(config: &Config, key: &FlowKey<A>, flow: &Flow) -> u32 {
    timeout(config, key.protocol, flow.word.state())
}

/// How long a flow of this protocol may be idle in this state, in jiffies.
#[expect(clippy::wildcard_enum_match_arm, reason = "the settings that are no timeouts are none of an entry")]
pub(super) fn timeout(config: &Config, protocol: u8, state: FlowState) -> u32 {
    let timeouts = &config.timeouts;
    match flow::timeout(protocol, state) {
        Setting::TcpOpening => timeouts.tcp_opening,
        Setting::TcpClosing => timeouts.tcp_closing,
        Setting::OtherOpening => timeouts.other_opening,
        Setting::OtherEstablished => timeouts.other_established,
        Setting::SctpEstablished => timeouts.sctp_established,
        // Connections, and whatever this version has no name for: the longest.
        _ => timeouts.tcp_established,
    }
}

#[cfg(test)]
mod tests;
