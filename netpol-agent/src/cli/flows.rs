//! Flags of `run` about flows: which are told of, and where they are served.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::observe::hubble::DEFAULT_CAPACITY;
use crate::observe::hubble::tls::TlsFiles;

/// Which flows are told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Told {
    /// Packets that are dropped.
    #[default]
    Drops,
    /// And new connections that a policy lets through.
    Verdicts,
    /// And those of pods that nothing isolates.
    All,
}

/// Flags about flows.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Flows")]
pub struct FlowArgs {
    /// Which flows are told of. New connections are told of as far as drops leave room: each pod may tell of so many
    /// flows a second.
    #[arg(long, value_enum, default_value_t)]
    pub flows: Told,

    /// Unix socket on which Hubble's clients and `netpol observe` ask for flows [default: hubble.sock beside --socket].
    #[arg(long, value_name = "PATH")]
    pub hubble_socket: Option<PathBuf>,

    /// Address on which Hubble's clients (relay, UI) ask for flows, e.g. 0.0.0.0:4244; none by default. Without
    /// --hubble-tls-client-ca everybody who reaches it may read every flow.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub hubble_address: Option<SocketAddr>,

    /// PEM file of the certificate for --hubble-address; read again when it changes, as are the other two.
    #[arg(long, value_name = "FILE", requires_all = ["hubble_address", "hubble_tls_key"])]
    pub hubble_tls_cert: Option<PathBuf>,

    /// PEM file of its key.
    #[arg(long, value_name = "FILE", requires = "hubble_tls_cert")]
    pub hubble_tls_key: Option<PathBuf>,

    /// PEM file of the authority that clients' certificates must be of.
    #[arg(long, value_name = "FILE", requires = "hubble_tls_cert")]
    pub hubble_tls_client_ca: Option<PathBuf>,

    /// Flows that are kept for observers.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY)]
    pub hubble_flows: usize,

    /// Namespace of the agents' own pods: where hubble-relay is told to find the other nodes.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", env = "POD_NAMESPACE")]
    pub agent_namespace: String,
}

impl FlowArgs {
    /// The socket for observers.
    #[must_use]
    pub fn socket(&self, admin: &Path) -> PathBuf {
        let beside = || match admin.file_stem().and_then(|stem| stem.to_str()) {
            Some("netpol") | None => admin.with_file_name("hubble.sock"),
            Some(other) => admin.with_file_name(format!("{other}-hubble.sock")),
        };
        self.hubble_socket.clone().unwrap_or_else(beside)
    }

    /// The files of TLS, if it is asked for.
    #[must_use]
    pub fn tls(&self) -> Option<TlsFiles> {
        let (certificate, key) = (self.hubble_tls_cert.clone()?, self.hubble_tls_key.clone()?);
        Some(TlsFiles { certificate, key, client_ca: self.hubble_tls_client_ca.clone() })
    }
}
