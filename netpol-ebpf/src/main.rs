//! netpol's TC programs. A program is: build the adapters, let `netpol_common::classify` decide, count, return.
//!
//! Nothing is decided here. Program names are hook names (see `netpol_common::abi::program`). Minimum kernel: 5.10
//! (ring buffer 5.8, `bpf_jiffies64` 5.6, memory-mapped arrays 5.5).

#![no_std]
#![no_main]

mod events;
mod maps;
mod packet;
mod rings;
mod tables;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::abi::{CounterIndex, Direction, EndpointFlags, Hook, Reason, SLOT_NONE, Sender};
use netpol_common::classify::{self, Decision, Frame, Subject};

use crate::packet::SkBuff;
use crate::tables::{MapTables, Room};

/// TC ingress of a pod's host veth: packets that the pod sends.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromPod)
}

/// TC egress of a pod's host veth: packets that the pod receives.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToPod)
}

/// TC egress of every other device that leads out of the node: packets that may be a pod's.
#[classifier]
fn to_uplink(ctx: TcContext) -> i32 {
    let skb = SkBuff::new(&ctx);
    match tables::mark().read(skb.mark()) {
        Sender::None => return TC_ACT_UNSPEC,
        Sender::Judged => {}
        Sender::Deferred(_) => {
            if leave(&ctx).reason.is_drop() {
                return TC_ACT_SHOT;
            }
        }
    }
    // A tunnel's outer packet would carry it on, to be judged again.
    tables::stamp(&skb, Sender::None);
    TC_ACT_UNSPEC
}

/// Judges a deferred packet on its way out of the node.
#[inline(always)]
fn leave(ctx: &TcContext) -> Decision {
    let skb = SkBuff::new(ctx);
    let Some(room) = tables::room() else {
        // Never: it has one entry.
        return Decision { reason: Reason::Malformed, direction: Direction::Egress, slot: SLOT_NONE };
    };
    let has_link_header = !tables::endpoint(skb.ifindex()).has(EndpointFlags::NO_LINK_HEADER);
    let skb = SkBuff::at_device(ctx, has_link_header);
    let Room { frame, headers, sender, .. } = room;
    *frame = known_of(&skb);
    let frame = &*core::hint::black_box(frame);
    let tables = MapTables { skb: &skb, sender };
    let decision = classify::to_uplink(&skb, ether_type(&skb), frame, &tables, headers);
    events::count(&skb, CounterIndex::new(decision.slot, decision.direction, decision.reason));
    log_decision(ctx, Hook::ToUplink, decision);
    decision
}

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(room) = tables::room() else {
        // Never: it has one entry.
        return TC_ACT_SHOT;
    };
    let skb = SkBuff::new(ctx);
    let Room { endpoint, sender, frame, headers } = room;
    *frame = known_of(&skb);
    let frame = &*core::hint::black_box(frame);
    *endpoint = tables::endpoint(skb.ifindex());
    let endpoint = &*core::hint::black_box(endpoint);
    let policy = tables::policy_word(endpoint.slot);
    let subject = Subject { endpoint, policy };
    let tables = MapTables { skb: &skb, sender };
    let decision = match hook {
        Hook::FromPod => classify::from_pod(&skb, frame, &subject, &tables, headers),
        Hook::ToPod | Hook::ToUplink => classify::to_pod(&skb, frame, &subject, &tables, headers),
    };
    if hook as u8 == Hook::FromPod as u8 && !decision.reason.is_drop() {
        tables::stamp(&skb, decision.sender());
    }
    events::count(&skb, CounterIndex::new(decision.slot, decision.direction, decision.reason));
    log_decision(ctx, hook, decision);
    // TC_ACT_OK would end the chain for other programs on the device.
    if decision.reason.is_drop() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

#[inline(always)]
fn known_of(skb: &SkBuff<'_>) -> Frame {
    Frame {
        from_host_stack: skb.ingress_ifindex() == 0,
        mark: skb.mark(),
        hash: skb.hash(),
        vlan_tagged: skb.is_vlan_tagged(),
    }
}

/// EtherType in host order.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits in a 32-bit field of the context")]
fn ether_type(skb: &SkBuff<'_>) -> u16 {
    u16::from_be(skb.protocol() as u16)
}

/// Every verdict in the log of a debug build of the object; release builds have no log macro on the packet path.
#[cfg(debug_assertions)]
#[inline(always)]
fn log_decision(ctx: &TcContext, hook: Hook, decision: Decision) {
    aya_log_ebpf::debug!(ctx, "hook {} slot {} reason {}", hook as u8, decision.slot, decision.reason as u8);
}

#[cfg(not(debug_assertions))]
#[inline(always)]
fn log_decision(_ctx: &TcContext, _hook: Hook, _decision: Decision) {}

/// Helpers such as ring buffers want a GPL-compatible licence; the sources are dual-licensed.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // verifier: never reached; a loop that the verifier would see, if a panic path were compiled in.
    loop {}
}
