//! Who has to leave when a pod has as many entries as it may: one of its own, never another pod's.
//!
//! Beside each table lies a ring of keys, a stretch of it for each slot. A new entry takes the next place of its pod's
//! stretch, and the entry whose key was there leaves the table. Of a few places the first is taken that holds nothing worth
//! keeping, else the least: a flood of datagrams does not push out the pod's own connections.
//!
//! Two CPUs may take the same place in the same moment: kernels before 5.12 have no atomic operation that would hand out
//! places. The later one then finds an entry of this very moment there and takes another place; if it found the former
//! entry still, one of both keys is left without a place, and its entry stays until it is opened again or the agent's
//! housekeeping finds it. Neither loses an answer.

#![expect(unsafe_code, reason = "keys and heads are map memory behind raw pointers")]

use aya_ebpf::maps::{Array, HashMap};
use netpol_common::abi::{Backend, BackendKey, Flow, FlowKey, RingHeads, V4, V6};
use netpol_common::flow::{self, Setting, Worth};

use crate::maps;
use crate::tables::{now, setting};

/// Places that are looked at before an entry that is worth something has to go.
const PLACES: u32 = 4;

/// A table with a ring of its keys.
pub(crate) trait RingTable {
    /// Its key.
    type Key: Copy + 'static;
    /// Its value.
    type Value: Copy + 'static;
    /// Places of one slot.
    const PER_SLOT: Setting;
    /// The table.
    fn table() -> &'static HashMap<Self::Key, Self::Value>;
    /// The keys.
    fn ring() -> &'static Array<Self::Key>;
    /// The table's part of the heads.
    fn head(heads: *mut RingHeads) -> *mut u32;
    /// What a new entry is worth, held against those that are there.
    fn worth_of_new(key: &Self::Key, value: &Self::Value) -> Worth;
    /// What the entry whose key is at a place is worth, and its age in jiffies; none if it is at another place in truth, and
    /// stays.
    fn worth(key: &Self::Key, value: &Self::Value, place: u32) -> Option<(Worth, u32)>;
}

macro_rules! flow_ring {
    ($name:ident, $family:ty, $table:ident, $ring:ident, $head:ident, $setting:ident, $worth:expr) => {
        pub(crate) struct $name;
        impl RingTable for $name {
            type Key = FlowKey<$family>;
            type Value = Flow;
            const PER_SLOT: Setting = Setting::$setting;
            #[inline(always)]
            fn table() -> &'static HashMap<Self::Key, Flow> {
                &maps::$table
            }
            #[inline(always)]
            fn ring() -> &'static Array<Self::Key> {
                &maps::$ring
            }
            #[inline(always)]
            fn head(heads: *mut RingHeads) -> *mut u32 {
                // SAFETY: a field of a map value that the caller holds a valid pointer to.
                unsafe { &raw mut (*heads).$head }
            }
            #[inline(always)]
            fn worth_of_new(key: &Self::Key, flow: &Flow) -> Worth {
                $worth(flow, key.protocol)
            }
            #[inline(always)]
            fn worth(key: &Self::Key, flow: &Flow, place: u32) -> Option<(Worth, u32)> {
                let at_home = flow.place == low_half(place);
                at_home.then(|| ($worth(flow, key.protocol), flow::age(now(), flow.last_seen)))
            }
        }
    };
}

/// What is answered goes by its worth.
#[inline(always)]
fn by_worth(flow: &Flow, protocol: u8) -> Worth {
    flow::worth(flow, protocol, now(), setting(Setting::Hz))
}

/// What is not answered goes by its age: within a second it may still be.
#[inline(always)]
fn by_age(flow: &Flow, _: u8) -> Worth {
    if flow::age(now(), flow.last_seen) > setting(Setting::Hz) { Worth::Nothing } else { Worth::Little }
}

flow_ring!(FlowsV4, V4, FLOWS_V4, FLOWS_V4_RING, flows_v4, FlowsPerPod, by_worth);
flow_ring!(FlowsV6, V6, FLOWS_V6, FLOWS_V6_RING, flows_v6, FlowsPerPod, by_worth);
flow_ring!(UnansweredV4, V4, UNANSWERED_V4, UNANSWERED_V4_RING, unanswered_v4, UnansweredPerPod, by_age);
flow_ring!(UnansweredV6, V6, UNANSWERED_V6, UNANSWERED_V6_RING, unanswered_v6, UnansweredPerPod, by_age);

pub(crate) struct Backends;

