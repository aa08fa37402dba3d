//! Watches: what is there first if that is asked for, then what happens, with bookmarks in between.

#![expect(clippy::indexing_slicing, reason = "of JSON that is built here")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::pipe::{Over, Pipe};
use super::request::Options;
use super::serve::{Answer, error};
use super::store::{Kind, status};
use super::{Shared, locked};

/// How long kube-apiserver goes on at least if it is not told.
const UNTOLD: u64 = 1800;

pub(super) fn answer(shared: &Arc<Shared>, kind: Kind, namespace: Option<String>, mut options: Options) -> Answer {
    let faults = locked(&shared.faults).clone();
    if faults.ignore_streaming {
        (options.send_initial_events, options.version_match) = (None, String::new());
    }
    if let Some(message) = options.invalid(!faults.no_streaming) {
        return error(422, "Invalid", &message);
    }
    let version = match options.version() {
        Ok(version) => version,
        Err(message) => return error(400, "BadRequest", &message),
    };
    let now = locked(&shared.store).version();
    if options.send_initial_events == Some(true) && version > now {
        return error(504, "Timeout", &format!("Too large resource version: {version}, current: {now}"));
    }
    if faults.gone_as_status && version > 0 && locked(&shared.store).events(kind, None, version).is_err() {
        return error(410, "Expired", &format!("too old resource version: {version}"));
    }
    let spoil = {
        let mut faults = locked(&shared.faults);
        if faults.spoil.is_empty() { faults.spoil_all } else { Some(faults.spoil.remove(0)) }
    };
    let (pipe, body) = Pipe::new(spoil, shared.breaks.subscribe());
    let watch = Watch { shared: shared.clone(), kind, namespace, options, version, pipe };
    tokio::spawn(async move {
        watch.shared.watching.fetch_add(1, Ordering::SeqCst);
        let shared = watch.shared.clone();
        if let Err(Over) = watch.run().await {
            // Nobody listens any more.
        }
        shared.watching.fetch_sub(1, Ordering::SeqCst);
    });
    let mut answer = Response::new(body.boxed());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

struct Watch {
    shared: Arc<Shared>,
    kind: Kind,
    namespace: Option<String>,
    options: Options,
    version: u64,
    pipe: Pipe,
}

impl Watch {
    async fn run(mut self) -> Result<(), Over> {
        let deadline = Instant::now() + Duration::from_secs(self.options.timeout.unwrap_or(UNTOLD));
        // Before what is sent first is read, so that nothing happens unseen.
        let mut newest = self.shared.newest.subscribe();
        // At no version and at 0 a watch begins with what is there, asked for or not.
        if self.options.send_initial_events.unwrap_or(self.version == 0) {
            self.send_all().await?;
        } else if self.version == 0 {
            self.version = locked(&self.shared.store).version();
        }
        let every = locked(&self.shared.faults).bookmark_every;
        let mut bookmark = Instant::now() + every;
        loop {
            newest.mark_unchanged();
            let events = locked(&self.shared.store).events(self.kind, self.namespace.as_deref(), self.version);
            let events = match events {
                Ok(events) => events,
                Err(oldest) => {
                    let message = format!("too old resource version: {} ({oldest})", self.version);
                    return self.send("ERROR", status(410, "Expired", &message).to_string().as_bytes()).await;
                }
            };
            for event in events {
                self.misbehave().await?;
                self.send(event.event, &event.text).await?;
                self.version = event.version;
            }
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return Ok(()),
                changed = newest.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep_until(bookmark), if self.options.bookmarks => {
                    bookmark += every;
                    let now = locked(&self.shared.store).version();
                    // Only up to what was sent.
                    if locked(&self.shared.store).events(self.kind, None, self.version).is_ok_and(|left| left.is_empty()) {
                        self.version = now;
                    }
                    self.bookmark(false).await?;
                }
                broken = self.pipe.ended() => {
                    if broken {
                        let half = b"{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"ha";
                        self.pipe.send(half).await?;
                        return self.pipe.break_off().await;
                    }
                    return Err(Over);
                }
            }
        }
    }

    /// Whatever is there, as if it were new.
    async fn send_all(&mut self) -> Result<(), Over> {
        let (objects, now) = {
            let store = locked(&self.shared.store);
            (store.page(self.kind, self.namespace.as_deref(), (None, usize::MAX)).0, store.version())
        };
        for (_, text) in objects {
            self.send("ADDED", &text).await?;
        }
        self.version = now;
        if self.options.send_initial_events == Some(true) && self.options.bookmarks {
            self.bookmark(true).await?;
        }
        Ok(())
    }

    async fn misbehave(&mut self) -> Result<(), Over> {
        let (garbage, error) = {
            let mut faults = locked(&self.shared.faults);
            let garbage = faults.garbage > 0;
            faults.garbage = faults.garbage.saturating_sub(1);
            (garbage, if faults.errors.is_empty() { None } else { Some(faults.errors.remove(0)) })
        };
        if garbage {
            self.pipe.send(b"{\"type\":\"MODIFIED\",\"object\":{{{\n").await?;
        }
        if let Some(code) = error {
            let object = status(code, "InternalError", "an error on purpose").to_string();
            self.send("ERROR", object.as_bytes()).await?;
            return Err(Over);
        }
        Ok(())
    }

    async fn bookmark(&mut self, ends_initial: bool) -> Result<(), Over> {
        let mut metadata = json!({ "resourceVersion": self.version.to_string(), "creationTimestamp": Value::Null });
        if ends_initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mut object = json!({
            "kind": self.kind.name(),
            "apiVersion": self.kind.api_version(),
            "metadata": metadata,
        });
        if self.kind == Kind::Pod {
            (object["spec"], object["status"]) = (json!({ "containers": Value::Null }), json!({}));
        }
        self.send("BOOKMARK", object.to_string().as_bytes()).await
    }

    async fn send(&mut self, event: &str, object: &[u8]) -> Result<(), Over> {
        let mut line = format!("{{\"type\":\"{event}\",\"object\":").into_bytes();
        line.extend_from_slice(object);
        line.extend_from_slice(b"}\n");
        self.pipe.send(&line).await
    }
}
