//! What the programs cost: instructions that the verifier walks, sizes, and nanoseconds a packet.
//!
//! In: a loaded object. Out: [`Size`]s, and [`Cost`]s above a program that only returns, run in turns with it in short
//! slices of the same process, so that a busy machine slows both alike. Holds nothing against a budget: see [`budget`].

pub mod budget;
mod sys;

use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netpol_agent::datapath::sizing::Sizing;
use netpol_common::abi::{Config, Hook, Mark, Sender};
use netpol_common::classify::Frame;

use self::sys::Trivial;
use super::cast::{self, BRIDGE_MAC, Cast, Family, Isolation, POD_MAC, WEB};
use super::kernel::{Context, Kernel};
use super::play::Talk;
use crate::frame::datagram::flag;

/// Packets in a slice: about a millisecond.
const PACKETS: u32 = 10_000;
/// Slices of each of both programs.
const SLICES: usize = 301;
/// Slices before the first that counts.
const WARM_UP: usize = 20;

/// Size of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Name of the program.
    pub program: &'static str,
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Bytes after the kernel's rewriting.
    pub translated: u32,
    /// Bytes of machine code.
    pub jited: u32,
}

/// Nanoseconds of a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// What kind of packet.
    pub packet: String,
    /// Above the trivial program, the median over slices.
    pub net: f64,
    /// The trivial program, likewise.
    pub trivial: f64,
}

/// Loads the object as the agent would.
///
/// # Errors
/// The kernel refuses it.
pub fn load(object: &[u8], config: Config) -> Result<Kernel> {
    Kernel::load_sized(object, config, &Sizing::default())
}

/// Sizes of the programs.
///
/// # Errors
/// The kernel does not tell.
pub fn sizes(kernel: &Kernel) -> Result<Vec<Size>> {
    let hooks = [(Hook::FromPod, "from_pod"), (Hook::ToPod, "to_pod"), (Hook::ToUplink, "to_uplink")];
    hooks
        .into_iter()
        .map(|(hook, program)| {
            let info = kernel.program(hook)?.info()?;
            Ok(Size {
                program,
                verified: info.verified_instruction_count().context("the kernel does not count (before 5.16)")?,
                translated: info.size_translated().context("the kernel does not tell the size")?,
                jited: info.size_jitted(),
            })
        })
        .collect()
}

/// What a packet of an established flow costs in each hook and family, both directions isolated.
///
/// # Errors
/// The kernel refuses it, or the packet is not what it should be.
pub fn established(kernel: &mut Kernel) -> Result<Vec<Cost>> {
    let trivial = Trivial::load().context("the kernel refuses a program of two instructions")?;
    let mut costs = Vec::new();
    for family in Family::BOTH {
        let cast = Cast::of(family);
        kernel.reset(&cast.tables(kernel.config()))?;
        kernel.set_subject(cast::endpoint(), Isolation::Both.word(1))?;
        let talk = Talk { pod: cast.pod, peer: cast.client, protocol: 6, pod_port: WEB, peer_port: 40_000 };
        let into = |flags| talk.back(flags).frame(BRIDGE_MAC, POD_MAC).context("no such packet");
        let out = |flags| talk.out(flags).frame(POD_MAC, BRIDGE_MAC).context("no such packet");
        let plain = Frame { from_host_stack: false, mark: 0, hash: 0, vlan_tagged: false };
        // The flow is settled when its opener goes on.
        let (syn, answer, ack) = (into(flag::SYN)?, out(flag::SYN_ACK)?, into(flag::ACK)?);
        let shake = [(Hook::ToPod, syn), (Hook::FromPod, answer), (Hook::ToPod, ack)];
        for (hook, frame) in shake {
            ensure!(kernel.run(hook, &frame, &plain)?.passed(), "the handshake does not pass");
        }
        for (hook, frame) in [(Hook::FromPod, out(flag::PSH_ACK)?), (Hook::ToPod, into(flag::PSH_ACK)?)] {
            ensure!(kernel.run(hook, &frame, &plain)?.passed(), "the packet does not pass");
            let packet = format!("{} established {family}", if hook == Hook::FromPod { "from_pod" } else { "to_pod" });
            costs.push(compare(packet, kernel, hook, &trivial, (&frame, &plain))?);
        }
        costs.extend(leaving(kernel, family, &trivial)?);
    }
    Ok(costs)
}

/// What a packet costs that leaves by an uplink: one that is no pod's, and one that is judged there. (Denied, as what passes has its
/// mark cleared, and BPF_PROG_TEST_RUN repeats a packet as it was left.)
fn leaving(kernel: &mut Kernel, family: Family, trivial: &Trivial) -> Result<Vec<Cost>> {
    let cast = Cast::of(family);
    kernel.set_pod(&cast::endpoint(), Isolation::Both.word(1))?;
    let talk = Talk { pod: cast.pod, peer: cast.stranger, protocol: 6, pod_port: 40_000, peer_port: WEB };
    let frame = talk.out(flag::PSH_ACK).frame(POD_MAC, BRIDGE_MAC).context("no such packet")?;
    let config = kernel.config();
    let mark = |sender| Mark::new(config.mark_mask, config.mark_shift).write(0, sender);
    let senders = [("of no pod", Sender::None), ("judged and denied", Sender::Deferred(cast::SLOT))];
    let cost = |(what, sender)| {
        let beside = Frame { from_host_stack: false, mark: mark(sender), hash: 1, vlan_tagged: false };
        let packet = format!("to_uplink {what} {family}");
        compare(packet, kernel, Hook::ToUplink, trivial, (&frame, &beside))
    };
    senders.into_iter().map(cost).collect()
}

fn compare(
    packet: String,
    kernel: &Kernel,
    hook: Hook,
    trivial: &Trivial,
    (frame, beside): (&[u8], &Frame),
) -> Result<Cost> {
    let context = Context::of(beside);
    let program = kernel.program(hook)?;
    let program = program.fd()?.as_fd();
    let (mut nets, mut trivials) = (Vec::new(), Vec::new());
    for slice in 0..WARM_UP + SLICES {
        let least = sys::run(trivial.fd(), frame, context.bytes(), PACKETS)?;
        let whole = sys::run(program, frame, context.bytes(), PACKETS)?;
        if slice >= WARM_UP {
            trivials.push(nanoseconds(least));
            nets.push(nanoseconds(whole) - nanoseconds(least));
        }
    }
    Ok(Cost { packet, net: median(nets), trivial: median(trivials) })
}

fn nanoseconds(slice: Duration) -> f64 {
    slice.as_secs_f64() * 1e9 / f64::from(PACKETS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
