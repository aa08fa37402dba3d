//! A small HTTP server for pages of text: health checks and metrics. In: paths. Out: pages that somebody makes.
//!
//! One request a connection, so many clients at a time, each with little patience: nobody can hold it up, and it serves from
//! tasks of its own.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// How long a client may take to send its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that are served at a time; more wait.
const CLIENTS: usize = 32;

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

/// A server; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves the pages that `answer` makes of paths, if it makes one; else `hint` says what there is.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub(super) async fn start<A, F>(address: SocketAddr, hint: &'static str, answer: A) -> io::Result<Self>
    where
        A: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Option<Page>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(accept(listener, hint, answer)) })
    }

    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept<A, F>(listener: TcpListener, hint: &'static str, answer: A)
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Page>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    converse(stream, hint, answer).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept an HTTP client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request a connection: the kubelet makes no more, and a scraper comes seldom.
async fn converse<A, F>(stream: TcpStream, hint: &'static str, answer: A)
where
    A: Fn(String) -> F,
    F: Future<Output = Option<Page>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let page = answer(request.uri().path().to_owned());
        let method = request.method().clone();
        async move { Ok::<_, Infallible>(respond(&method, page.await, hint)) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    let served = tokio::time::timeout(2 * PATIENCE, http.serve_connection(TokioIo::new(stream), service)).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(%error, "an HTTP client went away");
    }
}

fn respond(method: &Method, page: Option<Page>, hint: &'static str) -> Response<Full<Bytes>> {
    let plain = |status, text: &str| Page { status, content_type: "text/plain; charset=utf-8", text: text.to_owned() };
    let page = match (page, method) {
        (None, _) => plain(StatusCode::NOT_FOUND, hint),
        (Some(page), &Method::GET | &Method::HEAD) => page,
        (Some(_), _) => plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(page.text)));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    if page.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
