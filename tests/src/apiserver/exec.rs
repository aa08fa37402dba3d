//! Commands run in pods, over WebSocket as kube-apiserver speaks it (v5.channel.k8s.io, v4 for older clients): each binary
//! message begins with the number of its channel. What a command prints is a test's to say.

use futures_util::SinkExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::serve::{Answer, error};
use super::{Shared, locked};

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// The kubelet sends what it reads in pieces.
const PIECE: usize = 4096;
/// Protocols that are spoken, the best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// What a command printed and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Executed {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

/// Says what a command does: the pod's name and the command's words.
pub(super) type Executor = Box<dyn Fn(&str, &[String]) -> Executed + Send>;

pub(super) fn answer(shared: &Shared, mut request: Request<Incoming>, pod: &str, command: &[String]) -> Answer {
    let Some(executed) = locked(&shared.executor).as_ref().map(|execute| execute(pod, command)) else {
        return error(404, "NotFound", &format!("pods \"{pod}\" not found"));
    };
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return error(400, "BadRequest", "Upgrade request required");
    };
    let offered =
        request.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_offered = |protocol: &&str| offered.split(',').any(|one| one.trim() == *protocol);
    let Some(protocol) = PROTOCOLS.into_iter().find(is_offered) else {
        return error(403, "Forbidden", "unable to negotiate a protocol");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        // A client that went away is judged by the test.
        drop(converse(socket, &executed).await);
    });
    let mut answer = Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer
}

async fn converse(
    mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    executed: &Executed,
) -> Result<(), Error> {
    for (channel, text) in [(STDOUT, &executed.stdout), (STDERR, &executed.stderr)] {
        for piece in text.as_bytes().chunks(PIECE) {
            socket.send(message(channel, piece)).await?;
        }
    }
    socket.send(message(ERROR, status(executed.code).to_string().as_bytes())).await?;
    socket.close(None).await
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    Message::binary([&[channel], bytes].concat())
}

fn status(code: i32) -> Value {
    match code {
        0 => json!({ "metadata": {}, "status": "Success" }),
        code => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
    }
}
