//! [`Tables`] on the maps.

#![expect(unsafe_code, reason = "one of the two adapters: map values are shared memory behind raw pointers")]

use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::maps::HashMap;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use netpol_common::abi::{
    AllowKey, AllowValue, Backend, BackendKey, CounterIndex, Direction, Endpoint, Flow, FlowKey, FlowWord,
    FragmentCell, IDENTITY_NONE, Mac, Mark, POLICY_DENY, PORT_SET_BYTES, PolicyWord, Reason, SLOT_NONE, Sender, V4, V6,
    capacity,
};
use netpol_common::classify::{Found, Frame, Report, Shared, Subject, Tables};
use netpol_common::flow::Setting;
use netpol_common::packet::{Address, Workspace, protocol};

use crate::packet::SkBuff;
use crate::rings::{self, RingTable};
use crate::{events, maps};

/// The maps, for one packet.
pub(crate) struct MapTables<'a> {
    /// The packet, for events.
    pub(crate) skb: &'a SkBuff<'a>,
    /// Room for a sender's endpoint.
    pub(crate) sender: *mut Endpoint,
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
    found.map_or_else(Endpoint::default, copied)
}

/// A copy of an endpoint in a map.
#[inline(always)]
fn copied(at: *const Endpoint) -> Endpoint {
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

/// Our bits of the mark.
#[inline(always)]
pub(crate) fn mark() -> Mark {
    Mark::new(setting(Setting::MarkMask), setting(Setting::MarkShift))
}

/// Writes whose packet it is into its mark, for the hooks where it leaves.
#[inline(always)]
pub(crate) fn stamp(skb: &SkBuff<'_>, sender: Sender) {
    skb.set_mark(mark().write(skb.mark(), sender));
}

/// What is known of a packet, outside the stack.
// verifier: a chain of calls has 512 bytes of stack together; kernels like 5.10 and 6.1 round each function's up to 32
// (6.12 to 16). And what lies in map memory is not followed: on the stack it cost up to six times the instructions.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// The endpoint of the interface: a copy, as the array's value may be written to while the packet is judged.
    pub(crate) endpoint: Endpoint,
    /// The pod that sent a deferred packet.
    pub(crate) sender: Endpoint,
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
    setting_behind(setting, 0)
}

/// The word that is so many words behind the one named.
#[inline(always)]
fn setting_behind(first: Setting, words: usize) -> u32 {
    let at = first as usize + words;
    if at >= Setting::COUNT {
        return 0;
    }
    // SAFETY: `Setting` numbers the words of `Config` (asserted beside it). Volatile, as the loader writes the value
    // after compilation.
    unsafe { core::ptr::read_volatile((&raw const maps::CONFIG).cast::<u32>().add(at)) }
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
    type Flows: RingTable<Key = FlowKey<Self>, Value = Flow>;
    type Unanswered: RingTable<Key = FlowKey<Self>, Value = Flow>;
    const BITS: u32;
}

macro_rules! family_maps {
    ($family:ty, $bits:literal, $identities:ident, $cidrs:ident, $roles:ident, $flows:ident, $unanswered:ident) => {
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
            type Flows = rings::$flows;
            type Unanswered = rings::$unanswered;
        }
    };
}
family_maps!(V4, 32, IDENTITY_V4, CIDR_V4, ADDRESS_ROLES_V4, FlowsV4, UnansweredV4);
family_maps!(V6, 128, IDENTITY_V6, CIDR_V6, ADDRESS_ROLES_V6, FlowsV6, UnansweredV6);

