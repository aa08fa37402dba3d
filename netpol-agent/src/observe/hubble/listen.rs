//! Where the API is served: a unix socket for this node's root, and TCP if asked for, with TLS and client certificates.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::Hub;
use super::peers::Address;
use super::proto::DESCRIPTORS;
use super::proto::observer::observer_server::ObserverServer;
use super::proto::peer::peer_server::PeerServer;
use super::service::Services;
use super::tls::{self, Tls, TlsError, TlsFiles};
use crate::socket::{self, SocketError};

/// The service that `hubble status` asks the health of.
const HEALTH_NAME: &str = "hubble.server.Observer";
/// A client that does not answer a ping for so long is gone.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that one connection may have under way.
const STREAMS: u32 = 64;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket.
    #[error("cannot make the socket")]
    Socket(#[source] SocketError),
    /// The address.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificate, key or authority.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The descriptors that the build made.
    #[error("cannot serve reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Served until this is dropped.
#[derive(Debug)]
pub struct Served {
    task: JoinHandle<()>,
    socket: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl Served {
    /// The address, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.socket
            && let Err(error) = socket::remove(path)
        {
            tracing::debug!(%error, "the socket stays");
        }
    }
}

/// Serves on a unix socket that only its owner may use, in place of one that nobody serves any more.
///
/// # Errors
/// If the socket cannot be made there.
pub fn on_socket(path: &Path, hub: Arc<Hub>, address: Address) -> Result<Served, ListenError> {
    let router = router(Server::builder(), hub, address)?;
    let bound = socket::bind(path).map_err(ListenError::Socket)?;
    let task = tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming(UnixListenerStream::new(bound)).await {
            tracing::error!(%error, "flows are served on the unix socket no more");
        }
    });
    Ok(Served { task, socket: Some(path.to_owned()), address: None })
}

/// Serves on TCP.
///
/// # Errors
/// If the address is taken, or the certificate cannot be used.
pub async fn on_address(address: SocketAddr, tls: Option<&TlsFiles>, hub: Arc<Hub>) -> Result<Served, ListenError> {
    let tls = tls.map(Tls::load).transpose()?;
    let failed = |source| ListenError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let router = router(Server::builder(), hub, Address { port: bound.port(), tls: tls.is_some() })?;
    let task = tokio::spawn(async move {
        let served = match tls {
            Some(tls) => router.serve_with_incoming(tls::accept(listener, tls)).await,
            None => router.serve_with_incoming(TcpListenerStream::new(listener)).await,
        };
        if let Err(error) = served {
            tracing::error!(%error, "flows are served on TCP no more");
        }
    });
    Ok(Served { task, socket: None, address: Some(bound) })
}

/// All services, on a server.
fn router(server: Server, hub: Arc<Hub>, address: Address) -> Result<Router, ListenError> {
    let services = Services { hub, address };
    let (health, health_server) = tonic_health::server::health_reporter();
    tokio::spawn(async move { health.set_service_status(HEALTH_NAME, tonic_health::ServingStatus::Serving).await });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(server
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(STREAMS)
        .add_service(ObserverServer::new(services.clone()))
        .add_service(PeerServer::new(services))
        .add_service(health_server)
        .add_service(reflection().build_v1().map_err(ListenError::Reflection)?)
        .add_service(reflection().build_v1alpha().map_err(ListenError::Reflection)?))
}
