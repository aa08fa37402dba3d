//! What the tasks that follow the kinds, and the one that takes the changes, share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::health::{Doing, KindHealth, SourceHealth};
use super::ledger::Ledger;
use super::resource::Resource;
use super::wire::ORIGIN;
use crate::problem::{Problem, Severity};
use crate::source::Changes;

/// See the module.
pub(super) struct Shared {
    state: Mutex<State>,
    news: Notify,
}

/// What is known, and how it goes.
pub(super) struct State {
    pub(super) ledger: Ledger,
    health: [KindHealth; 4],
    /// Failures that are to be told at once, not only when they last.
    grave: [bool; 4],
    /// Something to take since then.
    news_since: Option<Instant>,
    /// What is to be taken comes from a list, at least in part.
    relisted: bool,
}

impl State {
    /// True while kinds may still be on their way to the same moment.
    fn is_moving(&self) -> bool {
        let behind = || self.health.iter().any(|health| health.stale_since.is_some());
        self.ledger.is_listing() || (self.relisted && behind())
    }

    fn health_mut(&mut self, resource: Resource) -> Option<&mut KindHealth> {
        self.health.iter_mut().find(|health| health.kind == resource.plural())
    }
}

impl Shared {
    pub(super) fn new() -> Self {
        let health = |resource: Resource| KindHealth {
            kind: resource.plural(),
            synced: false,
            objects: 0,
            doing: Doing::Connecting,
            last_heard: None,
            stale_since: None,
            failures: 0,
            error: None,
        };
        let state = State {
            ledger: Ledger::default(),
            health: Resource::ALL.map(health),
            grave: [false; 4],
            news_since: None,
            relisted: false,
        };
        Self { state: Mutex::new(state), news: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or changes the ledger, with nothing to take after it.
    pub(super) fn ledger<T>(&self, with: impl FnOnce(&mut Ledger) -> T) -> T {
        with(&mut self.lock().ledger)
    }

    /// Changes the ledger, so that there is something to take.
    pub(super) fn publish(&self, with: impl FnOnce(&mut Ledger)) {
        let mut state = self.lock();
        with(&mut state.ledger);
        state.news_since.get_or_insert_with(Instant::now);
        drop(state);
        self.news.notify_one();
    }

    /// The list of a kind is whole.
    pub(super) fn complete(&self, resource: Resource) {
        self.lock().relisted = true;
        self.publish(|ledger| ledger.complete(resource));
        self.fresh(resource);
    }

    /// This is being done.
    pub(super) fn doing(&self, resource: Resource, doing: Doing) {
        if let Some(health) = self.lock().health_mut(resource) {
            health.doing = doing;
        }
    }

    /// The API server was heard of.
    pub(super) fn heard(&self, resource: Resource) {
        if let Some(health) = self.lock().health_mut(resource) {
            health.last_heard = Some(SystemTime::now());
        }
    }

    /// What is known is up to date from now on.
    pub(super) fn fresh(&self, resource: Resource) {
        let mut state = self.lock();
        let Some(health) = state.health_mut(resource) else { return };
        let was_wrong = health.error.take().is_some();
        health.last_heard = Some(SystemTime::now());
        health.stale_since = None;
        health.failures = 0;
        health.doing = Doing::Watching;
        if was_wrong {
            tracing::info!(kind = health.kind, "following the API server again");
            state.news_since.get_or_insert_with(Instant::now);
            drop(state);
            self.news.notify_one();
        }
    }

    /// Something went wrong: what is known may be out of date.
    pub(super) fn failed(&self, resource: Resource, error: String, (failures, grave): (u32, bool)) {
        let mut state = self.lock();
        let Some(health) = state.health_mut(resource) else { return };
        if failures == 1 || health.error.as_ref() != Some(&error) {
            tracing::warn!(kind = health.kind, %error, "cannot follow the API server; trying again");
        }
        health.stale_since = health.stale_since.or(health.last_heard).or_else(|| Some(SystemTime::now()));
        health.failures = failures;
        health.error = Some(error);
        health.doing = Doing::Waiting;
        let kind = health.kind;
        for (grave_now, health) in state.grave.iter_mut().zip(Resource::ALL) {
            if health.plural() == kind {
                *grave_now = grave;
            }
        }
        state.news_since.get_or_insert_with(Instant::now);
        drop(state);
        self.news.notify_one();
    }

    /// Waits until there is something to take: at once, unless some kind is in the middle of a list, or (after a list of
    /// another) not heard of yet, so that kinds which are listed at the same time move together. That is waited for no
    /// longer than `hold`.
    pub(super) async fn changed(&self, hold: Duration) {
        loop {
            let until = {
                let state = self.lock();
                match state.news_since {
                    None => None,
                    Some(since) => {
                        let until = since + hold;
                        if !state.is_moving() || Instant::now() >= until {
                            return;
                        }
                        Some(until)
                    }
                }
            };
            match until {
                None => self.news.notified().await,
                Some(until) => {
                    let waited = tokio::time::timeout_at(until, self.news.notified()).await;
                    drop(waited);
                }
            }
        }
    }

    pub(super) fn take(&self) -> Changes {
        let mut state = self.lock();
        (state.news_since, state.relisted) = (None, false);
        let events = state.ledger.take();
        let mut problems: Vec<Problem> = state.ledger.problems().cloned().collect();
        let grave = state.grave;
        problems.extend(state.health.iter().zip(grave).filter_map(|(health, grave)| problem(health, grave)));
        Changes { events, problems }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.lock().ledger.is_synced()
    }

    pub(super) fn health(&self) -> SourceHealth {
        let state = self.lock();
        let mut kinds = state.health.to_vec();
        for (kind, resource) in kinds.iter_mut().zip(Resource::ALL) {
            kind.synced = state.ledger.is_kind_synced(resource);
            kind.objects = state.ledger.count(resource);
        }
        SourceHealth { synced: state.ledger.is_synced(), kinds }
    }
}

/// What is wrong with following a kind. One connection that broke is no news: they all do in the end.
fn problem(health: &KindHealth, grave: bool) -> Option<Problem> {
    const LASTING: u32 = 3;
    let error = health.error.as_ref().filter(|_| grave || health.failures >= LASTING)?;
    let effect = match health.last_heard {
        None => "nothing is known of them yet; what was enforced before goes on",
        Some(_) => "what was last known of them stays in force",
    };
    Some(Problem {
        severity: Severity::Refused,
        origin: ORIGIN.to_owned(),
        object: health.kind.to_owned(),
        field: String::new(),
        message: format!("cannot be followed: {error}"),
        effect: effect.to_owned(),
    })
}
