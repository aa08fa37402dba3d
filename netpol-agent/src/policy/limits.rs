//! How much fits into the maps.

use netpol_common::abi::{PortRule, capacity};

/// Capacities that the compiler keeps to; what does not fit is a problem and narrows access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Slots are `1..slots`.
    pub slots: u32,
    /// Exact addresses of each family.
    pub addresses: usize,
    /// ipBlock regions of each family.
    pub cidrs: usize,
    /// Allow entries.
    pub allow: usize,
    /// Distinct port sets at a time.
    pub port_sets: usize,
    /// The last number of a port set.
    pub last_port_set: u16,
    /// The last policy id.
    pub last_policy: u16,
}

/// The capacities of the maps; of allow entries and port sets half, as those of an earlier run have other numbers and
/// must fit beside those of this one until all has passed over.
impl Default for Limits {
    fn default() -> Self {
        let count = |entries: u32| usize::try_from(entries).unwrap_or(usize::MAX);
        Self {
            slots: capacity::SLOTS,
            addresses: count(capacity::ADDRESSES),
            cidrs: count(capacity::CIDRS),
            allow: count(capacity::ALLOW / 2),
            port_sets: count(capacity::PORT_SETS.saturating_sub(u32::from(PortRule::FIRST_SET)) / 2),
            last_port_set: u16::try_from(capacity::PORT_SETS.saturating_sub(1)).unwrap_or(u16::MAX),
            last_policy: u16::MAX,
        }
    }
}