impl Shared for MapTables<'_> {
    #[inline(always)]
    fn setting_behind(&self, first: Setting, words: usize) -> u32 {
        setting_behind(first, words)
    }

    #[inline(always)]
    fn is_node_port(&self, protocol: u8, port: u16) -> bool {
        let set = match protocol {
            protocol::TCP => 0,
            protocol::UDP => 1,
            protocol::SCTP => 2,
            _ => return false,
        };
        maps::NODE_PORTS.get_ptr(set).is_some_and(|bits| has_bit(bits, port))
    }

    #[inline(always)]
    fn secret(&self) -> [u32; 2] {
        // SAFETY: written before anything is attached, and never again.
        maps::SECRET.get_ptr(0).map_or([0; 2], |secret| unsafe { *secret })
    }

    #[inline(always)]
    fn sender(&self, slot: u16) -> Option<Subject<'_>> {
        let endpoint = copied(maps::PODS.get_ptr(u32::from(slot))?);
        if endpoint.is_absent() {
            return None;
        }
        // SAFETY: this CPU's own room, which outlives the packet; nobody else holds a reference to it.
        let kept = unsafe {
            *self.sender = endpoint;
            &*core::hint::black_box(self.sender)
        };
        Some(Subject { endpoint: kept, policy: policy_word(slot) })
    }

    #[inline(always)]
    fn set_cookie(&self, cookie: u32) {
        self.skb.set_hash(cookie);
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        // SAFETY: copied at once; a replaced element stays readable until the program ends.
        unsafe { maps::BACKENDS.get(key).copied() }
    }

    #[inline(always)]
    fn record_backend(&self, key: &BackendKey, backend: &Backend) {
        // Most packets of a flow find it as it is: a look-up costs a tenth of an update.
        if self.backend(key) != Some(*backend) {
            // Without the entry replies are refused with a reason of their own, and the next packet tries again.
            add_backend(key, backend);
        }
    }

    #[inline(always)]
    fn fragment(&self, index: u32) -> FragmentCell {
        // SAFETY: an aligned u64 in map memory, read in one load.
        maps::FRAGMENTS
            .get_ptr(index)
            .map_or_else(FragmentCell::default, |cell| unsafe { core::ptr::read_volatile(cell) })
    }

    #[inline(always)]
    fn set_fragment(&self, index: u32, cell: FragmentCell) {
        if let Some(at) = maps::FRAGMENTS.get_ptr_mut(index) {
            // SAFETY: an aligned u64 in map memory, written in one store.
            unsafe { core::ptr::write_volatile(at, cell) }
        }
    }

    #[inline(always)]
    fn count_sender(&self, slot: u16, reason: Reason) {
        events::count(self.skb, CounterIndex::new(slot, Direction::Egress, reason));
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
        has_bit(bits, port)
    }
}

/// True if the bit of a port is set.
#[inline(always)]
fn has_bit(bits: *const [u8; PORT_SET_BYTES], port: u16) -> bool {
    // SAFETY: 65,536 bits are 8,192 bytes and `port / 8` is below that. Through the pointer, as the value is far larger
    // than the stack.
    let byte = unsafe { *bits.cast::<u8>().add(usize::from(port >> 3)) };
    byte >> (port & 7) & 1 == 1
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
        if let Some(handle) = A::Flows::table().get_ptr_mut(key) {
            return Some(Found { handle, flow: read(handle), answered: true });
        }
        let handle = A::Unanswered::table().get_ptr_mut(key)?;
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
            core::ptr::write_volatile(&raw mut (*handle).origin, flow.origin);
        }
    }

    #[inline(always)]
    fn promote_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        if !add_flow::<A::Flows>(self.skb, key, key.slot, flow) {
            return false;
        }
        // A failed removal leaves an entry that is never found first, and goes in its turn.
        _ = A::Unanswered::table().remove(key);
        true
    }

    #[inline(always)]
    fn open_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        add_flow::<A::Unanswered>(self.skb, key, key.slot, flow)
    }

    #[inline(always)]
    fn report(&self, report: &Report<'_, A>) {
        events::report(self.skb, report);
    }
}

/// Adds a flow in a place of its pod's. False if there was no room in the table.
#[inline(never)]
fn add_flow<R: RingTable<Value = Flow>>(skb: &SkBuff<'_>, key: &R::Key, slot: u16, flow: &Flow) -> bool {
    let Some(place) = rings::make_room::<R>(slot) else {
        return false;
    };
    let flow = Flow { place: rings::low_half(place.number), ..*flow };
    if R::table().insert(key, &flow, 0).is_err() {
        return false;
    }
    // SAFETY: the cell of a ring, which is map memory; another CPU that takes the same place is what `rings` speaks of.
    unsafe { *place.cell = *key };
    if place.evicted {
        events::count(skb, CounterIndex::new(slot, flow.word.opener(), Reason::FlowEvicted));
    }
    true
}

/// Adds a backend in a place of its pod's.
#[inline(never)]
fn add_backend(key: &BackendKey, backend: &Backend) {
    if maps::BACKENDS.get_ptr(key).is_some() {
        // The same flow, led elsewhere: it has its place.
        _ = maps::BACKENDS.insert(key, backend, 0);
        return;
    }
    if let Some(place) = rings::make_room::<rings::Backends>(key.slot)
        && maps::BACKENDS.insert(key, backend, 0).is_ok()
    {
        // SAFETY: as in `add_flow`.
        unsafe { *place.cell = *key };
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
            origin: core::ptr::read_volatile(&raw const (*handle).origin),
            place: core::ptr::read_volatile(&raw const (*handle).place),
        }
    }
}
