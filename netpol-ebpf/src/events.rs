//! Counting, exact; and telling of drops and of new flows, bounded: one event a flow and interval, and a token bucket a pod.

#![expect(unsafe_code, reason = "counters and gates are map memory behind raw pointers")]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use netpol_common::abi::{CounterIndex, Event, EventGate, TokenBucket, capacity};
use netpol_common::classify::Report;
use netpol_common::flow::Setting;
use netpol_common::packet::{Address, Header, PacketBytes as _};

use crate::maps;
use crate::packet::SkBuff;
use crate::tables::{now, setting};

/// Adds a packet to a counter: a GSO packet counts as the segments it will become.
#[inline(always)]
pub(crate) fn count(skb: &SkBuff<'_>, index: CounterIndex) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(index.0) {
        let segments = u64::from(skb.segments());
        // SAFETY: this CPU's own value; a program is not interrupted by another on the same hook.
        unsafe {
            (*counter).packets += if segments > 1 { segments } else { 1 };
            (*counter).bytes += u64::from(skb.len());
        }
    }
}

/// Tells userspace of a drop or a new flow, unless the flow or the pod has had its share.
// A function of its own, as its stack frame is not the packet path's. Not `#[cold]`: that moves it to a section of its
// own, whose calls aya's loader resolves to the wrong function.
#[inline(never)]
pub(crate) fn report<A: Address>(skb: &SkBuff<'_>, report: &Report<'_, A>) {
    let hash = flow_hash(report);
    let Some(gate) = maps::EVENT_GATES.get_ptr_mut(hash & (capacity::EVENT_GATES - 1)) else {
        return;
    };
    // SAFETY: this CPU's own value.
    let gate = unsafe { &mut *gate };
    let now = now();
    let same = gate.used == 1 && gate.hash == hash;
    if same && now.wrapping_sub(gate.last) < setting(Setting::EventInterval) {
        gate.suppressed += 1;
        return;
    }
    if !take_token(report.slot, now, report.reason.is_drop()) {
        if same {
            gate.suppressed += 1;
        }
        return;
    }
    let suppressed = if same { gate.suppressed } else { 0 };
    *gate = EventGate { hash, last: now, suppressed: 0, used: 1 };
    send(skb, report, suppressed);
}

/// Takes one event from the slot's budget on this CPU. Half of it is kept for drops.
#[inline(always)]
fn take_token(slot: u16, now: u32, is_drop: bool) -> bool {
    let Some(bucket) = maps::EVENT_TOKENS.get_ptr_mut(u32::from(slot)) else {
        return false;
    };
    // SAFETY: this CPU's own value.
    let bucket: &mut TokenBucket = unsafe { &mut *bucket };
    let rate = setting(Setting::EventsPerSecond);
    let hz = setting(Setting::Hz);
    let elapsed = now.wrapping_sub(bucket.refilled);
    if elapsed >= hz {
        bucket.tokens = rate;
        bucket.refilled = now;
    }
    let kept = if is_drop { 0 } else { rate / 2 };
    if bucket.tokens <= kept {
        bucket.refused += 1;
        return false;
    }
    bucket.tokens -= 1;
    true
}

#[inline(always)]
fn send<A: Address>(skb: &SkBuff<'_>, report: &Report<'_, A>, suppressed: u32) {
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        if let Some(lost) = maps::EVENTS_LOST.get_ptr_mut(0) {
            // SAFETY: this CPU's own value.
            unsafe { *lost += 1 };
        }
        return;
    };
    let event = entry.as_mut_ptr();
    let destination_mac: [u16; 3] = skb.load(0).unwrap_or_default();
    let source_mac: [u16; 3] = skb.load(6).unwrap_or_default();
    // verifier: field by field into the ring; an `Event` built on the stack first would take a fifth of it.
    // SAFETY: the reservation is exactly one `Event`, ours until it is submitted; every field is written.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).ifindex = skb.ifindex();
        (*event).length = skb.len();
        (*event).suppressed = suppressed;
        (*event).revision = report.revision;
        (*event).slot = report.slot;
        (*event).ether_type = report.ether_type;
        (*event).direction = report.direction as u8;
        (*event).reason = report.reason as u8;
        write_words((&raw mut (*event).source_mac).cast(), source_mac);
        write_words((&raw mut (*event).destination_mac).cast(), destination_mac);
        (*event).pad = [0; Event::PAD];
    }
    // SAFETY: as above.
    unsafe {
        match report.header {
            Some(header) => describe(event, header),
            None => describe_nothing(event),
        }
    }
    entry.submit(0);
}

/// Fills in what the headers say. By reference: a copy of the header would take a fifth of the stack that is left.
///
/// # Safety
/// `event` is a reserved, unsubmitted `Event`.
#[inline(always)]
unsafe fn describe<A: Address>(event: *mut Event, header: &Header<A>) {
    // SAFETY: as the caller promises.
    unsafe {
        write_words((&raw mut (*event).source).cast(), header.source.widen());
        write_words((&raw mut (*event).destination).cast(), header.destination.widen());
        (*event).identity = header.judged_identity;
        (*event).policy = header.judged_policy;
        (*event).source_port = header.source_port;
        (*event).destination_port = header.destination_port;
        (*event).protocol = header.protocol;
        (*event).tcp_flags = header.tcp_flags;
        (*event).icmp_type = header.icmp_type;
        (*event).icmp_code = header.icmp_code;
    }
}

/// Writes bytes that are at hand as words, in whole words: as an array of bytes they would pass through the stack.
///
/// # Safety
/// `N` words at `to` are ours to write, and aligned.
#[inline(always)]
unsafe fn write_words<W: Copy, const N: usize>(to: *mut W, words: [W; N]) {
    let mut at = to;
    for word in words {
        // SAFETY: as the caller promises.
        unsafe {
            at.write(word);
            at = at.add(1);
        }
    }
}

/// Zeros where there were no headers.
///
/// # Safety
/// As for [`describe`].
#[inline(always)]
unsafe fn describe_nothing(event: *mut Event) {
    // SAFETY: as the caller promises.
    unsafe {
        (*event).source = [0; 16];
        (*event).destination = [0; 16];
        (*event).identity = 0;
        (*event).policy = 0;
        (*event).source_port = 0;
        (*event).destination_port = 0;
        (*event).protocol = 0;
        (*event).tcp_flags = 0;
        (*event).icmp_type = 0;
        (*event).icmp_code = 0;
    }
}

/// Mixes the flow and the reason; equal flows give equal hashes, and that is all that is needed.
#[inline(always)]
fn flow_hash<A: Address>(report: &Report<'_, A>) -> u32 {
    let mut hash = mix(0x9e37_79b9, u32::from(report.reason as u8) << 16 | u32::from(report.slot));
    hash = mix(hash, (report.direction as u32) << 16 | u32::from(report.ether_type));
    let Some(header) = report.header else {
        return hash;
    };
    for word in header.source.widen() {
        hash = mix(hash, word);
    }
    for word in header.destination.widen() {
        hash = mix(hash, word);
    }
    hash = mix(hash, u32::from(header.source_port) << 16 | u32::from(header.destination_port));
    mix(hash, u32::from(header.protocol) << 8 | u32::from(header.icmp_type))
}

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let hash = (hash ^ word).wrapping_mul(0x85eb_ca6b);
    hash ^ hash >> 15
}
