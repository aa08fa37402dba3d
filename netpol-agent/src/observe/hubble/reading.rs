//! One observer's way through the ring: a request in, its responses out, one at a time as the observer takes them.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::filter::Selection;
use super::mask::Mask;
use super::proto::flow::{LostEvent, LostEventSource};
use super::proto::observer::get_flows_response::ResponseTypes;
use super::proto::observer::{GetFlowsRequest, GetFlowsResponse};
use super::ring::{Content, Entry, Ring};

/// Entries taken from the ring at a time.
const BATCH: usize = 64;
/// How often an observer is told of what it missed.
const TELL_LOST: Duration = Duration::from_secs(1);

/// Earlier, later or the same.
#[must_use]
pub fn compare(one: &Timestamp, other: &Timestamp) -> Ordering {
    (one.seconds, one.nanos).cmp(&(other.seconds, other.nanos))
}

/// What the observer missed and was not told yet.
#[derive(Debug, Default)]
struct Missed {
    count: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    told: Option<Instant>,
}

/// Where an observer is.
#[derive(Debug)]
pub struct Reading {
    ring: Arc<Ring>,
    node: Arc<str>,
    selection: Selection,
    mask: Mask,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Flows that may still be sent; none is any number.
    left: Option<u64>,
    /// None follows the ring for ever.
    end: Option<u64>,
    next: u64,
    ready: VecDeque<Arc<Entry>>,
    seen: Option<Timestamp>,
    missed: Missed,
    news: watch::Receiver<u64>,
    over: bool,
}

impl Reading {
    /// Starts where the request says.
    #[must_use]
    pub fn new(ring: Arc<Ring>, node: Arc<str>, request: &GetFlowsRequest, selection: Selection) -> Self {
        let news = ring.watch();
        let (oldest, entries) = ring.snapshot();
        let end = oldest + u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let back = entries.len() - start(request, &selection, &entries);
        let next = end - u64::try_from(back).unwrap_or(0);
        let limited = !request.follow && request.number > 0;
        Self {
            mask: Mask::of(request),
            since: request.since,
            until: request.until,
            left: limited.then_some(request.number),
            end: (!request.follow).then_some(end),
            ring,
            node,
            selection,
            next,
            ready: VecDeque::new(),
            seen: None,
            missed: Missed::default(),
            news,
            over: false,
        }
    }

    /// The next response; none when the request is answered. Cancel safe.
    pub async fn next(&mut self) -> Option<GetFlowsResponse> {
        loop {
            if self.over {
                return self.tell_missed();
            }
            if self.missed.count > 0 && self.missed.told.is_none_or(|told| told.elapsed() >= TELL_LOST) {
                return self.tell_missed();
            }
            if let Some(entry) = self.ready.pop_front() {
                if let Some(response) = self.respond(&entry) {
                    return Some(response);
                }
                continue;
            }
            if self.take() || self.over {
                continue;
            }
            self.wait().await;
        }
    }

    /// Takes what is new in the ring. False if nothing is.
    fn take(&mut self) -> bool {
        self.news.mark_unchanged();
        let batch = self.ring.read(self.next, self.end.unwrap_or(u64::MAX), BATCH);
        self.next = batch.next;
        if batch.overwritten > 0 {
            self.missed.count += batch.overwritten;
            self.missed.first = self.missed.first.or(self.seen);
            self.missed.last = batch.entries.first().map(|entry| entry.time);
        }
        self.over = batch.entries.is_empty() && self.end.is_some_and(|end| self.next >= end);
        self.ready.extend(batch.entries);
        !self.ready.is_empty()
    }

    /// Waits for the ring, or until it is time to tell what was missed.
    async fn wait(&mut self) {
        let changed = self.news.changed();
        match self.missed.told.filter(|_| self.missed.count > 0) {
            None => self.over = changed.await.is_err(),
            Some(told) => match tokio::time::timeout_at(told + TELL_LOST, changed).await {
                Ok(changed) => self.over = changed.is_err(),
                Err(_due) => {}
            },
        }
    }

    fn respond(&mut self, entry: &Entry) -> Option<GetFlowsResponse> {
        self.seen = Some(entry.time);
        let flow = match &entry.content {
            Content::Lost(lost) => return Some(self.response(ResponseTypes::LostEvents(*lost), entry.time)),
            Content::Flow(flow) => flow,
        };
        if self.until.is_some_and(|until| compare(&entry.time, &until).is_gt()) {
            self.over = true;
            return None;
        }
        let early = self.since.is_some_and(|since| compare(&entry.time, &since).is_lt());
        if early || !self.selection.keeps(flow) {
            return None;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
            self.over = *left == 0;
        }
        let mut response = self.response(ResponseTypes::Flow(self.mask.apply(flow)), entry.time);
        response.node_name.clone_from(&flow.node_name);
        Some(response)
    }

    fn tell_missed(&mut self) -> Option<GetFlowsResponse> {
        let missed = std::mem::take(&mut self.missed);
        if missed.count == 0 {
            return None;
        }
        self.missed.told = Some(Instant::now());
        let lost = LostEvent {
            source: LostEventSource::HubbleRingBuffer.into(),
            num_events_lost: missed.count,
            cpu: None,
            first: missed.first,
            last: missed.last,
        };
        let now = std::time::SystemTime::now().into();
        Some(self.response(ResponseTypes::LostEvents(lost), now))
    }

    fn response(&self, content: ResponseTypes, time: Timestamp) -> GetFlowsResponse {
        GetFlowsResponse { node_name: self.node.to_string(), time: Some(time), response_types: Some(content) }
    }
}

/// Which of the entries, oldest first, is the first to look at. Only flows that are asked for count, as with Hubble: one
/// of another sort that is out of order ends nothing.
fn start(request: &GetFlowsRequest, selection: &Selection, entries: &[Arc<Entry>]) -> usize {
    let is_wanted = |entry: &Entry| entry.flow().is_some_and(|flow| selection.keeps(flow));
    if let Some(since) = &request.since {
        let early = |entry: &Arc<Entry>| compare(&entry.time, since).is_lt() && is_wanted(entry);
        return entries.iter().rposition(early).map_or(0, |at| at + 1);
    }
    if request.first || request.number == 0 && !request.follow {
        return 0;
    }
    let mut wanted = request.number;
    for (at, entry) in entries.iter().enumerate().rev() {
        if wanted == 0 {
            return at + 1;
        }
        wanted -= u64::from(is_wanted(entry));
    }
    if wanted == 0 && request.number == 0 { entries.len() } else { 0 }
}
