//! The loaded BPF object behind the operations of a scene: every packet goes through BPF_PROG_TEST_RUN too, and everything
//! that it left behind is held against what the host did.
//!
//! In: an object, a configuration, and [`Observed`] packets with what the host said. Out: an error at the first difference:
//! in verdict, counters, mark, flows, fragments or event. Decides nothing itself. Start at [`Kernel::require_alike`].
//!
//! What BPF_PROG_TEST_RUN cannot reach: VLAN tags that the kernel holds beside the frame, frames that end within the IP
//! header (or with the Ethernet header), a full flow table, the passing of time.

pub mod event;
pub mod flows;
mod maps;

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use netpol_agent::datapath::loader::load_object;
use netpol_agent::datapath::sizing::Sizing;
use netpol_common::abi::{
    AllowKey, AllowValue, Backend, BackendKey, Config, Counter, CounterIndex, Direction, Endpoint, Event, FragmentCell,
    Hook, Mark, PolicyWord, Reason, SLOT_NONE, Sender, map, program,
};
use netpol_common::classify::{Decision, Frame};
use netpol_common::host::{HostReport, HostTables};

use self::event::decode;
use self::flows::FlowTables;
use self::maps::Maps;
use super::cast::{OTHER_SLOT, SLOT};

/// Interface index of the loopback device, on which BPF_PROG_TEST_RUN has packets arrive.
const LOOPBACK: u32 = 1;
/// Longest frame that one page holds with the room around it.
const LONGEST: usize = 3000;
/// Slots whose counters are watched: those of scenes, and one that none has.
const WATCHED: [u16; 4] = [SLOT_NONE, SLOT, OTHER_SLOT, OTHER_SLOT + 1];
/// `TC_ACT_SHOT`.
const DROPPED: u32 = 2;
/// `TC_ACT_UNSPEC`.
const PASSED: u32 = u32::MAX;
/// Seconds of difference in age that are no difference: that of the test itself.
const AGE_TOLERANCE: u32 = 5;

/// One packet, and what the host said of it.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The hook it met.
    pub hook: Hook,
    /// The frame.
    pub bytes: &'a [u8],
    /// What is known of it beside its bytes.
    pub frame: Frame,
    /// The endpoint of the interface.
    pub endpoint: Endpoint,
    /// What its slot is subject to.
    pub policy: PolicyWord,
    /// What the host decided.
    pub decision: Decision,
    /// What it counted for senders.
    pub counted: &'a [(u16, Reason)],
    /// What it reported.
    pub report: Option<&'a HostReport>,
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it returned.
    pub action: u32,
    /// `skb->mark` afterwards.
    pub mark: u32,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
}

/// The loaded object.
pub struct Kernel {
    ebpf: Ebpf,
    maps: Maps,
    ring: RingBuf<MapData>,
    config: Config,
    counted: Vec<(CounterIndex, Counter)>,
}

impl Outcome {
    /// True if the packet goes on to whatever comes next.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.action == PASSED
    }
}

impl Kernel {
    /// Loads both programs, with maps of a size for scenes.
    ///
    /// # Errors
    /// The kernel refuses a map or a program.
    pub fn load(object: &[u8], config: Config) -> Result<Self> {
        let sizing = Sizing {
            slots: 16,
            far_endpoints: 4,
            addresses: 64,
            cidrs: 64,
            allow: 64,
            port_sets: 8,
            flows_per_pod: 64,
            unanswered_per_pod: 64,
            backends_per_pod: 64,
            address_roles: 64,
            event_ring_bytes: 1 << 16,
        };
        Self::load_sized(object, config, &sizing)
    }

    /// Loads both programs with maps of these sizes.
    ///
    /// # Errors
    /// The kernel refuses a map or a program.
    pub fn load_sized(object: &[u8], config: Config, sizing: &Sizing) -> Result<Self> {
        let mut ebpf = load_object(object, &config, sizing, None)?;
        for name in [program::FROM_POD, program::TO_POD, program::TO_UPLINK] {
            let classifier: &mut SchedClassifier =
                ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            classifier.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let maps = Maps::take(&mut ebpf)?;
        let ring = RingBuf::try_from(ebpf.take_map(map::EVENTS).context("no map EVENTS")?)?;
        let config = Config { slots: sizing.slots, ..config };
        Ok(Self { ebpf, maps, ring, config, counted: Vec::new() })
    }

    /// The configuration in force.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config
    }

