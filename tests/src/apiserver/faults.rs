//! How an API server can misbehave.

use std::collections::BTreeSet;
use std::time::Duration;

/// What is wrong with the server; nothing by default.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Answers to the next requests, one each.
    pub refuse: Vec<Refusal>,
    /// Streaming lists are refused, as by a server without the feature.
    pub no_streaming: bool,
    /// `sendInitialEvents` is not known: the watch begins with all objects, and no bookmark ends them.
    pub ignore_streaming: bool,
    /// A watch from a version that is gone is answered with status 410, not with an event.
    pub gone_as_status: bool,
    /// Continue tokens are expired when they come back.
    pub expired_continue: bool,
    /// What happens to the next answers to lists and watches, one each.
    pub spoil: Vec<Spoil>,
    /// Happens to every answer that is not spoiled otherwise.
    pub spoil_all: Option<Spoil>,
    /// A whole line that is no JSON comes before the next event of a watch; that many times.
    pub garbage: usize,
    /// ERROR events with this code end the next watches, one each.
    pub errors: Vec<u16>,
    /// The bearer token that is asked for.
    pub token: Option<String>,
    /// What is forbidden, by plural name of the kind.
    pub forbidden: BTreeSet<String>,
    /// Lists from this size on are compressed if the client takes it.
    pub gzip_from: usize,
    /// How often watches get a bookmark.
    pub bookmark_every: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            refuse: Vec::new(),
            no_streaming: false,
            ignore_streaming: false,
            gone_as_status: false,
            expired_continue: false,
            spoil: Vec::new(),
            spoil_all: None,
            garbage: 0,
            errors: Vec::new(),
            token: None,
            forbidden: BTreeSet::new(),
            gzip_from: 128 << 10,
            bookmark_every: Duration::from_secs(60),
        }
    }
}

/// An answer that is an error.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Seconds in `Retry-After`.
    pub retry_after: Option<u32>,
}

/// What happens to the bytes of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Spoil {
    /// The connection breaks after this many.
    CutAfter(usize),
    /// Nothing comes after this many, and the connection stays.
    StallAfter(usize),
    /// A few at a time, with a pause.
    Trickle {
        /// How many.
        bytes: usize,
        /// How long a pause.
        pause: Duration,
    },
}