impl RingTable for Backends {
    type Key = BackendKey;
    type Value = Backend;
    const PER_SLOT: Setting = Setting::BackendsPerPod;
    #[inline(always)]
    fn table() -> &'static HashMap<BackendKey, Backend> {
        &maps::BACKENDS
    }
    #[inline(always)]
    fn ring() -> &'static Array<BackendKey> {
        &maps::BACKENDS_RING
    }
    #[inline(always)]
    fn head(heads: *mut RingHeads) -> *mut u32 {
        // SAFETY: as for flows.
        unsafe { &raw mut (*heads).backends }
    }
    #[inline(always)]
    fn worth_of_new(_: &BackendKey, _: &Backend) -> Worth {
        Worth::Nothing
    }
    #[inline(always)]
    fn worth(_: &BackendKey, _: &Backend, _: u32) -> Option<(Worth, u32)> {
        Some((Worth::Nothing, 0))
    }
}

/// A place for a new key, whose former entry is gone.
pub(crate) struct Place<K> {
    /// Where the key is to be written once its entry is in the table.
    pub(crate) cell: *mut K,
    /// The place's number; low half for [`Flow::place`].
    pub(crate) number: u32,
    /// An entry that was worth something had to go.
    pub(crate) evicted: bool,
}

/// Makes room for one more entry of a slot, worth so much. None if the tables have no such slot, or whatever would have to go is
/// worth more.
#[inline(always)]
pub(crate) fn make_room<R: RingTable>(slot: u16, newcomer: Worth) -> Option<Place<R::Key>> {
    let length = setting(R::PER_SLOT);
    let heads = maps::RING_HEADS.get_ptr_mut(u32::from(slot))?;
    let head = R::head(heads);
    if length == 0 {
        return None;
    }
    // SAFETY: an aligned u32 in map memory, read and written in one access each. Written at once, so that the next CPU looks
    // elsewhere.
    let first = unsafe {
        let first = core::ptr::read_volatile(head);
        core::ptr::write_volatile(head, first.wrapping_add(1));
        first
    };
    let mut cheapest: Option<(u32, u32)> = None;
    for step in 0..PLACES {
        let number = place(slot, first.wrapping_add(step), length);
        let cell = R::ring().get_ptr_mut(number)?;
        // SAFETY: map memory; a key that another CPU is writing may be torn, and is then in no table.
        let key = unsafe { &*cell };
        let worth = match R::table().get_ptr(key) {
            None => None,
            // SAFETY: map memory that stays valid until the program ends.
            Some(value) => R::worth(key, unsafe { &*value }, number),
        };
        let cost = worth.map_or(0, |(worth, age)| cost(worth, age));
        if cost == 0 {
            if worth.is_some() {
                _ = R::table().remove(key);
            }
            return Some(take(head, first.wrapping_add(step), Place { cell, number, evicted: false }));
        }
        if cheapest.is_none_or(|(_, other)| cost < other) {
            cheapest = Some((step, cost));
        }
    }
    let (step, least) = cheapest?;
    if least > cost(newcomer, 0) {
        // Whatever would have to go is worth more. The next one looks at other places.
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(head, first.wrapping_add(PLACES)) };
        return None;
    }
    let number = place(slot, first.wrapping_add(step), length);
    let cell = R::ring().get_ptr_mut(number)?;
    // SAFETY: as above.
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value the key would be copied to the stack")]
    let removed = R::table().remove(unsafe { &*cell });
    Some(take(head, first.wrapping_add(step), Place { cell, number, evicted: removed.is_ok() }))
}

/// What it costs to lose an entry: nothing, or more the more it is worth and the younger it is.
#[inline(always)]
const fn cost(worth: Worth, age: u32) -> u32 {
    const OLDEST: u32 = 0xff_ffff;
    match worth {
        Worth::Nothing => 0,
        Worth::Little | Worth::Much => (worth as u32) << 24 | (OLDEST - if age > OLDEST { OLDEST } else { age }),
    }
}

/// Number of a place in a slot's stretch, which is `length` places long.
#[inline(always)]
const fn place(slot: u16, at: u32, length: u32) -> u32 {
    // The BPF target's own rule for a divisor of zero would do; the compiler wants to hear it.
    slot as u32 * length + if length == 0 { 0 } else { at % length }
}

/// Moves the head beyond a place that is taken.
#[inline(always)]
fn take<K>(head: *mut u32, at: u32, place: Place<K>) -> Place<K> {
    // SAFETY: an aligned u32 in map memory. One that another CPU has moved on meanwhile may come back by a few places, which
    // hold entries of this moment then, and are passed over.
    unsafe { core::ptr::write_volatile(head, at.wrapping_add(1)) };
    place
}

/// The low half of a place's number.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes 16 bits on purpose")]
pub(crate) const fn low_half(number: u32) -> u16 {
    number as u16
}
