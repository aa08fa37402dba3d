//! `/livez`, `/readyz` and `/startupz` for the kubelet: is the loop alive, and is what this node should enforce in force.
//!
//! In: [`Vitals`], which the pipeline puts into a watch channel. Out: 200 or 503 and a line for each check, as Kubernetes'
//! own components answer. Serves from tasks of its own, so that it answers when the pipeline does not; asks nobody.
//!
//! An API server that is away makes nobody unready: enforcement goes on with what is known, and no restart would help.
//! The text says what is stale.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::sync::watch;

use super::answer::{KindReport, SourceReport};
use super::http::{Page, Server};

/// The loop turns at least every second; one that did not for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// What the checks go by.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    /// When the loop last turned; none before its first turn.
    pub beat: Option<Instant>,
    /// The source was read whole, and all of it applied, at least once.
    pub applied_once: bool,
    /// Why the last apply left something undone, if it did.
    pub behind: Option<String>,
    /// Where the objects come from.
    pub source: SourceReport,
}

/// Where to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthAddress {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

/// Why the endpoints cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// No listening there.
    #[error("cannot listen on --health-address {address}: {source}; give another address, or `off`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The endpoints, served; gone when this is dropped.
#[derive(Debug)]
pub struct HealthServer(Server);

impl FromStr for HealthAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let refused = |_not_an_address| "give ADDRESS:PORT, as 127.0.0.1:9879 or [::1]:9879, or `off`".to_owned();
        text.parse().map(Self::At).map_err(refused)
    }
}

impl HealthServer {
    /// Serves at `address`; none if that is off.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub async fn start(address: HealthAddress, vitals: watch::Receiver<Vitals>) -> Result<Option<Self>, HealthError> {
        let HealthAddress::At(address) = address else { return Ok(None) };
        let bind = |source| HealthError::Bind { address, source };
        let answer = move |path: String| {
            let page = page(&path, &vitals.borrow());
            async move { page }
        };
        let hint = "not found; there are /livez, /readyz and /startupz\n";
        Ok(Some(Self(Server::start(address, hint, answer).await.map_err(bind)?)))
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

fn page(path: &str, vitals: &Vitals) -> Option<Page> {
    let report = probe(path, vitals, Instant::now())?;
    let status = if report.passes() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Some(Page { status, content_type: "text/plain; charset=utf-8", text: report.text(path) })
}

/// One check: passed or not, with more to say or not.
type Check = (&'static str, Result<Option<String>, String>);

struct Report(Vec<Check>);

impl Report {
    fn passes(&self) -> bool {
        self.0.iter().all(|(_, outcome)| outcome.is_ok())
    }

    fn text(&self, path: &str) -> String {
        let mut text = String::new();
        for (name, outcome) in &self.0 {
            let written = match outcome {
                Ok(None) => writeln!(text, "[+]{name} ok"),
                Ok(Some(more)) => writeln!(text, "[+]{name} ok: {more}"),
                Err(reason) => writeln!(text, "[-]{name} failed: {reason}"),
            };
            debug_assert!(written.is_ok(), "a String takes everything");
        }
        let name = path.trim_start_matches('/');
        text + &format!("{name} check {}\n", if self.passes() { "passed" } else { "failed" })
    }
}

fn probe(path: &str, vitals: &Vitals, now: Instant) -> Option<Report> {
    let checks = match path {
        "/livez" => vec![("loop", turns(vitals, now))],
        "/readyz" => vec![("loop", turns(vitals, now)), ("source", source(vitals)), ("apply", apply(vitals))],
        "/startupz" => vec![("source", source(vitals)), ("apply", apply(vitals))],
        _ => return None,
    };
    Some(Report(checks))
}

/// A start may take its time (the verifier's): the startup probe is for that.
fn turns(vitals: &Vitals, now: Instant) -> Result<Option<String>, String> {
    let Some(beat) = vitals.beat else { return Ok(Some("starting".to_owned())) };
    let still = now.saturating_duration_since(beat);
    if still > STUCK { Err(format!("it has not turned for {} s", still.as_secs())) } else { Ok(None) }
}

fn source(vitals: &Vitals) -> Result<Option<String>, String> {
    let source = &vitals.source;
    if !source.synced {
        let missing: Vec<String> = source.kinds.iter().filter(|kind| !kind.synced).map(missing).collect();
        let what = if missing.is_empty() { "nothing was read yet".to_owned() } else { missing.join(", ") };
        return Err(what + "; what was enforced before stays so");
    }
    let stale: Vec<String> = source.kinds.iter().filter_map(stale).collect();
    let more = || format!("stale: {}; enforcement goes on with what is known", stale.join(", "));
    Ok((!stale.is_empty()).then(more))
}

fn missing(kind: &KindReport) -> String {
    let why = kind.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    format!("{} not listed yet{why}", kind.kind)
}

fn stale(kind: &KindReport) -> Option<String> {
    let seconds = kind.stale_for_seconds?;
    let why = kind.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    Some(format!("{} for {seconds} s{why}", kind.kind))
}

fn apply(vitals: &Vitals) -> Result<Option<String>, String> {
    let behind = vitals.behind.clone();
    if vitals.applied_once {
        return Ok(behind.map(|why| format!("behind, tried again every second: {why}")));
    }
    Err(behind.unwrap_or_else(|| "nothing was applied yet".to_owned()))
}

#[cfg(test)]
mod tests;
