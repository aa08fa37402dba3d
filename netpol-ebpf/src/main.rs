//! netpol's TC programs. A program is: build the adapters, let `netpol_common::classify` decide, count, return.
//!
//! Nothing is decided here. Program names are hook names (see `netpol_common::abi::program`). Minimum kernel: 5.10
//! (ring buffer 5.8, `bpf_jiffies64` 5.6, memory-mapped arrays 5.5).

#![no_std]
#![no_main]

mod events;
mod maps;
mod packet;
mod tables;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::abi::{CounterIndex, Hook};
use netpol_common::classify::{self, Frame, Subject, Verdict};
use netpol_common::packet::Workspace;

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

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(room) = tables::room() else {
        // Never: it has one entry.
        return TC_ACT_SHOT;
    };
    let skb = SkBuff::new(ctx);
    let Room { endpoint, frame, headers } = room;
    *frame = Frame { from_host_stack: skb.ingress_ifindex() == 0, mark: skb.mark(), vlan_tagged: skb.is_vlan_tagged() };
    let frame = &*core::hint::black_box(frame);
    *endpoint = tables::endpoint(skb.ifindex());
    let endpoint = &*core::hint::black_box(endpoint);
    let policy = tables::policy_word(endpoint.slot);
    let subject = Subject { endpoint, policy };
    let verdict = judge(&skb, frame, hook, &subject, headers);
    if hook as u8 == Hook::FromPod as u8 && !verdict.is_drop() {
        tables::stamp(&skb, endpoint.slot);
    }
    events::count(&skb, CounterIndex::new(endpoint.slot, hook.direction(), verdict.0));
    log_verdict(ctx, hook, verdict);
    // TC_ACT_OK would end the chain for other programs on the device.
    if verdict.is_drop() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

#[inline(always)]
fn judge(skb: &SkBuff<'_>, frame: &Frame, hook: Hook, subject: &Subject<'_>, headers: &mut Workspace) -> Verdict {
    let tables = MapTables { skb, slot: subject.endpoint.slot };
    match hook {
        Hook::FromPod => classify::from_pod(skb, frame, subject, &tables, headers),
        Hook::ToPod => classify::to_pod(skb, frame, subject, &tables, headers),
    }
}

/// Every verdict in the log of a debug build of the object; release builds have no log macro on the packet path.
#[cfg(debug_assertions)]
#[inline(always)]
fn log_verdict(ctx: &TcContext, hook: Hook, verdict: Verdict) {
    aya_log_ebpf::debug!(ctx, "hook {} verdict {}", hook as u8, verdict.0 as u8);
}

#[cfg(not(debug_assertions))]
#[inline(always)]
fn log_verdict(_ctx: &TcContext, _hook: Hook, _verdict: Verdict) {}

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
