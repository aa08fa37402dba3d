//! TLS for [`listen`](super::listen): connections in, handshakes done, TLS 1.3 as Hubble's own servers have it.
//!
//! Certificates are rotated under a running agent: the files are looked at for each connection, and read when they have
//! changed. New ones that cannot be used (half of them is written, say) leave those of before in use.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// Handshakes under way at a time, and how long one may take.
const HANDSHAKES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// Certificate, key and whose clients are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file of the certificate (and those between it and the root).
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// PEM file of the authority that clients must have theirs of; none lets everybody in.
    pub client_ca: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not there, or no PEM.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// Certificate and key.
    #[error("cannot use certificate {} with its key", path.display())]
    Certificate {
        /// Of the certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The clients' authority.
    #[error("cannot use {} as the clients' authority", path.display())]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

/// What tells a file from the one that was there before.
type Seen = Vec<Option<(u64, i64, i64, u64)>>;

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    seen: Seen,
}

/// The files, and what they said last.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If they cannot be used.
    pub(super) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let seen = files.seen();
        let loaded = Loaded { config: files.config()?, seen };
        Ok(Self { files: files.clone(), loaded: Mutex::new(loaded) })
    }

    /// As the files are now, if they can be used.
    fn current(&self) -> Arc<ServerConfig> {
        let seen = self.files.seen();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.seen != seen {
            match self.files.config() {
                Ok(config) => {
                    tracing::info!(path = %self.files.certificate.display(), "the certificate for flows was read again");
                    loaded.config = config;
                }
                Err(error) => {
                    let error = crate::problem::chain(&error);
                    tracing::error!(%error, "the new certificate for flows cannot be used; the one before stays in use");
                }
            }
            loaded.seen = seen;
        }
        loaded.config.clone()
    }
}

impl TlsFiles {
    fn seen(&self) -> Seen {
        let of = |path: &PathBuf| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
        };
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(of).collect()
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let unusable = |source| TlsError::Certificate { path: self.certificate.clone(), source };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?;
        let builder = match &self.client_ca {
            Some(path) => builder.with_client_cert_verifier(verifier(path, provider)?),
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| TlsError::File { path: self.key.clone(), source })?;
        let mut config = builder.with_single_cert(certificates(&self.certificate)?, key).map_err(unusable)?;
        // What is not offered, clients written in Go do not talk to.
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Certificate { path: path.to_owned(), source })?;
    }
    WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .map_err(|source| TlsError::Authority { path: path.to_owned(), source })
}

/// All that are in the file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() { Err(failed(pem::Error::NoItemsFound)) } else { Ok(all) }
}

/// Connections whose handshake is done, until the stream is dropped.
pub(super) fn accept(listener: TcpListener, tls: Tls) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection");
                    // Out of file descriptors, as a rule: at once it would be so again.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, ready) = (TlsAcceptor::from(tls.current()), ready.clone());
            tokio::spawn(async move {
                let handshake = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await;
                drop(place);
                match handshake {
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%client, %error, "a client for flows was refused"),
                    Err(_elapsed) => tracing::debug!(%client, "a client for flows never said who it is"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}
