//! A change of the maps as a value: what `diff` produces and `apply` carries out against a [`MapStore`].

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{AllowKey, AllowValue, PORT_SET_BYTES, PolicyWord};

/// The 65,536 bits of a port set; bit `p % 8` of byte `p / 8` is port `p`.
pub type PortBits = [u8; PORT_SET_BYTES];

/// One map operation. Policy, identity and port set numbers are already allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a port set that no live allow entry names yet.
    WritePortSet {
        /// Number, `PortRule::FIRST_SET` or above.
        number: u16,
        /// Its bits.
        bits: Arc<PortBits>,
    },
    /// Writes an allow entry.
    WriteAllow(AllowKey, AllowValue),
    /// Removes an allow entry; absent is fine.
    RemoveAllow(AllowKey),
    /// Gives an exact address its identity.
    WriteAddress(IpAddr, u32),
    /// Removes an exact address; absent is fine.
    RemoveAddress(IpAddr),
    /// Gives an ipBlock region its identity.
    WriteCidr(IpNet, u32),
    /// Removes a region; absent is fine.
    RemoveCidr(IpNet),
    /// Moves a slot to other policy ids and a newer revision: one atomic store.
    WritePolicyWord {
        /// The pod's slot.
        slot: u16,
        /// The new word.
        word: PolicyWord,
    },
}

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} in map {map}: {source}")]
pub struct StoreError {
    /// What was tried, with key and value in words.
    pub operation: String,
    /// Map name.
    pub map: &'static str,
    /// The kernel's answer.
    pub source: std::io::Error,
}

/// The maps, as far as `apply` needs them. The kernel's is `datapath::store`; tests use one that fails at step n.
pub trait MapStore {
    /// Carries out the operations in order. On failure the index of the failed one and why; all before it are done, none
    /// after it. Implementations may batch neighbours of one kind.
    ///
    /// # Errors
    /// The first operation that the kernel refused.
    fn apply(&mut self, ops: &[Op]) -> Result<(), (usize, StoreError)>;
}
