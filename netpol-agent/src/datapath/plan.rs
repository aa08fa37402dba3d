//! A change of the maps as a value: what `diff` produces and `apply` carries out against a [`MapStore`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{AllowKey, AllowValue, Direction, PORT_SET_BYTES, PolicyWord};

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

/// What a change does to the traffic of a slot in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Every packet gets the answer that it got before.
    #[default]
    Unchanged,
    /// Nothing is taken away.
    Widening,
    /// Some packet that was allowed no longer is.
    Tightening,
}

/// An address or region that passes from one identity to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityMove {
    /// The write or removal.
    pub op: Op,
    /// The identity that the datapath finds before.
    pub from: u32,
    /// The identity that it finds afterwards.
    pub to: u32,
}

/// A slot whose answers change: its word is written with a newer revision, so that its flows are judged again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotChange {
    /// The slot.
    pub slot: u16,
    /// Its word now.
    pub before: PolicyWord,
    /// Its word afterwards.
    pub after: PolicyWord,
    /// What that does to traffic towards the pod.
    pub ingress: Effect,
    /// What that does to traffic from the pod.
    pub egress: Effect,
}

impl SlotChange {
    /// What the change does to traffic in `direction`.
    #[must_use]
    pub const fn effect(&self, direction: Direction) -> Effect {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// True if the policy id of `direction` is another one afterwards.
    #[must_use]
    pub const fn changes_id(&self, direction: Direction) -> bool {
        self.before.policy(direction) != self.after.policy(direction)
    }
}

/// An ordered change of the maps. Carried out in the order of the fields, every packet sees what was in force before or
/// what is desired, whole: what is named is written before the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Port sets that nothing names yet.
    pub port_sets: Vec<Op>,
    /// Allow entries of policy ids and identities that nothing uses yet.
    pub allow: Vec<Op>,
    /// Addresses and regions that change identity, addresses first, then regions from the smallest to the largest.
    pub moves: Vec<IdentityMove>,
    /// Slots whose answers change.
    pub words: Vec<SlotChange>,
    /// What nothing uses any more.
    pub removals: Vec<Op>,
    /// For each pair (from, to) of `moves`: the policy ids, in force before or afterwards, that let `to` do less than
    /// `from`. What is to be done when such a move fails depends on it.
    pub tightened: BTreeMap<(u32, u32), BTreeSet<u16>>,
}

impl Plan {
    /// True if there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.port_sets.is_empty()
            && self.allow.is_empty()
            && self.moves.is_empty()
            && self.words.is_empty()
            && self.removals.is_empty()
    }

    /// All operations, in order, of a plan that meets no failure.
    pub fn operations(&self) -> impl Iterator<Item = Op> {
        let words = self.words.iter().map(|change| Op::WritePolicyWord { slot: change.slot, word: change.after });
        (self.port_sets.iter().chain(&self.allow).cloned())
            .chain(self.moves.iter().map(|one| one.op.clone()))
            .chain(words)
            .chain(self.removals.iter().cloned())
    }
}
