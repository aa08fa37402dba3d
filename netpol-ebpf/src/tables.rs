//! [`Tables`] on the maps.

#![expect(unsafe_code, reason = "one of the two adapters: map values are shared memory behind raw pointers")]

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{HashMap, LruHashMap};
use netpol_common::abi::{
    AllowKey, AllowValue, Endpoint, Flow, FlowKey, FlowWord, Fragment, FragmentKey, IDENTITY_NONE, Mac, POLICY_DENY,
    PolicyWord, SLOT_NONE, V4, V6, capacity,
};
use netpol_common::classify::{Found, Frame, Report, Shared, Tables};
use netpol_common::flow::Setting;
use netpol_common::packet::{Address, Workspace};

use crate::packet::SkBuff;
use crate::{events, maps};

/// The maps, for one packet.
pub(crate) struct MapTables<'a> {
    /// The packet, for events.
    pub(crate) skb: &'a SkBuff<'a>,
    /// Its pod's slot.
    pub(crate) slot: u16,
}

/// The endpoint of an interface; the zero value if nobody registered it. A copy, as it may be written to while the packet is
/// judged.
#[inline(always)]
pub(crate) fn endpoint(ifindex: u32) -> Endpoint {
    let found = if ifindex < capacity::NEAR_IFINDEXES {
        maps::ENDPOINTS.get_ptr(ifindex)
    } else {
        maps::ENDPOINTS_FAR.get_ptr(ifindex)
    };
    let Some(at) = found else {
        return Endpoint::default();
    };
    // Field by field: a copy of the whole is a call of `memcpy`, which on the BPF target is a loop over bytes.
    // SAFETY: a map value, which stays valid until the program ends; each read is aligned and of plain integers.
    unsafe {
        let [a, b, c] = [0, 1, 2].map(|half| core::ptr::read_volatile((&raw const (*at).mac).cast::<u16>().add(half)));
        let [w, x, y, z] =
            [0, 1, 2, 3].map(|word| core::ptr::read_volatile((&raw const (*at).ipv6).cast::<u32>().add(word)));
        Endpoint {
            slot: core::ptr::read_volatile(&raw const (*at).slot),
            flags: core::ptr::read_volatile(&raw const (*at).flags),
            mac: Mac([a, b, c]),
            pad: 0,
            ipv4: core::ptr::read_volatile(&raw const (*at).ipv4),
            ipv6: V6([w, x, y, z]),
        }
    }
}

/// The policy ids and revision of a slot, read once. A slot that the table lacks is denied everything.
#[inline(always)]
pub(crate) fn policy_word(slot: u16) -> PolicyWord {
    match maps::POLICY_WORDS.get_ptr(u32::from(slot)) {
        // SAFETY: a pointer to an aligned u64 that userspace changes with one store.
        Some(word) if slot != SLOT_NONE => unsafe { core::ptr::read_volatile(word) },
        Some(_) => PolicyWord::default(),
        None => PolicyWord::new(POLICY_DENY, POLICY_DENY, 0),
    }
}

/// Writes the pod's slot into the packet's mark, for the hooks where it leaves.
#[inline(always)]
pub(crate) fn stamp(skb: &SkBuff<'_>, slot: u16) {
    let mask = setting(Setting::MarkMask);
    let stamped = u32::from(slot) << (setting(Setting::MarkShift) & 31);
    skb.set_mark(skb.mark() & !mask | stamped & mask);
}

/// What is known of a packet, outside the stack.
// verifier: a chain of calls has 512 bytes of stack together; kernels like 5.10 and 6.1 round each function's up to 32
// (6.12 to 16). And what lies in map memory is not followed: on the stack it cost up to six times the instructions.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// The endpoint of the interface: a copy, as the array's value may be written to while the packet is judged.
    pub(crate) endpoint: Endpoint,
    /// What is known of the frame beside its bytes.
    pub(crate) frame: Frame,
    /// What was parsed.
    pub(crate) headers: Workspace,
}

/// This CPU's room; it always exists (the verifier does not know that).
#[inline(always)]
pub(crate) fn room() -> Option<&'static mut Room> {
    // SAFETY: this CPU's own value, and a program does not interrupt another on the same CPU: TC runs with bottom halves
    // off. Every bit pattern that is in it was written as a `Room`, or is the zero that maps start with.
    maps::WORKSPACE.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// A word of the configuration.
#[inline(always)]
pub(crate) fn setting(setting: Setting) -> u32 {
    // SAFETY: `Setting` numbers the words of `Config` (asserted beside it). Volatile, as the loader writes the value
    // after compilation.
    unsafe { core::ptr::read_volatile((&raw const maps::CONFIG).cast::<u32>().add(setting as usize)) }
}

/// Jiffies, low 32 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "times are compared modulo 2^32")]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper takes nothing and only returns a number.
    unsafe { bpf_jiffies64() as u32 }
}

/// The maps of one family: adds no logic, only names.
trait FamilyMaps: Address + 'static {
    fn identities() -> &'static HashMap<Self, u32>;
    fn cidrs() -> &'static LpmTrie<Self, u32>;
    fn roles() -> &'static HashMap<Self, u32>;
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow>;
    fn unanswered() -> &'static LruHashMap<FlowKey<Self>, Flow>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment>;
    const BITS: u32;
}

