//! How much fits into the maps.

use netpol_common::abi::capacity;

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
    /// Port sets have numbers `2..port_sets`.
    pub port_sets: u32,
    /// The last policy id.
    pub last_policy: u16,
}

impl Default for Limits {
    fn default() -> Self {
        let count = |entries: u32| usize::try_from(entries).unwrap_or(usize::MAX);
        Self {
            slots: capacity::SLOTS,
            addresses: count(capacity::ADDRESSES),
            cidrs: count(capacity::CIDRS),
            allow: count(capacity::ALLOW),
            port_sets: capacity::PORT_SETS,
            last_policy: u16::MAX,
        }
    }
}
