//! The end of an agent on a node that netpol is taken off: it removes everything and idles until its container is stopped,
//! as one that ended would be started again by the kubelet and begin anew.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::interval;

use crate::cleanup;
use crate::cli::CleanupArgs;
use crate::datapath::pins::PinDir;
use crate::observe::admin::{Asked, Call, Request};
use crate::observe::health::Vitals;

/// How often the health endpoint is told that all is well.
const BEAT: Duration = Duration::from_secs(5);

/// Answers whoever asks later.
const RETIRED: &str = "this agent has retired: everything was removed from the node; delete its pod, or restart it to begin \
                       anew";

/// Removes everything, and says so.
pub(super) fn retire(places: &CleanupArgs, answer: oneshot::Sender<Value>) -> Result<()> {
    let pins = PinDir::at(&places.bpffs)?;
    tell(answer, removed(places, &pins));
    Ok(())
}

/// What came of removing everything; twice is as good as once, and another try may succeed where one failed.
fn removed(places: &CleanupArgs, pins: &PinDir) -> Value {
    match cleanup::retire(places, pins) {
        Ok(()) => json!({ "retired": true }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn tell(answer: oneshot::Sender<Value>, value: Value) {
    if answer.send(value).is_err() {
        tracing::debug!("a client did not wait for its answer");
    }
}

/// Answers that there is nothing to ask for any more, for ever.
pub(super) async fn idle(places: &CleanupArgs, calls: &mut mpsc::Receiver<Call>, vitals: &watch::Sender<Vitals>) {
    let mut beat = interval(BEAT);
    loop {
        tokio::select! {
            Some(call) = calls.recv() => {
                let value = match (call.asked, PinDir::at(&places.bpffs)) {
                    (Asked::Operator(Request::Retire), Ok(pins)) => removed(places, &pins),
                    (Asked::Operator(Request::Retire), Err(error)) => json!({ "error": error.to_string() }),
                    (Asked::Operator(_) | Asked::Plugin(_), _) => json!({ "error": RETIRED }),
                };
                tell(call.answer, value);
            }
            _ = beat.tick() => vitals.send_modify(|vitals| vitals.beat = Some(Instant::now())),
        }
    }
}
