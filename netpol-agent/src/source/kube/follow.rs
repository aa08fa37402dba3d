//! Follows one kind: list, watch, and what to do when either breaks.
//!
//! A watch goes on from the last version that was heard, after whatever happened to the connection; a new list is made only
//! when that version is not kept any more, or when the watch makes no sense again and again. A version counts as heard only
//! when the event that has it was read and told: nothing is passed over.

use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use hyper::header::{ACCEPT_ENCODING, HeaderValue};
use kube::client::Body;
use kube::core::Request;
use kube::core::params::WatchParams;
use tokio::time::{Instant, timeout};

use super::Timing;
use super::backoff::{Backoff, chance};
use super::connection::Connection;
use super::health::Doing;
use super::lines::{Cut as Broken, Lines};
use super::list::{FIRST_PAGE, garbage};
use super::resource::Resource;
use super::shared::Shared;
use super::trouble::Trouble;
use super::wire::{Bookmark, Cut, Line, Status};
use crate::problem::chain;

/// Watches that broke in a row without having said anything, after which all objects are read again.
const FRUITLESS: u32 = 4;
/// A watch that ends sooner than this without having said anything was refused.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A version to watch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position(String);

impl Position {
    pub(super) fn new(version: String) -> Result<Self, Trouble> {
        // Watching from 0 is from anywhere.
        if version.is_empty() || version == "0" {
            return Err(Trouble::Garbage("a list without a resourceVersion".to_owned()));
        }
        Ok(Self(version))
    }

    /// Versions of one API server count up; one that counts down was restored from a backup.
    fn is_after(&self, other: &str) -> bool {
        let number = |text: &str| text.parse::<u128>().ok();
        number(&self.0).zip(number(other)).is_some_and(|(own, other)| own > other)
    }
}

/// Whether to ask for streaming lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streaming {
    Wanted,
    /// The last one did not go on; once without.
    NotNow,
    /// The API server does not do them.
    Refused,
}

/// What a list leads to.
pub(super) enum Open {
    /// The watch that the streaming list has become.
    Streaming(Lines, Position),
    /// A version to watch from.
    Listed(Position),
}

/// See the module.
pub(super) struct Follower {
    pub(super) resource: Resource,
    connection: Arc<Connection>,
    pub(super) shared: Arc<Shared>,
    pub(super) timing: Timing,
    pub(super) backoff: Backoff,
    pub(super) streaming: Streaming,
    pub(super) page: u32,
    position: Option<Position>,
    fruitless: u32,
}

impl Follower {
    pub(super) fn new(resource: Resource, connection: Arc<Connection>, shared: Arc<Shared>, timing: Timing) -> Self {
        Self {
            resource,
            connection,
            shared,
            timing,
            backoff: Backoff::new(timing.backoff_first, timing.backoff_longest),
            streaming: Streaming::Wanted,
            page: FIRST_PAGE,
            position: None,
            fruitless: 0,
        }
    }

    /// Follows for ever.
    pub(super) async fn run(mut self) {
        loop {
            if let Err(trouble) = self.attempt().await {
                self.shared.ledger(|ledger| ledger.abandon(self.resource));
                self.recover(trouble).await;
            }
        }
    }

    /// One list, if need be, and one watch.
    async fn attempt(&mut self) -> Result<(), Trouble> {
        let (mut lines, position) = match self.position.clone() {
            Some(position) => (self.watch(&position).await?, position),
            None => match self.list().await? {
                Open::Streaming(lines, position) => (lines, position),
                Open::Listed(position) => {
                    self.position = Some(position.clone());
                    (self.watch(&position).await?, position)
                }
            },
        };
        self.position = Some(position);
        self.receive(&mut lines).await
    }

    async fn watch(&self, position: &Position) -> Result<Lines, Trouble> {
        self.shared.doing(self.resource, Doing::Connecting);
        let parameters = WatchParams { timeout: Some(self.watch_seconds()), ..WatchParams::default() };
        let lines = self.open_watch(&parameters, &position.0).await?;
        self.shared.fresh(self.resource);
        Ok(lines)
    }

    /// Reads a watch to its end.
    async fn receive(&mut self, lines: &mut Lines) -> Result<(), Trouble> {
        let (opened, mut heard) = (Instant::now(), false);
        loop {
            match lines.next(self.timing.silence).await {
                Ok(Some(line)) => self.take(&line)?,
                Ok(None) if !heard && opened.elapsed() < AT_ONCE => return Err(Trouble::EndedAtOnce),
                Ok(None) => return Ok(()),
                Err(cut) => return Err(cut.into()),
            }
            heard = true;
            self.fruitless = 0;
            self.backoff.reset();
        }
    }

