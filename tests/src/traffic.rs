//! Traffic that goes on while something else happens: allowed exchanges that must all be answered, forbidden attempts that
//! never may be.
//!
//! In: a [`Shop`] whose policies are in force. Out: a [`Report`] of what was exchanged, lost and leaked. An exchange counts as
//! lost when its answer does not come within [`PATIENCE`]; TCP repeats what is lost on the way, so a test that must not lose
//! a single packet takes [`crate::counted`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::Result;

use crate::connection::{Connection, Side};
use crate::counted::EndOnDrop;
use crate::probe::{Outcome, PATIENCE, Probe, SILENCE};
use crate::servers::Transport;
use crate::shop::Shop;
use crate::table::Target;

/// Allowed and forbidden pairs of a shop.
pub struct Traffic<'a> {
    shop: &'a Shop,
    /// Kept open, spoken on from both sides.
    connections: Vec<Probe>,
    /// Opened anew again and again.
    exchanges: Vec<Probe>,
    /// Must stay silent.
    forbidden: Vec<Probe>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages that arrived and were answered.
    pub exchanged: u64,
    /// Forbidden attempts that stayed silent.
    pub refused: u64,
    /// Allowed exchanges without an answer.
    pub lost: Vec<String>,
    /// Forbidden attempts with one.
    pub leaked: Vec<String>,
}

struct Tally {
    over: AtomicBool,
    exchanged: AtomicU64,
    refused: AtomicU64,
    lost: Mutex<Vec<String>>,
    leaked: Mutex<Vec<String>>,
}

impl Tally {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn note(list: &Mutex<Vec<String>>, line: String) {
    // A poisoned list belongs to a thread that has failed already, and what it says is wanted all the same.
    list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line);
}

impl<'a> Traffic<'a> {
    /// The traffic that the shop's policies allow and forbid, in both families.
    ///
    /// # Errors
    /// If the shop has no such pods.
    pub fn of_the_shop(shop: &'a Shop) -> Result<Self> {
        let mut traffic = Self { shop, connections: Vec::new(), exchanges: Vec::new(), forbidden: Vec::new() };
        for ipv6 in [false, true] {
            let probe = |from: &str, to: &str, transport: Transport, port: u16| {
                shop.probe(from, &Target { name: to.to_owned(), port, transport }, ipv6)
            };
            traffic.connections.push(probe(
                "production/payment-service",
                "production/postgresql",
                Transport::Tcp,
                5432,
            )?);
            traffic.exchanges.push(probe("production/job-runner", "kube-system/kube-dns", Transport::Udp, 53)?);
            traffic.exchanges.push(probe("monitoring/prometheus", "production/user-api", Transport::Tcp, 9090)?);
            traffic.forbidden.push(probe("staging/intruder", "production/user-api", Transport::Tcp, 8080)?);
            traffic.forbidden.push(probe("production/job-runner", "production/postgresql", Transport::Tcp, 5432)?);
            traffic.forbidden.push(probe("production/payment-service", "metadata", Transport::Tcp, 443)?);
        }
        Ok(traffic)
    }

    /// Only what policy allows.
    #[must_use]
    pub fn without_forbidden(mut self) -> Self {
        self.forbidden.clear();
        self
    }

    /// Runs `work` while all of it goes on.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Report) {
        let tally = Tally {
            over: AtomicBool::new(false),
            exchanged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            lost: Mutex::default(),
            leaked: Mutex::default(),
        };
        let result = thread::scope(|scope| {
            for probe in &self.connections {
                scope.spawn(|| self.converse(probe, &tally));
            }
            scope.spawn(|| self.exchange(&tally));
            if !self.forbidden.is_empty() {
                scope.spawn(|| self.intrude(&tally));
            }
            // Also when it panics: the scope waits for the threads.
            let _end = EndOnDrop(&tally.over);
            work()
        });
        let list = |list: Mutex<Vec<String>>| list.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let report = Report {
            exchanged: tally.exchanged.into_inner(),
            refused: tally.refused.into_inner(),
            lost: list(tally.lost),
            leaked: list(tally.leaked),
        };
        (result, report)
    }

    /// One connection, open all the time.
    fn converse(&self, probe: &Probe, tally: &Tally) {
        let mut connection = match Connection::open(&self.shop.node, probe) {
            Ok(connection) => connection,
            Err(error) => return note(&tally.lost, format!("{probe} does not open: {error:#}")),
        };
        while !tally.is_over() {
            for side in [Side::Client, Side::Server] {
                match connection.passes(&self.shop.node, side, PATIENCE) {
                    Ok(true) => _ = tally.exchanged.fetch_add(1, Ordering::Relaxed),
                    Ok(false) => return note(&tally.lost, format!("{probe}: silence from the {side:?}")),
                    Err(error) => return note(&tally.lost, format!("{probe}: {error:#}")),
                }
            }
        }
    }

    fn exchange(&self, tally: &Tally) {
        while !tally.is_over() {
            match self.shop.node.probe_all(&self.exchanges, PATIENCE) {
                Ok(outcomes) => {
                    for (probe, outcome) in self.exchanges.iter().zip(outcomes) {
                        if outcome == Outcome::Answered {
                            tally.exchanged.fetch_add(1, Ordering::Relaxed);
                        } else {
                            note(&tally.lost, format!("{probe}: {outcome:?}"));
                        }
                    }
                }
                Err(error) => return note(&tally.lost, format!("{error:#}")),
            }
        }
    }

    fn intrude(&self, tally: &Tally) {
        while !tally.is_over() {
            match self.shop.node.probe_all(&self.forbidden, SILENCE) {
                Ok(outcomes) => {
                    for (probe, outcome) in self.forbidden.iter().zip(outcomes) {
                        if outcome == Outcome::Silence {
                            tally.refused.fetch_add(1, Ordering::Relaxed);
                        } else {
                            note(&tally.leaked, format!("{probe}: {outcome:?}"));
                        }
                    }
                }
                Err(error) => return note(&tally.leaked, format!("{error:#}")),
            }
        }
    }
}
