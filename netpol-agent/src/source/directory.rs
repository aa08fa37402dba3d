//! A directory of manifests as the file system has it: which files count, their text, and a stamp that changes with them.
//!
//! All file access of the source is here. Files are named by symlinks in mounted ConfigMaps, so links are followed; what
//! begins with a dot (`..data`, editors' swap files) is not a manifest. A file that is gone by the time it is read is
//! simply not there.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::document::Format;

/// Largest file that is read.
pub(super) const MAX_BYTES: u64 = 4 << 20;
/// How often a file is read again that changes while it is read, and the pause before.
const READ_TRIES: usize = 4;
const READ_PAUSE: Duration = Duration::from_millis(10);

/// Why a file's text cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{size} bytes are more than the {MAX_BYTES} that a manifest may have; split the file")]
    TooLarge { size: u64 },
    #[error("not a regular file; remove or rename it")]
    NotRegular,
    #[error("not UTF-8 (byte {offset}); save it as UTF-8")]
    NotUtf8 { offset: usize },
    #[error("it changes while it is read; write elsewhere and rename it into place")]
    Changing,
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
}

/// How a file of this name is written, `None` if it is no manifest.
pub(super) fn format_of(name: &OsStr) -> Option<Format> {
    if name.as_bytes().starts_with(b".") {
        return None;
    }
    let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// Names of the manifests in `dir`, in byte order.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(OsString, Format)>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(format) = format_of(&name) {
            names.push((name, format));
        }
    }
    names.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(names)
}

/// Text of a file; `None` if it is not there, or is a link to nothing.
pub(super) fn read(path: &Path) -> Result<Option<String>, Unreadable> {
    for attempt in 0..READ_TRIES {
        if attempt > 0 {
            std::thread::sleep(READ_PAUSE);
        }
        match read_once(path) {
            Err(Unreadable::Changing) => {}
            Err(Unreadable::Io(error)) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
            Ok(text) => return Ok(Some(text)),
        }
    }
    Err(Unreadable::Changing)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::StaleNetworkFileHandle
    )
}

fn read_once(path: &Path) -> Result<String, Unreadable> {
    // Opening a FIFO for reading would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(Unreadable::Io)?;
    let before = checked_metadata(&file)?;
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Unreadable::Io)?;
    let after = checked_metadata(&file)?;
    let read = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if Stamp::of(&before) != Stamp::of(&after) || read != after.size() {
        return Err(Unreadable::Changing);
    }
    String::from_utf8(bytes).map_err(|error| Unreadable::NotUtf8 { offset: error.utf8_error().valid_up_to() })
}

fn checked_metadata(file: &File) -> Result<Metadata, Unreadable> {
    let metadata = file.metadata().map_err(Unreadable::Io)?;
    if !metadata.is_file() {
        return Err(Unreadable::NotRegular);
    }
    if metadata.size() > MAX_BYTES {
        return Err(Unreadable::TooLarge { size: metadata.size() });
    }
    Ok(metadata)
}

/// What changes when a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What changes when a directory of manifests changes. Differs from that of any other state, but for files that cannot
/// be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Device and inode of the directory, `None` if it is not there.
    pub(super) directory: Option<(u64, u64)>,
    files: BTreeMap<OsString, Option<Stamp>>,
}

/// The fingerprint of `dir` now.
pub(super) fn fingerprint(dir: &Path) -> Fingerprint {
    let (Ok(metadata), Ok(names)) = (std::fs::metadata(dir), list(dir)) else {
        return Fingerprint::default();
    };
    let stamp = |name: &OsStr| std::fs::metadata(dir.join(name)).map_or(None, |metadata| Some(Stamp::of(&metadata)));
    Fingerprint {
        directory: Some((metadata.dev(), metadata.ino())),
        files: names.into_iter().map(|(name, _)| (name.clone(), stamp(&name))).collect(),
    }
}
