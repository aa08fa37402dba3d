//! One object got, and Events posted.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::Value;

use super::serve::{Answer, error, plain};
use super::store::Kind;
use super::{Shared, locked};

pub(super) fn get(shared: &Shared, kind: Kind, namespace: &str, name: &str) -> Answer {
    match locked(&shared.store).object(kind, namespace, name) {
        Some(text) => plain(StatusCode::OK, &serde_json::from_slice(&text).unwrap_or_default()),
        None => error(404, "NotFound", &format!("{} \"{name}\" not found", kind.plural())),
    }
}

pub(super) async fn post(shared: &Shared, request: Request<Incoming>) -> Answer {
    let Ok(body) = request.into_body().collect().await else { return error(400, "BadRequest", "no body") };
    match serde_json::from_slice::<Value>(&body.to_bytes()) {
        Ok(value) => {
            let answer = plain(StatusCode::CREATED, &value);
            locked(&shared.posted).push(value);
            answer
        }
        Err(wrong) => error(400, "BadRequest", &wrong.to_string()),
    }
}