    /// Takes one line of a watch.
    fn take(&mut self, line: &[u8]) -> Result<(), Trouble> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(garbage)?;
        let object = line.object.get();
        let version = match line.event {
            "ADDED" | "MODIFIED" => {
                let mut cut = Cut::read(self.resource, object).map_err(garbage)?;
                let resource_version = std::mem::take(&mut cut.resource_version);
                let version = self.shared.ledger(|ledger| ledger.version_of(&cut.uid, &resource_version));
                let key = cut.key.clone();
                let decoded = cut.decode(self.resource);
                self.shared.publish(|ledger| ledger.changed(self.resource, (key, version), decoded));
                resource_version
            }
            "DELETED" => {
                let cut = Cut::read(self.resource, object).map_err(garbage)?;
                self.shared.publish(|ledger| ledger.gone(self.resource, &cut.key));
                cut.resource_version
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(object).map_err(garbage)?;
                let version = bookmark.metadata.resource_version;
                if self.position.as_ref().is_some_and(|position| position.is_after(&version)) {
                    return Err(Trouble::Expired(format!("it is back at version {version}")));
                }
                version
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(object).map_err(garbage)?;
                return Err(Trouble::of_event(self.resource, status));
            }
            other => return Err(Trouble::Garbage(format!("unknown event {other:?}"))),
        };
        self.position = Some(Position::new(version)?);
        self.shared.heard(self.resource);
        Ok(())
    }

    /// Decides how to go on after `trouble`, and waits.
    async fn recover(&mut self, trouble: Trouble) {
        match &trouble {
            Trouble::Expired(_) => self.position = None,
            Trouble::NoStreaming(_) => self.streaming = Streaming::Refused,
            Trouble::StuckStreaming(_) => self.streaming = Streaming::NotNow,
            Trouble::Unauthorized(_) => {
                if let Err(error) = self.connection.renew().await {
                    tracing::warn!(%error, "cannot read the credentials again");
                }
            }
            Trouble::Cut(Broken::Silent(_))
            | Trouble::Garbage(_)
            | Trouble::EndedAtOnce
            | Trouble::Refused { status: 400..=428, .. } => {
                self.fruitless += 1;
                if self.fruitless >= FRUITLESS {
                    (self.position, self.fruitless) = (None, 0);
                }
            }
            // An API server that is overloaded or away is not helped by lists.
            Trouble::Refused { .. } | Trouble::Cut(_) | Trouble::Forbidden { .. } | Trouble::Unreachable(_) => {}
        }
        let wait = self.backoff.next().max(trouble.retry_after().unwrap_or_default());
        let told = (self.backoff.failures(), trouble.is_grave());
        self.shared.failed(self.resource, chain(&trouble), told);
        tokio::time::sleep(wait).await;
        self.shared.doing(self.resource, Doing::Connecting);
    }

    /// Watches are asked to end at different times, so that not all nodes come back at once.
    pub(super) fn watch_seconds(&self) -> u32 {
        let seconds = self.timing.watch.mul_f64(1.0 + chance() / 2.0).as_secs().max(1);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    pub(super) async fn open_watch(&self, parameters: &WatchParams, version: &str) -> Result<Lines, Trouble> {
        let mut request = Request::new(self.resource.path()).watch(parameters, version);
        if let Ok(request) = &mut request {
            // Newer API servers compress watches event by event, which kube's decoder does not follow.
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        Ok(Lines::new(self.ask(request).await?.into_body()))
    }

    /// Sends a request; anything but success is trouble.
    pub(super) async fn ask(
        &self,
        request: Result<hyper::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Response<Body>, Trouble> {
        let request = request.map_err(|error| Trouble::Unreachable(chain(&error)))?;
        let client = self.connection.client();
        let answer = match timeout(self.timing.answer, client.send(request.map(Body::from))).await {
            Err(_elapsed) => return Err(Trouble::Unreachable(format!("no answer in {:?}", self.timing.answer))),
            Ok(Err(error)) => return Err(Trouble::Unreachable(chain(&error))),
            Ok(Ok(answer)) => answer,
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(Trouble::of_answer(self.resource, answer, self.timing.answer).await)
    }
}
