//! What the maps should hold, as a value: [`DesiredDatapath`]. And [`Tables`], the part of it that answers "what does this
//! policy id let this address do" just as the datapath would, used for desired and installed contents alike.
//!
//! Nothing here knows what a policy means, nor touches the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::abi::{AllowKey, AllowValue, Direction, IDENTITY_NONE, POLICY_DENY, POLICY_NOT_ISOLATED, PortRule};

pub use super::plan::PortBits;

/// Both policy ids of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyIds {
    /// For traffic towards the pod.
    pub ingress: u16,
    /// For traffic from the pod.
    pub egress: u16,
}

impl PolicyIds {
    /// Denied in both directions: a pod that is not known yet, or no longer.
    pub const DENY: Self = Self { ingress: POLICY_DENY, egress: POLICY_DENY };

    /// The id of `direction`.
    #[must_use]
    pub const fn get(self, direction: Direction) -> u16 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The same with another id for `direction`.
    #[must_use]
    pub const fn with(self, direction: Direction, id: u16) -> Self {
        match direction {
            Direction::Ingress => Self { ingress: id, ..self },
            Direction::Egress => Self { egress: id, ..self },
        }
    }
}

/// The maps that hold policy, but for the words of the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Allow entries by policy id, then identity. Every live policy id has a row, be it empty.
    pub allow: BTreeMap<u16, BTreeMap<u32, AllowValue>>,
    /// Identities of exact addresses.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Identities of ipBlock regions.
    pub cidrs: BTreeMap<IpNet, u32>,
    /// Port sets by number.
    pub port_sets: BTreeMap<u16, Arc<PortBits>>,
}

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredDatapath {
    /// Everything but the words.
    pub tables: Tables,
    /// Policy ids of each slot in use.
    pub words: BTreeMap<u16, PolicyIds>,
}

/// Where desired contents may differ from the ones before: what `diff` has to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Allow entries.
    pub allow: BTreeSet<AllowKey>,
    /// Allow entries that change for an identity and a policy id that were both in use before.
    pub rewritten: BTreeSet<AllowKey>,
    /// Exact addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// ipBlock regions.
    pub cidrs: BTreeSet<IpNet>,
    /// Port sets.
    pub port_sets: BTreeSet<u16>,
    /// Slots whose policy ids change.
    pub slots: BTreeSet<u16>,
    /// Slots that passed to another pod: their flows are to be judged again whatever the policy ids.
    pub reassigned: BTreeSet<u16>,
}

impl Touched {
    /// True if there is nothing to look at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds everything in `other`.
    pub fn extend(&mut self, other: &Self) {
        self.allow.extend(&other.allow);
        self.rewritten.extend(&other.rewritten);
        self.addresses.extend(&other.addresses);
        self.cidrs.extend(&other.cidrs);
        self.port_sets.extend(&other.port_sets);
        self.slots.extend(&other.slots);
        self.reassigned.extend(&other.reassigned);
    }

    /// Everything that is in `tables` or is the word of one of `slots`.
    #[must_use]
    pub fn everything(tables: &Tables, slots: impl IntoIterator<Item = u16>) -> Self {
        Self {
            allow: tables.allow_entries().map(|(key, _)| key).collect(),
            rewritten: BTreeSet::new(),
            addresses: tables.addresses.keys().copied().collect(),
            cidrs: tables.cidrs.keys().copied().collect(),
            port_sets: tables.port_sets.keys().copied().collect(),
            slots: slots.into_iter().collect(),
            reassigned: BTreeSet::new(),
        }
    }
}

/// What a policy id lets an identity do, with the port sets looked up.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// Everything: the pod is not isolated.
    Everything,
    /// What an allow entry says; a missing entry is the zero value.
    Entry(AllowValue, &'a Tables),
}

