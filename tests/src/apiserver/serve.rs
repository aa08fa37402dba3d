//! The HTTP server: who may ask, and who answers.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::request::{Asked, Options};
use super::store::{Kind, status};
use super::{Shared, list, locked, single, watch};

/// A body of any sort.
pub(super) type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// Serves until `stopped`.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        if shared.away.load(Ordering::SeqCst) {
            continue;
        }
        drop(stream.set_nodelay(true));
        let mut breaks = shared.breaks.subscribe();
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Idle connections break as well, once what is being sent has had its chance to break off in the middle.
            let broken = async {
                drop(breaks.changed().await);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            };
            tokio::select! {
                ended = connection.with_upgrades() => drop(ended),
                () = broken => {}
            }
        });
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let asked = Asked::read(request.method(), request.uri());
    let line = format!("{} {}", request.method(), request.uri());
    locked(&shared.requests).push(line);
    if let Some(refused) = refused(shared, &request, &asked) {
        return refused;
    }
    match asked {
        Asked::Collection { kind, namespace, options } if options.watch => {
            watch::answer(shared, kind, namespace, options)
        }
        Asked::Collection { kind, namespace, options } => {
            let gzip = list::takes_gzip(request.headers());
            list::answer(shared, (kind, namespace.as_deref()), &options, gzip)
        }
        Asked::Single { kind, namespace, name } => single::get(shared, kind, &namespace, &name),
        Asked::Event => single::post(shared, request).await,
        Asked::Version => plain(StatusCode::OK, &json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.0" })),
        Asked::Nothing => error(404, "NotFound", "the server could not find the requested resource"),
    }
}

/// Refused by a fault, for want of a token, or for want of a right.
fn refused(shared: &Shared, request: &Request<Incoming>, asked: &Asked) -> Option<Answer> {
    let mut faults = locked(&shared.faults);
    if !faults.refuse.is_empty() {
        let refusal = faults.refuse.remove(0);
        let mut refused = error(refusal.status, "InternalError", "refused on purpose");
        if let Some(seconds) = refusal.retry_after {
            refused.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        return Some(refused);
    }
    if let Some(token) = &faults.token {
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if given.strip_prefix("Bearer ").map(str::trim) != Some(token) {
            return Some(error(401, "Unauthorized", "Unauthorized"));
        }
    }
    let (kind, verb) = match asked {
        Asked::Collection { kind, options: Options { watch: true, .. }, .. } => (kind, "watch"),
        Asked::Collection { kind, .. } => (kind, "list"),
        Asked::Single { kind, .. } => (kind, "get"),
        Asked::Event | Asked::Version | Asked::Nothing => return None,
    };
    faults.forbidden.contains(kind.plural()).then(|| forbidden(*kind, verb))
}

fn forbidden(kind: Kind, verb: &str) -> Answer {
    let group = kind.api_version().split_once('/').map_or("", |(group, _)| group);
    let message = format!(
        "{} is forbidden: User \"system:serviceaccount:kube-system:netpol\" cannot {verb} resource \"{}\" in API group \
         \"{group}\" at the cluster scope",
        kind.plural(),
        kind.plural()
    );
    error(403, "Forbidden", &message)
}

/// An answer in one piece.
pub(super) fn plain(code: StatusCode, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    answer
}

/// An error as a Status.
pub(super) fn error(code: u16, reason: &str, message: &str) -> Answer {
    let http = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    plain(http, &status(code, reason, message))
}
