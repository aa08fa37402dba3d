//! Reading all objects of a kind, as a stream or page by page. Both end in a version to watch from; neither changes
//! anything before it is whole.
//!
//! Lists ask for the newest state (no resourceVersion): one that a lagging API server has in its cache could be older than
//! what is known already, and would take it back.

use bytes::Bytes;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};

use tokio::time::Instant;

use super::follow::{Follower, Open, Position, Streaming};
use super::health::Doing;
use super::ledger::Version;
use super::lines::{self, Lines};
use super::trouble::Trouble;
use super::wire::{Bookmark, Cut, Decoded, Line, Page, Status};
use crate::cluster::model::ObjectKey;

/// Objects asked for in one page, at first. A list whose next page is no longer kept is tried again in larger ones.
pub(super) const FIRST_PAGE: u32 = 500;
const LARGEST_PAGE: u32 = 8000;
/// More than the largest page can have.
const MOST_OF_A_PAGE: usize = 512 << 20;

/// What a line of a streaming list is.
enum Initial {
    Object,
    Nothing,
    /// The last one: watch from here.
    End(Position),
}

impl Follower {
    /// Reads all objects as the beginning of a watch, which goes on in the lines that are returned.
    pub(super) async fn stream_list(&mut self) -> Result<(Lines, Position), Trouble> {
        self.shared.doing(self.resource, Doing::Listing);
        let parameters = WatchParams { timeout: Some(self.watch_seconds()), ..WatchParams::streaming_lists() };
        // No version is the newest: kube-apiserver sends what it had when it was asked, or later.
        let mut lines = match self.open_watch(&parameters, "").await {
            Ok(lines) => lines,
            Err(Trouble::Refused { status: 400 | 422, message, .. }) => return Err(Trouble::NoStreaming(message)),
            Err(trouble) => return Err(trouble),
        };
        self.shared.ledger(|ledger| ledger.begin(self.resource));
        let mut last_object = Instant::now();
        loop {
            // Bookmarks do not count: a server that takes this for an ordinary watch sends them for ever.
            let patience = self.timing.streaming.saturating_sub(last_object.elapsed());
            let line = match lines.next(patience).await {
                Ok(Some(line)) => line,
                Ok(None) => return Err(Trouble::Garbage("it ended a streaming list before its end".to_owned())),
                Err(cut @ lines::Cut::Silent(_)) => return Err(Trouble::StuckStreaming(cut)),
                Err(cut @ lines::Cut::Broken(_)) => return Err(cut.into()),
            };
            self.shared.heard(self.resource);
            match self.take_initial(&line)? {
                Initial::Object => last_object = Instant::now(),
                Initial::Nothing => {}
                Initial::End(position) => return Ok((lines, position)),
            }
        }
    }

    /// Takes one line of a streaming list.
    fn take_initial(&mut self, line: &Bytes) -> Result<Initial, Trouble> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(garbage)?;
        match line.event {
            "ADDED" | "MODIFIED" => {
                let cut = Cut::read(self.resource, line.object.get()).map_err(garbage)?;
                let found = self.decode_unknown(cut);
                self.shared.ledger(|ledger| ledger.listed(self.resource, found.0, found.1));
            }
            "DELETED" => {
                let cut = Cut::read(self.resource, line.object.get()).map_err(garbage)?;
                self.shared.ledger(|ledger| ledger.unlisted(self.resource, &cut.key));
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(line.object.get()).map_err(garbage)?;
                if bookmark.ends_initial_events() {
                    let position = Position::new(bookmark.metadata.resource_version)?;
                    self.complete();
                    return Ok(Initial::End(position));
                }
                return Ok(Initial::Nothing);
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(line.object.get()).map_err(garbage)?;
                return Err(Trouble::of_event(self.resource, status));
            }
            other => return Err(Trouble::Garbage(format!("unknown event {other:?}"))),
        }
        Ok(Initial::Object)
    }

    /// Reads all objects page by page.
    pub(super) async fn page_list(&mut self) -> Result<Position, Trouble> {
        self.shared.doing(self.resource, Doing::Listing);
        self.shared.ledger(|ledger| ledger.begin(self.resource));
        let mut parameters = ListParams::default().limit(self.page);
        loop {
            let request = Request::new(self.resource.path()).list(&parameters);
            let text = match self.ask(request).await {
                Ok(answer) => lines::whole(answer.into_body(), self.timing.answer, MOST_OF_A_PAGE).await?,
                Err(Trouble::Expired(message)) => {
                    self.page = (self.page * 2).min(LARGEST_PAGE);
                    return Err(Trouble::Expired(message));
                }
                Err(trouble) => return Err(trouble),
            };
            self.shared.heard(self.resource);
            let page: Page<'_> = serde_json::from_slice(&text).map_err(garbage)?;
            for item in page.items.unwrap_or_default() {
                let cut = Cut::read(self.resource, item.get()).map_err(garbage)?;
                let found = self.decode_unknown(cut);
                self.shared.ledger(|ledger| ledger.listed(self.resource, found.0, found.1));
            }
            if page.metadata.next.is_empty() {
                let position = Position::new(page.metadata.resource_version)?;
                self.complete();
                return Ok(position);
            }
            parameters.continue_token = Some(page.metadata.next);
            // A page is some milliseconds of work; others have their turn in between.
            tokio::task::yield_now().await;
        }
    }

    /// The object, unless this version of it is known.
    fn decode_unknown(&self, cut: Cut) -> ((ObjectKey, Version), Option<Decoded>) {
        let (version, known) = self.shared.ledger(|ledger| (ledger.version(&cut), ledger.knows(self.resource, &cut)));
        let key = cut.key.clone();
        ((key, version), (!known).then(|| cut.decode(self.resource)))
    }

    fn complete(&mut self) {
        self.page = FIRST_PAGE;
        if self.streaming == Streaming::NotNow {
            self.streaming = Streaming::Wanted;
        }
        self.backoff.reset();
        self.shared.complete(self.resource);
    }

    /// Opens what a list leads to: the rest of the stream, or a watch.
    pub(super) async fn list(&mut self) -> Result<Open, Trouble> {
        if self.streaming == Streaming::Wanted {
            let (lines, position) = self.stream_list().await?;
            return Ok(Open::Streaming(lines, position));
        }
        Ok(Open::Listed(self.page_list().await?))
    }
}

pub(super) fn garbage(error: serde_json::Error) -> Trouble {
    Trouble::Garbage(error.to_string())
}
