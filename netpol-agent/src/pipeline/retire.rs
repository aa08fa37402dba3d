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
use crate::observe::admin::Call;
use crate::observe::health::Vitals;

/// How often the health endpoint is told that all is well.
const BEAT: Duration = Duration::from_secs(5);

/// Answers whoever asks later.
const RETIRED: &str = "this agent has retired: everything was removed from the node; delete its pod, or restart it to begin \
                       anew";

/// Removes everything, and says so.
pub(super) fn retire(places: &CleanupArgs, answer: oneshot::Sender<Value>) -> Result<()> {
    let pins = PinDir::at(&places.bpffs)?;
    let answered = match cleanup::retire(places, &pins) {
        Ok(()) => json!({ "retired": true }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    if answer.send(answered).is_err() {
        tracing::debug!("a client did not wait for its answer");
    }
    Ok(())
}

/// Answers that there is nothing to ask for any more, for ever.
pub(super) async fn idle(calls: &mut mpsc::Receiver<Call>, vitals: &watch::Sender<Vitals>) {
    let mut beat = interval(BEAT);
    loop {
        tokio::select! {
            Some(call) = calls.recv() => {
                let answered = json!({ "error": RETIRED });
                if call.answer.send(answered).is_err() {
                    tracing::debug!("a client did not wait for its answer");
                }
            }
            _ = beat.tick() => vitals.send_modify(|vitals| vitals.beat = Some(Instant::now())),
        }
    }
}