    /// One of the programs.
    ///
    /// # Errors
    /// The object has no such program.
    pub fn program(&self, hook: Hook) -> Result<&SchedClassifier> {
        let name = match hook {
            Hook::FromPod => program::FROM_POD,
            Hook::ToPod => program::TO_POD,
            Hook::ToUplink => program::TO_UPLINK,
        };
        Ok(self.ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }

    /// Forgets everything and takes over what the host's tables say.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn reset(&mut self, host: &HostTables) -> Result<()> {
        self.maps.reset(host)?;
        self.events()?;
        self.counted = self.maps.counters(&WATCHED)?;
        Ok(())
    }

    /// Sets or removes an allow entry.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_allow(&mut self, key: AllowKey, value: Option<AllowValue>) -> Result<()> {
        self.maps.set_allow(key, value)
    }

    /// Makes flows and fragments older.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn age(&mut self, jiffies: u32) -> Result<()> {
        self.maps.age(jiffies)
    }

    /// Says whose the interface is and what its slot is subject to.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_subject(&mut self, endpoint: Endpoint, policy: PolicyWord) -> Result<()> {
        self.set_subject_at(LOOPBACK, endpoint, policy)
    }

    /// The same for another interface.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_subject_at(&mut self, ifindex: u32, endpoint: Endpoint, policy: PolicyWord) -> Result<()> {
        self.maps.set_subject(ifindex, endpoint, policy)
    }

    /// Says which pod a slot stands for in marks, and what it is subject to.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_pod(&mut self, endpoint: &Endpoint, policy: PolicyWord) -> Result<()> {
        self.maps.set_pod(endpoint, policy)
    }

    /// Remembers where a deferred flow was led to.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn record_backend(&mut self, key: BackendKey, backend: Backend) -> Result<()> {
        self.maps.record_backend(key, backend)
    }

    /// Events that came since the last call.
    ///
    /// # Errors
    /// One of a size that no event has.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            events.push(decode(&item).with_context(|| format!("an event of {} bytes", item.len()))?);
        }
        Ok(events)
    }

    /// Takes the bytes of the events out of the ring, as the agent does.
    pub fn records(&mut self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while let Some(item) = self.ring.next() {
            records.push(item.to_vec());
        }
        records
    }

    /// Sends a frame through a hook.
    ///
    /// # Errors
    /// The kernel refuses to.
    pub fn run(&self, hook: Hook, bytes: &[u8], frame: &Frame) -> Result<Outcome> {
        self.run_as(hook, bytes, &Context::of(frame))
    }

    /// Sends a frame through a hook with this context.
    ///
    /// # Errors
    /// The kernel refuses to.
    pub fn run_as(&self, hook: Hook, bytes: &[u8], context: &Context) -> Result<Outcome> {
        self.run_often(hook, bytes, context, 1)
    }

    /// Sends a frame through a hook so many times; the outcome is the last one's.
    ///
    /// # Errors
    /// The kernel refuses to.
    pub fn run_often(&self, hook: Hook, bytes: &[u8], context: &Context, repeat: u32) -> Result<Outcome> {
        let (mut out, mut context_out) = (vec![0; bytes.len() + 64], [0; Context::SIZE]);
        let result = self.program(hook)?.test_run(TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context.0),
            ctx_out: Some(&mut context_out),
            repeat,
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out)?);
        Ok(Outcome { action: result.return_value, mark: Context(context_out).word(Context::MARK), bytes: out })
    }

    /// Counters that moved since the last call.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn moved(&mut self) -> Result<Vec<(CounterIndex, Counter)>> {
        let now = self.maps.counters(&WATCHED)?;
        let before = std::mem::replace(&mut self.counted, now);
        let pairs = self.counted.iter().zip(before);
        Ok(pairs
            .filter(|((_, now), (_, before))| now != before)
            .map(|((index, now), (_, before))| {
                let (packets, bytes) = (now.packets - before.packets, now.bytes - before.bytes);
                (*index, Counter { packets, bytes })
            })
            .collect())
    }

    /// Sends the packet and holds everything against the host. Frames that BPF_PROG_TEST_RUN does not take are left out.
    ///
    /// # Errors
    /// The first difference.
    pub fn require_alike(&mut self, packet: &Observed<'_>, host: &HostTables) -> Result<()> {
        if !can_run(packet.bytes) {
            return Ok(());
        }
        ensure!(!packet.frame.vlan_tagged, "BPF_PROG_TEST_RUN has no VLAN tags: mark the case as host_only");
        self.set_subject(packet.endpoint, packet.policy)?;
        let outcome = self.run(packet.hook, packet.bytes, &packet.frame)?;
        self.require_outcome(packet, &outcome)?;
        self.require_counted(packet)?;
        self.require_event(packet)?;
        self.require_tables(host)?;
        self.require_fragments(host)
    }

    fn require_outcome(&self, packet: &Observed<'_>, outcome: &Outcome) -> Result<()> {
        let Observed { hook, bytes, frame, decision, .. } = *packet;
        let reason = decision.reason;
        let action = if reason.is_drop() { DROPPED } else { PASSED };
        ensure!(outcome.action == action, "the kernel returned {:#x}, the host said {reason}", outcome.action);
        ensure!(outcome.bytes == bytes, "the kernel changed the frame");
        let mark = Mark::new(self.config.mark_mask, self.config.mark_shift);
        let stamped = match hook {
            Hook::FromPod if !reason.is_drop() => mark.write(frame.mark, decision.sender()),
            Hook::ToUplink if !reason.is_drop() => mark.write(frame.mark, Sender::None),
            Hook::FromPod | Hook::ToPod | Hook::ToUplink => frame.mark,
        };
        ensure!(outcome.mark == stamped, "mark {:#x}, expected {stamped:#x}", outcome.mark);
        Ok(())
    }

    /// Its counter moved, and that of a sender whose policy allows it, by one packet and its bytes.
    fn require_counted(&mut self, packet: &Observed<'_>) -> Result<()> {
        let Observed { bytes, decision, counted, .. } = *packet;
        let counter = Counter { packets: 1, bytes: u64::try_from(bytes.len())? };
        let of_sender = |(slot, reason): &(u16, Reason)| CounterIndex::new(*slot, Direction::Egress, *reason);
        let mut expected: Vec<_> = counted.iter().map(|it| (of_sender(it), counter)).collect();
        expected.push((CounterIndex::new(decision.slot, decision.direction, decision.reason), counter));
        expected.sort_by_key(|(index, _)| *index);
        let moved = self.moved()?;
        if moved != expected {
            let name = |list: &[(CounterIndex, Counter)]| -> Vec<String> {
                list.iter().map(|(index, counter)| named(*index, *counter)).collect()
            };
            bail!("expected {:?}, the kernel counted {:?}", name(&expected), name(&moved));
        }
        Ok(())
    }

    fn require_event(&mut self, packet: &Observed<'_>) -> Result<()> {
        let events = self.events()?;
        let expected: Vec<Event> = packet.report.into_iter().map(|report| event::expected(packet, report)).collect();
        let timeless: Vec<Event> = events.iter().map(|event| Event { time: 0, ..*event }).collect();
        ensure!(timeless == expected, "events {timeless:?}, expected {expected:?}");
        ensure!(events.iter().all(|event| event.time > 0), "an event without a time");
        Ok(())
    }

    fn require_tables(&self, host: &HostTables) -> Result<()> {
        let now = jiffies(self.config.hz)?;
        let age = |seen: u32| now.wrapping_sub(seen).cast_signed();
        let host_age = |seen: u32| host.now.get().wrapping_sub(seen).cast_signed();
        let alike = |kernel: u32, seen: u32| age(kernel).abs_diff(host_age(seen)) <= AGE_TOLERANCE * self.config.hz;

        let (kernel, of_host) = (self.maps.flows()?, FlowTables::of_host(host));
        let same = kernel.0.len() == of_host.0.len()
            && kernel.0.iter().zip(&of_host.0).all(|((key, (flow, place)), (host_key, (host_flow, host_place)))| {
                let values = (flow.word, flow.origin) == (host_flow.word, host_flow.origin) && place == host_place;
                key == host_key && values && alike(flow.last_seen, host_flow.last_seen)
            });
        ensure!(same, "flows in the kernel at {now} {kernel:#?}, on the host at {} {of_host:#?}", host.now.get());

        let (kernel, of_host) = (self.maps.backends()?, host.backends.borrow().iter().map(|(k, v)| (*k, *v)).collect());
        ensure!(kernel == of_host, "backends in the kernel {kernel:#?}, on the host {of_host:#?}");
        Ok(())
    }

    fn require_fragments(&mut self, host: &HostTables) -> Result<()> {
        let of_host: Vec<(u32, FragmentCell)> = host.fragments.borrow().iter().map(|(i, cell)| (*i, *cell)).collect();
        let indexes: Vec<u32> = of_host.iter().map(|(index, _)| *index).collect();
        let kernel = self.maps.fragments(&indexes)?;
        let now = jiffies(self.config.hz)?;
        let ticks = |now: u32, cell: FragmentCell| low_half(now >> FragmentCell::TICK_SHIFT).wrapping_sub(cell.ticks());
        let tolerance = (AGE_TOLERANCE * self.config.hz) >> FragmentCell::TICK_SHIFT;
        for ((index, cell), found) in of_host.iter().zip(&kernel) {
            let (age, of_host) = (ticks(now, *found), ticks(host.now.get(), *cell));
            ensure!(
                cell.timeless() == found.timeless() && u32::from(age.abs_diff(of_host)) <= tolerance,
                "cell {index}: {found:x?} of age {age} in the kernel, {cell:x?} of age {of_host} on the host"
            );
        }
        Ok(())
    }

    /// The maps that events are bounded with, summed over the CPUs.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn event_totals(&self, slot: u16) -> Result<EventTotals> {
        self.maps.event_totals(slot)
    }
}