macro_rules! family_maps {
    ($family:ty, $bits:literal, $identities:ident, $cidrs:ident, $roles:ident, $flows:ident, $unanswered:ident, $fragments:ident) => {
        impl FamilyMaps for $family {
            const BITS: u32 = $bits;
            #[inline(always)]
            fn identities() -> &'static HashMap<Self, u32> {
                &maps::$identities
            }
            #[inline(always)]
            fn cidrs() -> &'static LpmTrie<Self, u32> {
                &maps::$cidrs
            }
            #[inline(always)]
            fn roles() -> &'static HashMap<Self, u32> {
                &maps::$roles
            }
            #[inline(always)]
            fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow> {
                &maps::$flows
            }
            #[inline(always)]
            fn unanswered() -> &'static LruHashMap<FlowKey<Self>, Flow> {
                &maps::$unanswered
            }
            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment> {
                &maps::$fragments
            }
        }
    };
}
family_maps!(V4, 32, IDENTITY_V4, CIDR_V4, ADDRESS_ROLES_V4, FLOWS_V4, UNANSWERED_V4, FRAGMENTS_V4);
family_maps!(V6, 128, IDENTITY_V6, CIDR_V6, ADDRESS_ROLES_V6, FLOWS_V6, UNANSWERED_V6, FRAGMENTS_V6);

impl Shared for MapTables<'_> {
    #[inline(always)]
    fn setting(&self, which: Setting) -> u32 {
        setting(which)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        now()
    }

    #[inline(always)]
    fn allow(&self, key: &AllowKey) -> Option<AllowValue> {
        // SAFETY: copied at once; a replaced element stays readable until the program ends.
        unsafe { maps::ALLOW.get(key).copied() }
    }

    #[inline(always)]
    fn port_set_has(&self, set: u16, port: u16) -> bool {
        let Some(bits) = maps::PORT_SETS.get_ptr(u32::from(set)) else {
            return false;
        };
        // SAFETY: 65,536 bits are 8,192 bytes and `port / 8` is below that. Through the pointer, as the value is far
        // larger than the stack.
        let byte = unsafe { *bits.cast::<u8>().add(usize::from(port >> 3)) };
        byte >> (port & 7) & 1 == 1
    }
}

impl<A: FamilyMaps> Tables<A> for MapTables<'_> {
    type Handle = *mut Flow;

    #[inline(always)]
    fn identity(&self, address: &A) -> u32 {
        // SAFETY: copied at once.
        if let Some(identity) = unsafe { A::identities().get(address) } {
            return *identity;
        }
        A::cidrs().get(Key::new(A::BITS, *address)).copied().unwrap_or(IDENTITY_NONE)
    }

    #[inline(always)]
    fn address_role(&self, address: &A) -> u32 {
        // SAFETY: copied at once.
        unsafe { A::roles().get(address).copied().unwrap_or(0) }
    }

    #[inline(always)]
    fn find_flow(&self, key: &FlowKey<A>) -> Option<Found<*mut Flow>> {
        if let Some(handle) = A::flows().get_ptr_mut(key) {
            return Some(Found { handle, flow: read(handle), answered: true });
        }
        let handle = A::unanswered().get_ptr_mut(key)?;
        Some(Found { handle, flow: read(handle), answered: false })
    }

    #[inline(always)]
    fn update_flow(&self, found: &Found<*mut Flow>, flow: &Flow) {
        // Only what changed, each in one store: another CPU may be writing the other direction's packet, and a line
        // that is not written stays shared.
        if flow.word.0 != found.flow.word.0 {
            // SAFETY: map memory that stays valid until the program ends; the word is one aligned u64.
            unsafe { core::ptr::write_volatile(&raw mut (*found.handle).word, FlowWord(flow.word.0)) }
        }
        if flow.last_seen != found.flow.last_seen {
            // SAFETY: as above; an aligned u32.
            unsafe { core::ptr::write_volatile(&raw mut (*found.handle).last_seen, flow.last_seen) }
        }
    }

    #[inline(always)]
    fn replace_flow(&self, handle: *mut Flow, flow: &Flow) {
        // SAFETY: as in `update_flow`.
        unsafe {
            core::ptr::write_volatile(&raw mut (*handle).word, flow.word);
            core::ptr::write_volatile(&raw mut (*handle).last_seen, flow.last_seen);
        }
    }

    #[inline(always)]
    fn promote_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        if A::flows().insert(key, flow, 0).is_err() {
            return false;
        }
        // A failed removal leaves an entry that is never found first, and ages out.
        _ = A::unanswered().remove(key);
        true
    }

    #[inline(always)]
    fn open_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        A::unanswered().insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn find_fragment(&self, key: &FragmentKey<A>) -> Option<Fragment> {
        // SAFETY: copied at once.
        unsafe { A::fragments().get(key).copied() }
    }

    #[inline(always)]
    fn record_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) {
        // Without the entry the later fragments are dropped with a reason of their own, and counted.
        _ = A::fragments().insert(key, fragment, 0);
    }

    #[inline(always)]
    fn report(&self, report: &Report<'_, A>) {
        events::report(self.skb, self.slot, report);
    }
}

/// A copy of an entry: the word in one load, as another CPU may be writing it.
#[inline(always)]
fn read(handle: *mut Flow) -> Flow {
    // SAFETY: map memory that stays valid until the program ends, aligned as the type is.
    unsafe {
        Flow {
            word: core::ptr::read_volatile(&raw const (*handle).word),
            last_seen: core::ptr::read_volatile(&raw const (*handle).last_seen),
            pad: 0,
        }
    }
}
