//! The archive: layers, configuration and manifest as an OCI image layout, in one tar.
//!
//! In: a layer and what the image says of itself. Out: bytes. The tar is an OCI layout (`oci-layout`, `index.json`,
//! `blobs/`) with docker's `manifest.json` beside it, which points at the same blobs: containerd, podman and new dockers
//! read the former, `docker load` before version 25 the latter. Must not read files or ask for the time.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layer::{self, Layer};
use super::reference::Reference;

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// A digest as OCI writes it: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest(String);

impl Digest {
    const ALGORITHM: &str = "sha256:";

    /// Of bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(format!("{}{}", Self::ALGORITHM, hex(&Sha256::digest(bytes))))
    }

    /// As OCI writes it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the blob lies in the layout.
    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.0.trim_start_matches(Self::ALGORITHM))
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Content that is found by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    media_type: &'static str,
    digest: Digest,
    bytes: Vec<u8>,
}

impl Blob {
    /// Of bytes.
    pub(crate) fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Digest::of(&bytes), bytes }
    }

    fn json(media_type: &'static str, value: &Value) -> Result<Self> {
        Ok(Self::new(media_type, serde_json::to_vec(value)?))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest.as_str(), "size": self.bytes.len()})
    }
}

/// What the image says of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// Its name.
    pub(crate) reference: Reference,
    /// As OCI names it: `amd64`, `arm64`.
    pub(crate) architecture: &'static str,
    /// When its sources were made, by RFC 3339.
    pub(crate) created: String,
    /// Labels and annotations.
    pub(crate) labels: Vec<(&'static str, String)>,
}

/// An archive and what it is known by.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    /// The file.
    pub(crate) bytes: Vec<u8>,
    /// Of the manifest: the image's digest in a registry.
    pub(crate) digest: Digest,
}

/// Packs an image.
///
/// # Errors
/// If a name does not fit into a tar.
pub(crate) fn pack(about: &About, layer: &Layer) -> Result<Archive> {
    let config = Blob::json(CONFIG_TYPE, &config(about, layer))?;
    let labels: Value = about.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.descriptor(),
        "layers": [layer.blob.descriptor()],
        "annotations": labels,
    });
    let manifest = Blob::json(MANIFEST_TYPE, &manifest)?;
    let docker = json!([{
        "Config": config.digest.path(),
        "RepoTags": [about.reference.short()],
        "Layers": [layer.blob.digest.path()],
    }]);
    let mut files = vec![
        ("oci-layout".to_owned(), serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?),
        ("index.json".to_owned(), serde_json::to_vec(&index(about, &manifest))?),
        ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
    ];
    let digest = manifest.digest.clone();
    files.extend([config, manifest, layer.blob.clone()].map(|blob| (blob.digest.path(), blob.bytes)));
    Ok(Archive { bytes: tar_of(files)?, digest })
}

fn config(about: &About, layer: &Layer) -> Value {
    let labels: Value = about.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "created": about.created,
        "architecture": about.architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/netpol-agent"],
            // So that `kubectl exec ... -- netpol status` finds it.
            "Env": ["PATH=/"],
            "User": "0:0",
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id.as_str()]},
        "history": [{"created": about.created, "created_by": "cargo xtask image"}],
    })
}

/// The layout's index. containerd finds the image's name in its own annotation, others the tag in OCI's.
fn index(about: &About, manifest: &Blob) -> Value {
    let mut entry = manifest.descriptor();
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("platform".to_owned(), json!({"architecture": about.architecture, "os": "linux"}));
        let names = json!({
            "io.containerd.image.name": about.reference.full(),
            "org.opencontainers.image.ref.name": about.reference.tag(),
        });
        entry.insert("annotations".to_owned(), names);
    }
    json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})
}

fn tar_of(files: Vec<(String, Vec<u8>)>) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["blobs/", "blobs/sha256/"] {
        layer::append(&mut tar, directory, (tar::EntryType::Directory, 0o755), &[])?;
    }
    for (path, bytes) in files {
        let file = (tar::EntryType::Regular, 0o644);
        layer::append(&mut tar, &path, file, &bytes).with_context(|| format!("cannot pack {path}"))?;
    }
    Ok(tar.into_inner()?)
}
