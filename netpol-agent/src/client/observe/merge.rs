//! Answers of many nodes, each in order of time -> one stream in order of time. What nodes say of themselves comes at once.
//!
//! What ends is merged strictly ([`Merge`]); what is followed is put in order within a moment ([`Window`]), as hubble-relay
//! does: who follows wants it soon.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::observe::hubble::proto::observer::GetFlowsResponse;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use crate::observe::hubble::reading::compare;

/// How long something waits for what is older.
const WINDOW: Duration = Duration::from_millis(100);
/// The same where all nodes first send what they have; they take a while to begin.
const FIRST_WINDOW: Duration = Duration::from_millis(500);
/// Most that wait.
const MOST: usize = 4096;

/// Streams that end.
#[derive(Debug)]
pub(super) struct Merge(Vec<Stream>);

#[derive(Debug)]
struct Stream {
    queue: mpsc::Receiver<GetFlowsResponse>,
    head: Option<GetFlowsResponse>,
    over: bool,
}

impl Merge {
    /// Of these queues.
    pub(super) fn new(queues: Vec<mpsc::Receiver<GetFlowsResponse>>) -> Self {
        Self(queues.into_iter().map(|queue| Stream { queue, head: None, over: false }).collect())
    }

    /// The earliest, once every stream has something or has ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<GetFlowsResponse> {
        for stream in &mut self.0 {
            if stream.head.is_none() && !stream.over {
                stream.head = stream.queue.recv().await;
                stream.over = stream.head.is_none();
            }
            if stream.head.as_ref().is_some_and(is_said_of_a_node) {
                return stream.head.take();
            }
        }
        let time = |stream: &Stream| stream.head.as_ref().map(|head| head.time.unwrap_or_default());
        let heads = self.0.iter().enumerate().filter_map(|(at, stream)| Some((at, time(stream)?)));
        let (earliest, _) = heads.min_by(|(_, one), (_, other)| compare(one, other))?;
        self.0.get_mut(earliest)?.head.take()
    }
}

/// A stream that is followed.
#[derive(Debug)]
pub(super) struct Window {
    queue: mpsc::Receiver<GetFlowsResponse>,
    held: Vec<GetFlowsResponse>,
    ready: VecDeque<GetFlowsResponse>,
    length: Duration,
    due: Option<Instant>,
}

impl Window {
    /// Of this queue; `has_past` if the first that come are of the past.
    pub(super) const fn new(queue: mpsc::Receiver<GetFlowsResponse>, has_past: bool) -> Self {
        let length = if has_past { FIRST_WINDOW } else { WINDOW };
        Self { queue, held: Vec::new(), ready: VecDeque::new(), length, due: None }
    }

    /// The next. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<GetFlowsResponse> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            let more = match self.due {
                None => Ok(Some(self.queue.recv().await?)),
                Some(due) => tokio::time::timeout_at(due, self.queue.recv()).await,
            };
            match more {
                Ok(Some(response)) if is_said_of_a_node(&response) => return Some(response),
                Ok(Some(response)) => {
                    self.due.get_or_insert_with(|| Instant::now() + self.length);
                    self.held.push(response);
                    if self.held.len() >= MOST {
                        self.release();
                    }
                }
                Ok(None) | Err(_) => self.release(),
            }
        }
    }

    fn release(&mut self) {
        self.due = None;
        self.length = WINDOW;
        self.held.sort_by(|one, other| compare(&one.time.unwrap_or_default(), &other.time.unwrap_or_default()));
        self.ready.extend(self.held.drain(..));
    }
}

const fn is_said_of_a_node(response: &GetFlowsResponse) -> bool {
    matches!(response.response_types, Some(ResponseTypes::NodeStatus(_)))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::observe::hubble::proto::flow::Flow;
    use crate::observe::hubble::proto::relay::NodeStatusEvent;

    fn at(seconds: i64) -> GetFlowsResponse {
        GetFlowsResponse {
            time: Some(Timestamp { seconds, nanos: 0 }),
            response_types: Some(ResponseTypes::Flow(Flow::default())),
            ..GetFlowsResponse::default()
        }
    }

    fn said() -> GetFlowsResponse {
        GetFlowsResponse { response_types: Some(ResponseTypes::NodeStatus(NodeStatusEvent::default())), ..at(99) }
    }

    async fn queue(responses: &[GetFlowsResponse]) -> mpsc::Receiver<GetFlowsResponse> {
        let (sender, queue) = mpsc::channel(16);
        for response in responses {
            sender.send(response.clone()).await.unwrap();
        }
        queue
    }

    fn seconds(response: &GetFlowsResponse) -> i64 {
        response.time.unwrap().seconds
    }

    #[tokio::test]
    async fn streams_that_end_are_merged_by_time_and_words_about_nodes_come_first() {
        let queues =
            vec![queue(&[at(1), at(4), at(5)]).await, queue(&[said(), at(2), at(3), at(6)]).await, queue(&[]).await];
        let mut merge = Merge::new(queues);
        let mut times = Vec::new();
        while let Some(response) = merge.next().await {
            times.push(seconds(&response));
        }
        assert_eq!(times, [99, 1, 2, 3, 4, 5, 6]);
    }

    #[tokio::test]
    async fn what_is_followed_is_in_order_within_a_moment() {
        let (sender, queue) = mpsc::channel(16);
        let mut window = Window::new(queue, true);
        for time in [3, 1, 2] {
            sender.send(at(time)).await.unwrap();
        }
        sender.send(said()).await.unwrap();
        let mut times = Vec::new();
        for _ in 0..4 {
            times.push(seconds(&window.next().await.unwrap()));
        }
        // Later, an older one is not waited for.
        sender.send(at(0)).await.unwrap();
        times.push(seconds(&window.next().await.unwrap()));
        assert_eq!(times, [99, 1, 2, 3, 0]);
        drop(sender);
        assert!(window.next().await.is_none());
    }
}
