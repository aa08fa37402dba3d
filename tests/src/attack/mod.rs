//! Frames that a hostile pod sends, each beside a legal one of the same form.
//!
//! - `arena`: a node whose pods are ready for it, the real agent, raw ends of every link.
//! - `wire`, `ring`: AF_PACKET. `beyond`: a host behind a router, for what legal traffic needs.
//! - `cast`: who is there, and their packets; the other modules are attacks by subject.
//!
//! An [`Attack`] is proved by four things: its frames were sent whole; legal frames of the same form arrived, so that the
//! test can see arrivals; none of the attack's did, anywhere; and the counter of the right reason moved by as many packets.

pub mod arena;
pub mod beyond;
pub mod cast;
pub mod fragments;
pub mod headers;
pub mod link;
pub mod replies;
mod ring;
pub mod spoofing;
pub mod through_node;
pub mod tunnels;
pub mod wire;

use cast::Cast;

/// Which frames of an attack are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Those that must not get through.
    Evil,
    /// Those of the same form that must.
    Legal,
}

impl Intent {
    /// What the frame carries, so that it is known wherever it comes out.
    #[must_use]
    pub const fn mark(self) -> &'static [u8; 8] {
        match self {
            Self::Evil => b"EVIL0000",
            Self::Legal => b"LEGAL000",
        }
    }

    /// One or the other.
    #[must_use]
    pub fn choose<T>(self, evil: T, legal: T) -> T {
        match self {
            Self::Evil => evil,
            Self::Legal => legal,
        }
    }
}

/// Packets that a counter must count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drops {
    /// The pod whose counter it is.
    pub pod: &'static str,
    /// `ingress` or `egress`, as that pod sees it.
    pub direction: &'static str,
    /// Name of the reason.
    pub reason: &'static str,
    /// How many.
    pub packets: u64,
}

/// A frame that goes first and must arrive: it opens the flow that the attack wants to be part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// Who sends it.
    pub from: &'static str,
    /// Where it arrives.
    pub to: &'static str,
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// One attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attack {
    /// What is tried, in words.
    pub name: String,
    /// Who tries.
    pub from: &'static str,
    /// Its frames.
    pub evil: Vec<Vec<u8>>,
    /// Who sends the legal ones.
    pub legal_from: &'static str,
    /// Legal frames of the same form.
    pub legal: Vec<Vec<u8>>,
    /// Where those arrive.
    pub arrives: &'static str,
    /// What opens a flow first.
    pub prelude: Vec<Prelude>,
    /// What must be counted.
    pub drops: Vec<Drops>,
    /// The only place where the attack's frames would be a success; any, if there is none.
    pub target: Option<&'static str>,
}

impl Attack {
    /// An attack whose frames, evil and legal, `frames` makes; the legal ones arrive at `to`.
    #[must_use]
    pub fn new(name: &str, from: &'static str, to: &'static str, frames: impl Fn(Intent) -> Vec<Vec<u8>>) -> Self {
        Self {
            name: name.to_owned(),
            from,
            evil: frames(Intent::Evil),
            legal_from: from,
            legal: frames(Intent::Legal),
            arrives: to,
            prelude: Vec::new(),
            drops: Vec::new(),
            target: None,
        }
    }

    /// The same, of which a counter of the sender tells.
    #[must_use]
    pub fn refused_at_sender(self, reason: &'static str) -> Self {
        let (pod, packets) = (self.from, self.evil.len() as u64);
        self.dropped(pod, "egress", reason, packets)
    }

    /// The same, of which a counter of the receiver tells.
    #[must_use]
    pub fn refused_at(self, pod: &'static str, reason: &'static str) -> Self {
        let packets = self.evil.len() as u64;
        self.dropped(pod, "ingress", reason, packets)
    }

    /// The same, counted so.
    #[must_use]
    pub fn dropped(mut self, pod: &'static str, direction: &'static str, reason: &'static str, packets: u64) -> Self {
        self.drops.push(Drops { pod, direction, reason, packets });
        self
    }

    /// The same, with legal frames from elsewhere.
    #[must_use]
    pub fn legal_from(mut self, place: &'static str) -> Self {
        self.legal_from = place;
        self
    }

    /// The same, after this frame.
    #[must_use]
    pub fn after(mut self, from: &'static str, to: &'static str, frame: Vec<u8>) -> Self {
        self.prelude.push(Prelude { from, to, frame });
        self
    }

    /// The same, if it succeeds only there.
    #[must_use]
    pub fn aims_at(mut self, place: &'static str) -> Self {
        self.target = Some(place);
        self
    }
}

/// All attacks of a subject, in both families where it has both.
pub type Subject = fn(&Cast) -> Vec<Attack>;
