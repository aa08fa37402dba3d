//! The life of a flow as pure functions: when an entry is still alive, and what a packet makes of it (design §3.4).

use crate::abi::{Config, Direction, Flow, FlowState, FlowWord};
use crate::packet::{protocol, tcp_flag};

/// A word of the object's [`Config`], by its index: the programs read single words, as a copy of the whole would cost.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `timeouts.tcp_opening`.
    TcpOpening = 0,
    /// `timeouts.tcp_established`.
    TcpEstablished = 1,
    /// `timeouts.tcp_closing`.
    TcpClosing = 2,
    /// `timeouts.other_opening`.
    OtherOpening = 3,
    /// `timeouts.other_established`.
    OtherEstablished = 4,
    /// `timeouts.sctp_established`.
    SctpEstablished = 5,
    /// `timeouts.fragment`.
    Fragment = 6,
    /// `mark_mask`.
    MarkMask = 7,
    /// `flags`.
    Flags = 8,
    /// `hz`.
    Hz = 9,
    /// `event_interval`.
    EventInterval = 10,
    /// `events_per_second`.
    EventsPerSecond = 11,
    /// `slots`.
    Slots = 12,
    /// `mark_shift`.
    MarkShift = 13,
    /// `flows_per_pod`.
    FlowsPerPod = 14,
    /// `unanswered_per_pod`.
    UnansweredPerPod = 15,
    /// `backends_per_pod`.
    BackendsPerPod = 16,
    /// First word of `services_v4`.
    ServicesV4 = 17,
    /// First word of `services_v6`.
    ServicesV6 = 19,
}

impl Setting {
    /// Words in a [`Config`].
    pub const COUNT: usize = 27;
}

const _: () = {
    assert!(size_of::<Config>() == Setting::COUNT * 4);
    assert!(core::mem::offset_of!(Config, mark_mask) == Setting::MarkMask as usize * 4);
    assert!(core::mem::offset_of!(Config, flags) == Setting::Flags as usize * 4);
    assert!(core::mem::offset_of!(Config, hz) == Setting::Hz as usize * 4);
    assert!(core::mem::offset_of!(Config, event_interval) == Setting::EventInterval as usize * 4);
    assert!(core::mem::offset_of!(Config, events_per_second) == Setting::EventsPerSecond as usize * 4);
    assert!(core::mem::offset_of!(Config, slots) == Setting::Slots as usize * 4);
    assert!(core::mem::offset_of!(Config, mark_shift) == Setting::MarkShift as usize * 4);
    assert!(core::mem::offset_of!(Config, flows_per_pod) == Setting::FlowsPerPod as usize * 4);
    assert!(core::mem::offset_of!(Config, unanswered_per_pod) == Setting::UnansweredPerPod as usize * 4);
    assert!(core::mem::offset_of!(Config, backends_per_pod) == Setting::BackendsPerPod as usize * 4);
    assert!(core::mem::offset_of!(Config, services_v4) == Setting::ServicesV4 as usize * 4);
    assert!(core::mem::offset_of!(Config, services_v6) == Setting::ServicesV6 as usize * 4);
};

/// The setting that bounds how long a flow in this state may be idle. A revoked flow is kept as long as a live one:
/// its entry is what keeps both directions closed.
#[must_use]
#[inline(always)]
pub const fn timeout(protocol: u8, state: FlowState) -> Setting {
    match (protocol, state) {
        (protocol::TCP, FlowState::Opening) => Setting::TcpOpening,
        (protocol::TCP, FlowState::Established | FlowState::Revoked) => Setting::TcpEstablished,
        (protocol::TCP, FlowState::Closing) => Setting::TcpClosing,
        (_, FlowState::Opening) => Setting::OtherOpening,
        (protocol::SCTP, _) => Setting::SctpEstablished,
        _ => Setting::OtherEstablished,
    }
}

/// Jiffies by which a stamp may be ahead of its reader: another CPU stamps in the tick after the one that was read, and userspace
/// looks through a whole table by one reading.
const AHEAD: u32 = 4_096;

/// Jiffies between a stamp and `now`; none for a stamp that was written after `now` was read, which would else seem older than any.
#[must_use]
#[inline(always)]
pub const fn age(now: u32, stamp: u32) -> u32 {
    let age = now.wrapping_sub(stamp);
    if age > u32::MAX - AHEAD { 0 } else { age }
}

/// True if an entry last seen at `last_seen` has not been idle longer than `limit` at `now` (all in jiffies, wrapping).
#[must_use]
#[inline(always)]
pub const fn is_live(now: u32, last_seen: u32, limit: u32) -> bool {
    age(now, last_seen) <= limit
}

