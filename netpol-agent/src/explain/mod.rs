//! Why one thing reaches another, or does not: a question about a flow -> both sides' verdicts with the rules that allow
//! it, or the policies that isolate and what came nearest to letting it through, and the smallest change that would.
//!
//! Comes in: [`Question`] (what was typed), [`Facts`] (the cluster), and [`Opinions`] (what the compiler made of it). Goes
//! out: an [`Explanation`]. Pure. Two judges answer and are compared, loudly: the compiler's tables, and [`naive`], which
//! reads NetworkPolicy off the objects and shares no code with the compiler.
//!
//! Nothing here looks at packets: connections that are open, spoofed sources and the like are the datapath's.

mod answer;
mod change;
mod compiled;
mod facts;
pub mod naive;
mod question;
mod report;
mod resolve;
#[cfg(test)]
mod tests;
mod words;

pub use answer::{EndReport, Explanation, FlowReport, Miss, SideReport, Verdict};
pub use change::{Change, Hint};
pub use compiled::{Compiled, FreshCompile, Opinion, Opinions, View};
pub use facts::{End, Facts, Flow, Nodes, Traffic};
pub use question::{Ports, Question, QuestionError, Target};
pub use report::{explain, judge};
pub use resolve::{Unanswerable, resolve};

use netpol_common::abi::Direction;

/// One side of a flow: whose policy is asked about whom.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The end whose policy it is.
    pub subject: &'a End,
    /// The other end.
    pub peer: &'a End,
    /// Direction as the subject sees it.
    pub direction: Direction,
    /// What is sent.
    pub traffic: Traffic,
}

impl Flow {
    /// The side of one direction: egress is the source's, ingress the destination's.
    #[must_use]
    pub const fn side(&self, direction: Direction) -> Side<'_> {
        let (subject, peer) = match direction {
            Direction::Egress => (&self.source, &self.destination),
            Direction::Ingress => (&self.destination, &self.source),
        };
        Side { subject, peer, direction, traffic: self.traffic }
    }
}
