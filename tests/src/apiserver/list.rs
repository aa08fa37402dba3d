//! Lists: whole or page by page.
//!
//! All pages of a list show one state, in kube-apiserver. This one keeps no old states, so it says that a token is expired
//! as soon as the kind has changed since the first page; clients have to cope with that from the real one too.

#![expect(clippy::indexing_slicing, reason = "of JSON that is built here")]

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use serde_json::{Value, json};

use super::pipe::Pipe;
use super::request::Options;
use super::serve::{Answer, error};
use super::store::{Key, Kind, Store};
use super::{Shared, locked};

pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains("gzip"))
}

pub(super) fn answer(
    shared: &Arc<Shared>,
    (kind, namespace): (Kind, Option<&str>),
    options: &Options,
    takes_gzip: bool,
) -> Answer {
    if let Some(message) = options.invalid(true) {
        return error(422, "Invalid", &message);
    }
    let expired = locked(&shared.faults).expired_continue;
    let text = match page(&locked(&shared.store), (kind, namespace), options, expired) {
        Ok(text) => text,
        Err(answer) => return *answer,
    };
    let (spoil, gzip_from) = {
        let mut faults = locked(&shared.faults);
        let spoil = if faults.spoil.is_empty() { faults.spoil_all } else { Some(faults.spoil.remove(0)) };
        (spoil, faults.gzip_from)
    };
    let compressed = takes_gzip && text.len() >= gzip_from;
    let text = if compressed { gzip(&text) } else { text };
    let (mut pipe, body) = Pipe::new(spoil, shared.breaks.subscribe());
    tokio::spawn(async move {
        for piece in text.chunks(64 << 10) {
            if pipe.send(piece).await.is_err() {
                return;
            }
        }
    });
    let mut answer = Response::new(body.boxed());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
    // Writing to memory does not fail.
    drop(encoder.write_all(text));
    encoder.finish().unwrap_or_default()
}

fn page(
    store: &Store,
    (kind, namespace): (Kind, Option<&str>),
    options: &Options,
    expired: bool,
) -> Result<Vec<u8>, Box<Answer>> {
    let now = store.version();
    let asked = options.version().map_err(|message| Box::new(error(400, "BadRequest", &message)))?;
    if asked > now {
        return Err(Box::new(error(504, "Timeout", &format!("Too large resource version: {asked}, current: {now}"))));
    }
    let exact =
        options.version_match == "Exact" || (asked > 0 && options.limit > 0 && options.version_match.is_empty());
    if exact && asked < now && store.changed_since(kind, asked) {
        return Err(Box::new(error(
            410,
            "Expired",
            &format!("The resourceVersion for the provided list is too old: {asked}"),
        )));
    }
    let (version, after) = match read_token(&options.continue_token) {
        _ if options.continue_token.is_empty() => (now, None),
        Some((version, after)) if !expired && !store.changed_since(kind, version) => (version, Some(after)),
        Some(_) => return Err(Box::new(too_old())),
        None => return Err(Box::new(error(400, "BadRequest", "continue key is not valid"))),
    };
    // From its cache, at version 0, the server gives everything at once.
    let limited = options.limit > 0 && options.resource_version != "0";
    let most = if limited { options.limit } else { usize::MAX };
    let (objects, more) = store.page(kind, namespace, (after.as_ref(), most));
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some((last, _)) = objects.last().filter(|_| more > 0) {
        metadata["continue"] = token(version, last).into();
        metadata["remainingItemCount"] = more.into();
    }
    let mut text = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        kind.name(),
        kind.api_version()
    )
    .into_bytes();
    for (at, (_, object)) in objects.iter().enumerate() {
        if at > 0 {
            text.push(b',');
        }
        text.extend_from_slice(object);
    }
    text.extend_from_slice(b"]}\n");
    Ok(text)
}

fn too_old() -> Answer {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                   list without the continue parameter, or use the continue token in this response to retrieve the \
                   remainder of the results. Continuing with the provided token results in an inconsistent list - \
                   objects that were created, modified, or deleted between the time the first chunk was returned and now \
                   may show up in the list.";
    error(410, "Expired", message)
}

/// An opaque text to everybody else.
fn token(version: u64, last: &Key) -> String {
    json!([version, last.0, last.1]).to_string().bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let digits: Vec<char> = token.chars().collect();
    let bytes: Option<Vec<u8>> =
        digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok()).collect();
    let value: Value = serde_json::from_slice(&bytes?).ok()?;
    Some((value[0].as_u64()?, (value[1].as_str()?.to_owned(), value[2].as_str()?.to_owned())))
}
