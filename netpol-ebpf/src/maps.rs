//! Every map: who writes it, who reads it, how large it is and why. Names and types are `netpol_common::abi`'s.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use netpol_common::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Config, Counter, CounterIndex, Endpoint, EventGate, Flow, FlowKey,
    FragmentCell, PORT_SET_BYTES, PolicyWord, RingHeads, TokenBucket, V4, V6, capacity,
};

use crate::tables::Room;

/// Set by the loader before verification, read-only from then on: the verifier sees constants.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config::for_hz(250);

/// Written by userspace when a pod comes or goes. An array, as an array read costs 1 ns and a hash 22.
#[map]
pub(crate) static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(capacity::NEAR_IFINDEXES, 0);

/// The same for interface indexes that a long-lived node has counted up to.
#[map]
pub(crate) static ENDPOINTS_FAR: HashMap<u32, Endpoint> = HashMap::with_max_entries(capacity::FAR_ENDPOINTS, 0);

/// Written by userspace with a pod's endpoint: whom a slot in a mark stands for.
#[map]
pub(crate) static PODS: Array<Endpoint> = Array::with_max_entries(capacity::SLOTS, 0);

/// Written by userspace through a memory mapping: policy ids and revision change in one store.
#[map]
pub(crate) static POLICY_WORDS: Array<PolicyWord> = Array::with_max_entries(capacity::SLOTS, BPF_F_MMAPABLE);

/// Written by userspace. Exact addresses in a hash: an LPM over pod addresses costs up to 20 times as much.
#[map]
pub(crate) static IDENTITY_V4: HashMap<V4, u32> = HashMap::with_max_entries(capacity::ADDRESSES, BPF_F_NO_PREALLOC);
/// See [`IDENTITY_V4`].
#[map]
pub(crate) static IDENTITY_V6: HashMap<V6, u32> = HashMap::with_max_entries(capacity::ADDRESSES, BPF_F_NO_PREALLOC);

/// Written by userspace, asked only when the exact look-up misses.
#[map]
pub(crate) static CIDR_V4: LpmTrie<V4, u32> = LpmTrie::with_max_entries(capacity::CIDRS, BPF_F_NO_PREALLOC);
/// See [`CIDR_V4`].
#[map]
pub(crate) static CIDR_V6: LpmTrie<V6, u32> = LpmTrie::with_max_entries(capacity::CIDRS, BPF_F_NO_PREALLOC);

/// Written by userspace: the policy, fully evaluated.
#[map]
pub(crate) static ALLOW: HashMap<AllowKey, AllowValue> = HashMap::with_max_entries(capacity::ALLOW, BPF_F_NO_PREALLOC);

/// Written by userspace before an allow entry names the set.
#[map]
pub(crate) static PORT_SETS: Array<[u8; PORT_SET_BYTES]> = Array::with_max_entries(capacity::PORT_SETS, 0);

/// Written here. Answered flows, common to all CPUs (both directions of a flow may run on different ones). Which of them
/// each pod has is in the ring, so that a pod that opens too many loses its own. Sized by the loader.
#[map]
pub(crate) static FLOWS_V4: HashMap<FlowKey<V4>, Flow> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// See [`FLOWS_V4`].
#[map]
pub(crate) static FLOWS_V6: HashMap<FlowKey<V6>, Flow> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Written here. Unanswered flows, apart: a SYN flood pushes out only its like.
#[map]
pub(crate) static UNANSWERED_V4: HashMap<FlowKey<V4>, Flow> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// See [`UNANSWERED_V4`].
#[map]
pub(crate) static UNANSWERED_V6: HashMap<FlowKey<V6>, Flow> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Keys of [`FLOWS_V4`], see there.
#[map]
pub(crate) static FLOWS_V4_RING: Array<FlowKey<V4>> = Array::with_max_entries(1, 0);
/// Keys of [`FLOWS_V6`], see there.
#[map]
pub(crate) static FLOWS_V6_RING: Array<FlowKey<V6>> = Array::with_max_entries(1, 0);
/// Keys of [`UNANSWERED_V4`], see there.
#[map]
pub(crate) static UNANSWERED_V4_RING: Array<FlowKey<V4>> = Array::with_max_entries(1, 0);
/// Keys of [`UNANSWERED_V6`], see there.
#[map]
pub(crate) static UNANSWERED_V6_RING: Array<FlowKey<V6>> = Array::with_max_entries(1, 0);
/// Keys of [`BACKENDS`], see there.
#[map]
pub(crate) static BACKENDS_RING: Array<BackendKey> = Array::with_max_entries(1, 0);

/// Written here: where each slot is in its stretches of the rings.
#[map]
pub(crate) static RING_HEADS: Array<RingHeads> = Array::with_max_entries(capacity::SLOTS, 0);

/// Written here: what became of first fragments. An array by slot: one pod's datagrams never take another's room.
#[map]
pub(crate) static FRAGMENTS: Array<FragmentCell> = Array::with_max_entries(FragmentCell::entries(capacity::SLOTS), 0);

/// Written by userspace from netlink (own addresses) and services.
#[map]
pub(crate) static ADDRESS_ROLES_V4: HashMap<V4, u32> =
    HashMap::with_max_entries(capacity::ADDRESS_ROLES, BPF_F_NO_PREALLOC);
/// See [`ADDRESS_ROLES_V4`].
#[map]
pub(crate) static ADDRESS_ROLES_V6: HashMap<V6, u32> =
    HashMap::with_max_entries(capacity::ADDRESS_ROLES, BPF_F_NO_PREALLOC);

/// Written here: where a service's translation led a deferred flow, told by the hook where it leaves.
#[map]
pub(crate) static BACKENDS: HashMap<BackendKey, Backend> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Written by userspace from services and pods, asked only when a pod's traffic to its node is judged.
#[map]
pub(crate) static NODE_PORTS: Array<[u8; PORT_SET_BYTES]> = Array::with_max_entries(capacity::NODE_PORTS, 0);

/// Written by userspace before anything is attached, and never again.
#[map]
pub(crate) static SECRET: Array<[u32; 2]> = Array::with_max_entries(1, 0);

/// Written and read here, within one packet: room that the stack and the verifier do not have.
#[map]
pub(crate) static WORKSPACE: PerCpuArray<Room> = PerCpuArray::with_max_entries(1, 0);

/// Written here, summed by userspace: exact, as each CPU has its own.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counter> =
    PerCpuArray::with_max_entries(CounterIndex::entries(capacity::SLOTS), 0);

/// Written here: when a denied flow last had an event. Direct-mapped, a collision costs one event more.
#[map]
pub(crate) static EVENT_GATES: PerCpuArray<EventGate> = PerCpuArray::with_max_entries(capacity::EVENT_GATES, 0);

/// Written here: the event budget of each slot.
#[map]
pub(crate) static EVENT_TOKENS: PerCpuArray<TokenBucket> = PerCpuArray::with_max_entries(capacity::SLOTS, 0);

/// Written here: events that found the ring full.
#[map]
pub(crate) static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Written here, read by userspace.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENT_RING_BYTES, 0);
