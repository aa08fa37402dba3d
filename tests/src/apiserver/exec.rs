//! Commands run in pods, over WebSocket as kube-apiserver speaks it (v5.channel.k8s.io, v4 for older clients): each binary
//! message begins with the number of its channel. What a command prints is a test's to say, or a process's that runs here.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::serve::{Answer, error};
use super::{Shared, locked};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// Says that the channel named next has ended (v5).
const CLOSE: u8 = 255;
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

/// What a command in a pod does.
pub(super) enum Execution {
    /// This, at once.
    Done(Executed),
    /// What this process does.
    Process(Command),
}

/// Says what a command does: the pod's name and the command's words.
pub(super) type Executor = Box<dyn Fn(&str, &[String]) -> Execution + Send>;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

pub(super) fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>, pod: &str, command: &[String]) -> Answer {
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
    let shared = shared.clone();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        // A client that went away is judged by the test.
        match executed {
            Execution::Done(executed) => drop(converse(socket, &executed).await),
            Execution::Process(command) => {
                shared.processes.fetch_add(1, Ordering::SeqCst);
                drop(run(socket, command).await);
                shared.processes.fetch_sub(1, Ordering::SeqCst);
            }
        }
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

/// Runs a process until it ends. A client that goes away takes its standard input along, as with a container runtime, and
/// nothing else.
async fn run(mut socket: Socket, mut command: Command) -> anyhow::Result<()> {
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.kill_on_drop(true).spawn()?;
    if let Err(error) = pass_on(&mut socket, &mut child).await {
        drop(child.stdin.take());
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().await?;
        return Err(error);
    }
    let code = child.wait().await?.code().unwrap_or(1);
    socket.send(message(ERROR, status(code).to_string().as_bytes())).await?;
    Ok(socket.close(None).await?)
}

async fn pass_on(socket: &mut Socket, child: &mut Child) -> anyhow::Result<()> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (vec![0; PIECE], vec![0; PIECE]);
    while stdout.is_some() || stderr.is_some() {
        let (channel, bytes) = tokio::select! {
            length = read(stdout.as_mut(), &mut out) => match length? {
                0 => { stdout = None; continue }
                length => (STDOUT, out.get(..length).unwrap_or_default()),
            },
            length = read(stderr.as_mut(), &mut err) => match length? {
                0 => { stderr = None; continue }
                length => (STDERR, err.get(..length).unwrap_or_default()),
            },
            said = socket.next() => {
                let said = said.ok_or_else(|| anyhow::anyhow!("the client went away"))??;
                match said.into_data().as_ref() {
                    [STDIN, text @ ..] => if let Some(stdin) = child.stdin.as_mut() { stdin.write_all(text).await? },
                    [CLOSE, STDIN] => drop(child.stdin.take()),
                    _ => {}
                }
                continue;
            }
        };
        socket.send(message(channel, bytes)).await?;
    }
    Ok(())
}

async fn read(stream: Option<&mut (impl AsyncRead + Unpin)>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream {
        Some(stream) => stream.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn converse(mut socket: Socket, executed: &Executed) -> Result<(), Error> {
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