/// True for the packet that opens a TCP connection: SYN without ACK (RST and FIN beside it change nothing).
#[must_use]
#[inline(always)]
pub const fn is_syn(protocol: u8, tcp_flags: u8) -> bool {
    protocol == protocol::TCP && tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
}

/// What an allowed packet in `direction` makes of a flow that is not revoked.
#[must_use]
#[inline(always)]
pub const fn advance(word: FlowWord, protocol: u8, tcp_flags: u8, direction: Direction) -> FlowWord {
    let from_opener = word.opener() as u8 == direction as u8;
    let mut next = word;
    if !from_opener && matches!(word.state(), FlowState::Opening) {
        next = next.with_state(FlowState::Established).with_flag(FlowWord::ANSWERED);
    }
    if protocol != protocol::TCP || tcp_flags & (tcp_flag::FIN | tcp_flag::RST) == 0 {
        return next;
    }
    if tcp_flags & tcp_flag::RST != 0 {
        return next.with_state(FlowState::Closing);
    }
    next = next.with_flag(if from_opener { FlowWord::FIN_OPENER } else { FlowWord::FIN_ANSWERER });
    if next.has(FlowWord::FIN_BOTH) { next.with_state(FlowState::Closing) } else { next }
}

/// True if a flow belongs among the answered ones after a packet (from its opener or not) that left it with `word`. TCP
/// only when its opener goes on after the answer: a flood of SYNs is answered too, with SYN-ACK or RST, and must not push
/// out what is established.
#[must_use]
#[inline(always)]
pub const fn is_settled(word: FlowWord, protocol: u8, from_opener: bool) -> bool {
    let goes_on = protocol != protocol::TCP || (from_opener && matches!(word.state(), FlowState::Established));
    word.has(FlowWord::ANSWERED) && goes_on
}

/// The state in which a revoked flow resumes when a newer revision allows it again.
#[must_use]
#[inline(always)]
pub const fn resumed_state(word: FlowWord) -> FlowState {
    match word.state() {
        FlowState::Revoked if word.has(FlowWord::ANSWERED) => FlowState::Established,
        FlowState::Revoked => FlowState::Opening,
        state @ (FlowState::Opening | FlowState::Established | FlowState::Closing) => state,
    }
}

/// How much an answered flow is worth to its pod when one of them must leave its table for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// It is over, or no connection and quiet for a second.
    Nothing,
    /// An exchange of datagrams that still goes on: it opens again by itself.
    Little,
    /// A connection; or a revoked flow, whose entry is what keeps both directions closed.
    Much,
}

/// The worth of a flow at `now`; a second has `hz` jiffies.
#[must_use]
#[inline(always)]
pub const fn worth(flow: &Flow, protocol: u8, now: u32, hz: u32) -> Worth {
    let idle = age(now, flow.last_seen);
    match flow.word.state() {
        FlowState::Revoked => Worth::Much,
        FlowState::Closing => Worth::Nothing,
        FlowState::Opening | FlowState::Established if protocol == protocol::TCP => Worth::Much,
        FlowState::Opening | FlowState::Established if idle > hz => Worth::Nothing,
        FlowState::Opening | FlowState::Established => Worth::Little,
    }
}

/// A flow that opens now, `origin` as in [`Flow::origin`].
#[must_use]
#[inline(always)]
pub const fn opened(word: FlowWord, now: u32, origin: u16) -> Flow {
    Flow { word, last_seen: now, origin, place: 0 }
}

/// The same flow with this word, seen now.
#[must_use]
#[inline(always)]
pub const fn seen(flow: Flow, word: FlowWord, now: u32) -> Flow {
    Flow { word, last_seen: now, ..flow }
}

#[cfg(test)]
mod tests {
    use super::{age, is_live};

    #[test]
    fn a_stamp_of_the_next_tick_is_new_and_not_the_oldest_of_all() {
        for now in [0, 1, 1_000, u32::MAX] {
            assert_eq!(age(now, now), 0);
            assert_eq!(age(now, now.wrapping_add(1)), 0);
            assert_eq!(age(now, now.wrapping_sub(7)), 7);
            assert!(is_live(now, now.wrapping_add(1), 0));
            assert!(!is_live(now, now.wrapping_sub(31), 30));
            // A month of a thousand ticks a second is old all the same.
            assert!(!is_live(now, now.wrapping_sub(2_592_000_000), 432_000_000));
        }
    }
}
