//! `/metrics` over HTTP.

use std::io;
use std::net::SocketAddr;

use hyper::StatusCode;

use super::Metrics;
use crate::observe::health::HealthAddress;
use crate::observe::http::{Page, Server};

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// No listening there.
    #[error("cannot listen on --metrics-address {address}: {source}; give another address, or `off`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Metrics, served; gone when this is dropped.
#[derive(Debug)]
pub struct MetricsServer(Server);

impl MetricsServer {
    /// Serves at `address`; none if that is off.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub async fn start(address: HealthAddress, metrics: Metrics) -> Result<Option<Self>, MetricsError> {
        let HealthAddress::At(address) = address else { return Ok(None) };
        let answer = move |path: String| {
            let metrics = metrics.clone();
            async move { if path == "/metrics" { Some(page(metrics).await) } else { None } }
        };
        let server = Server::start(address, "not found; there is /metrics\n", answer).await;
        Ok(Some(Self(server.map_err(|source| MetricsError::Bind { address, source })?)))
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

/// Reading the maps takes some milliseconds.
async fn page(metrics: Metrics) -> Page {
    match tokio::task::spawn_blocking(move || metrics.scrape()).await {
        Ok(Ok(text)) => Page {
            status: StatusCode::OK,
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        },
        Ok(Err(_)) | Err(_) => Page {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            content_type: "text/plain; charset=utf-8",
            text: "the metrics cannot be written; the agent's log says more\n".to_owned(),
        },
    }
}