impl Answer<'_> {
    /// True if every packet that `other` lets through is let through by this one too.
    #[must_use]
    pub fn covers(&self, other: &Answer<'_>) -> bool {
        match (self, other) {
            (Self::Everything, _) => true,
            (Self::Entry(value, _), Answer::Everything) => {
                [value.tcp, value.udp, value.sctp].iter().all(|field| PortRule::decode(*field) == PortRule::All)
                    && value.other == 1
            }
            (Self::Entry(wide, wide_tables), Answer::Entry(narrow, narrow_tables)) => {
                wide.other >= narrow.other
                    && [(wide.tcp, narrow.tcp), (wide.udp, narrow.udp), (wide.sctp, narrow.sctp)].iter().all(
                        |(wide, narrow)| {
                            covers_ports(
                                (PortRule::decode(*wide), wide_tables),
                                (PortRule::decode(*narrow), narrow_tables),
                            )
                        },
                    )
            }
        }
    }

    /// True if both let the same packets through.
    #[must_use]
    pub fn equals(&self, other: &Answer<'_>) -> bool {
        self.covers(other) && other.covers(self)
    }
}

fn covers_ports((wide, wide_tables): (PortRule, &Tables), (narrow, narrow_tables): (PortRule, &Tables)) -> bool {
    let bits = |tables: &Tables, number: u16| tables.port_sets.get(&number).cloned();
    match (wide, narrow) {
        (PortRule::All, _) | (_, PortRule::None) => true,
        (PortRule::None, _) | (PortRule::Set(_), PortRule::All) => false,
        (PortRule::Set(wide), PortRule::Set(narrow)) => match (bits(wide_tables, wide), bits(narrow_tables, narrow)) {
            (Some(wide), Some(narrow)) => {
                Arc::ptr_eq(&wide, &narrow) || wide.iter().zip(narrow.iter()).all(|(wide, narrow)| narrow & !wide == 0)
            }
            // A set that is not known cannot be said to cover anything, but itself.
            (None, _) | (_, None) => wide == narrow && std::ptr::eq(wide_tables, narrow_tables),
        },
    }
}

impl Tables {
    /// All allow entries, by policy id and identity.
    pub fn allow_entries(&self) -> impl Iterator<Item = (AllowKey, AllowValue)> {
        self.allow.iter().flat_map(|(policy, row)| {
            row.iter().map(move |(identity, value)| (AllowKey::new(*policy, *identity), *value))
        })
    }

    /// One allow entry.
    #[must_use]
    pub fn allow_entry(&self, key: AllowKey) -> Option<AllowValue> {
        self.allow.get(&key.policy)?.get(&key.identity).copied()
    }

    /// What policy id `policy` lets `identity` do.
    #[must_use]
    pub fn answer(&self, policy: u16, identity: u32) -> Answer<'_> {
        match policy {
            POLICY_NOT_ISOLATED => Answer::Everything,
            POLICY_DENY => Answer::Entry(AllowValue::default(), self),
            _ => Answer::Entry(self.allow_entry(AllowKey::new(policy, identity)).unwrap_or_default(), self),
        }
    }

    /// The identity that the datapath finds for an address.
    #[must_use]
    pub fn identity_of(&self, address: IpAddr) -> u32 {
        self.addresses.get(&address).copied().unwrap_or_else(|| self.region_identity(address.into()))
    }

    /// The identity that the trie alone finds for an address or for the part of a region that no smaller one holds.
    #[must_use]
    pub fn region_identity(&self, region: IpNet) -> u32 {
        longest_match(&self.cidrs, region).map_or(IDENTITY_NONE, |(_, identity)| *identity)
    }
}

/// The smallest prefix in `map` that holds all of `target`, `target` itself included.
pub fn longest_match<V>(map: &BTreeMap<IpNet, V>, target: IpNet) -> Option<(IpNet, &V)> {
    let mut probe = target;
    loop {
        // Prefixes are ordered by first address, then length, so one that holds the target is not after it; and if the
        // nearest one does not hold it, what does is no longer than the bits that both have in common.
        let (found, value) = map.range(..=probe).next_back()?;
        if found.contains(&target) {
            return Some((*found, value));
        }
        probe = IpNet::new(target.addr(), common_bits(found.addr(), target.addr())?).ok()?.trunc();
    }
}

/// How many leading bits two addresses of one family share.
fn common_bits(a: IpAddr, b: IpAddr) -> Option<u8> {
    let zeros = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    u8::try_from(zeros).ok()
}
