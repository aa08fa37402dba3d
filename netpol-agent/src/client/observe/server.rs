//! One server: its address, TLS, and the stream of what it answers.

use std::fs;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::service_fn;

use super::ObserveError;
use super::flags::Flags;
use crate::observe::hubble::proto::observer::observer_client::ObserverClient;
use crate::observe::hubble::proto::observer::{GetFlowsRequest, GetFlowsResponse};

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Socket(PathBuf),
    /// Host and port.
    Host {
        /// `host:port`.
        authority: String,
        /// TLS.
        tls: bool,
    },
}

impl Address {
    /// `unix:///path`, `host:port` or `tls://host:port`.
    #[must_use]
    pub fn parse(text: &str, tls: bool) -> Self {
        match (text.strip_prefix("unix://"), text.strip_prefix("tls://")) {
            (Some(path), _) => Self::Socket(path.into()),
            (None, Some(authority)) => Self::Host { authority: authority.to_owned(), tls: true },
            (None, None) => Self::Host { authority: text.to_owned(), tls },
        }
    }
}

/// Asks a server.
///
/// # Errors
/// If it cannot be reached, or refuses.
pub async fn ask(
    address: &Address,
    flags: &Flags,
    request: GetFlowsRequest,
) -> Result<Streaming<GetFlowsResponse>, ObserveError> {
    let channel = match address {
        Address::Socket(path) => socket(path).await?,
        Address::Host { authority, tls } => host(authority, *tls, flags).await?,
    };
    let answer = ObserverClient::new(channel)
        .get_flows(request)
        .await
        .map_err(|status| ObserveError::Status(Box::new(status)))?;
    Ok(answer.into_inner())
}

async fn socket(path: &Path) -> Result<Channel, ObserveError> {
    let failed = |error| ObserveError::Connect { server: format!("unix://{}", path.display()), error };
    // The address is not used, but there must be one.
    let endpoint = Endpoint::from_static("http://localhost");
    let socket = path.to_owned();
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    endpoint.connect_with_connector(service_fn(connect)).await.map_err(failed)
}

async fn host(authority: &str, tls: bool, flags: &Flags) -> Result<Channel, ObserveError> {
    let failed = |error| ObserveError::Connect { server: authority.to_owned(), error };
    let scheme = if tls { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{authority}")).map_err(failed)?;
    if tls {
        endpoint = endpoint.tls_config(tls_config(flags)?).map_err(failed)?;
    }
    endpoint.connect().await.map_err(failed)
}

fn tls_config(flags: &Flags) -> Result<ClientTlsConfig, ObserveError> {
    let read = |path: &PathBuf| fs::read(path).map_err(|source| ObserveError::File { path: path.clone(), source });
    let mut config = ClientTlsConfig::new();
    for path in &flags.tls_ca_cert_files {
        config = config.ca_certificate(Certificate::from_pem(read(path)?));
    }
    if let (Some(certificate), Some(key)) = (&flags.tls_client_cert_file, &flags.tls_client_key_file) {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(match &flags.tls_server_name {
        Some(name) => config.domain_name(name),
        None => config,
    })
}