/// What the programs remember of events that were not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventTotals {
    /// Drops since the last event of their flow, over all flows.
    pub suppressed: u64,
    /// Events that found the slot's budget spent.
    pub refused: u64,
    /// Events that found the ring full.
    pub lost: u64,
}

/// The fields of `struct __sk_buff` that BPF_PROG_TEST_RUN takes and gives back.
#[derive(Clone, Copy, Debug)]
pub struct Context([u8; Context::SIZE]);

impl Context {
    /// Size of the structure.
    const SIZE: usize = 192;
    const MARK: usize = 8;
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SEGMENTS: usize = 164;

    /// As `frame` says.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        let mut context = Self([0; Self::SIZE]);
        context.set(Self::MARK, frame.mark);
        context.set(Self::INGRESS_IFINDEX, if frame.from_host_stack { 0 } else { LOOPBACK });
        context
    }

    /// The structure as the kernel takes it.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same at another interface, which must exist in this network namespace.
    #[must_use]
    pub fn at(mut self, ifindex: u32) -> Self {
        self.set(Self::IFINDEX, ifindex);
        self
    }

    /// The same as a GSO packet of so many segments.
    #[must_use]
    pub fn segments(mut self, segments: u32) -> Self {
        self.set(Self::GSO_SEGMENTS, segments);
        self
    }

    fn set(&mut self, offset: usize, value: u32) {
        if let Some(field) = self.0.get_mut(offset..offset + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }

    fn word(&self, offset: usize) -> u32 {
        self.0.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the cell's clock has 16 bits")]
const fn low_half(word: u32) -> u16 {
    word as u16
}

/// True if BPF_PROG_TEST_RUN takes a frame: it wants the fixed part of the IP header, or else a byte behind the Ethernet one.
fn can_run(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    };
    (shortest..=LONGEST).contains(&frame.len())
}

/// A counter in words.
fn named(index: CounterIndex, counter: Counter) -> String {
    let slot = index.0 / CounterIndex::PER_SLOT;
    let of_slot = index.0 % CounterIndex::PER_SLOT;
    let direction = if of_slot < Reason::SLOTS { Direction::Ingress } else { Direction::Egress };
    let number = u8::try_from(of_slot % Reason::SLOTS).unwrap_or(u8::MAX);
    let reason = Reason::try_from(number).map_or("no reason", Reason::name);
    format!("slot {slot} {} {reason}: {} packets, {} bytes", direction.name(), counter.packets, counter.bytes)
}

/// Jiffies now, low 32 bits: the kernel starts them five minutes before they wrap (INITIAL_JIFFIES).
fn jiffies(hz: u32) -> Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec())?, u64::try_from(time.tv_nsec())?);
    let ticks = seconds * u64::from(hz) + nanoseconds * u64::from(hz) / 1_000_000_000;
    let low = u32::try_from(ticks & u64::from(u32::MAX))?;
    Ok(low.wrapping_sub(300 * hz))
}
