//! The two files of ours: written so that nobody ever reads half of one, and recognised as ours before they are touched.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::super::PLUGIN_TYPE;
use super::super::conflist::{self, FILE_NAME};
use super::super::plugin::ABOUT;

/// A configuration is some hundred bytes.
const LARGEST_CONFIGURATION: u64 = 1 << 20;
/// The plugin while it is copied; a name that no runtime calls.
const COPY: &str = ".netpol-cni.new";
const PLUGIN_MODE: u32 = 0o755;

/// Text of a configuration; none if it is not there.
pub(super) fn read_configuration(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    let read = file.take(LARGEST_CONFIGURATION + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > LARGEST_CONFIGURATION) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB"));
    }
    Ok(Some(text))
}

/// Who may read a file.
pub(super) fn mode_of(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.mode() & 0o777)
}

/// True if a configuration under our name is ours: it calls our plugin, or it is what an agent left that was killed before
/// it wrote.
pub(super) fn is_our_configuration(text: &str) -> bool {
    text.trim().is_empty() || conflist::calls_us(text)
}

/// Writes our configuration where it is, in one write. containerd acts upon writes only: it does not see a file that is
/// moved into place. What an older text is longer by becomes white space before it is cut off, so that whoever reads in
/// between reads valid JSON.
pub(super) fn write_in_place(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(mode).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file; remove it"));
    }
    let length = u64::try_from(text.len()).map_err(io::Error::other)?;
    let mut padded = text.as_bytes().to_vec();
    padded.resize(padded.len().max(usize::try_from(before.len()).map_err(io::Error::other)?), b'\n');
    let written = match file.write_at(&padded, 0) {
        Ok(written) if written == padded.len() => Ok(()),
        Ok(written) => Err(io::Error::new(io::ErrorKind::WriteZero, format!("only {written} bytes could be written"))),
        Err(error) => Err(error),
    };
    let done = written.and_then(|()| {
        if before.mode() & 0o777 != mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.set_len(length)?;
        file.sync_data()
    });
    // Half a configuration would be in the way of the one that it is made of.
    done.or_else(|error| fs::remove_file(path).and(Err(error)))
}

/// What changes when a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([i64; 4], [u64; 3]);

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some(Stamp(
        [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        [metadata.dev(), metadata.ino(), metadata.size()],
    ))
}

/// Puts a copy of the plugin at `target`: written beside it, and moved into place whole. True if it was another one.
pub(super) fn install_plugin(binary: &Path, target: &Path) -> io::Result<bool> {
    let new = fs::read(binary)?;
    match fs::read(target) {
        Ok(old) if old == new => {
            let is_executable = mode_of(target)? & PLUGIN_MODE == PLUGIN_MODE;
            if !is_executable {
                fs::set_permissions(target, Permissions::from_mode(PLUGIN_MODE))?;
            }
            return Ok(!is_executable);
        }
        Ok(old) if !is_our_plugin(&old) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a program of that name which is not ours; remove it",
            ));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let copy = target.with_file_name(COPY);
    remove_if_there(&copy)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(PLUGIN_MODE).open(&copy)?;
        file.write_all(&new)?;
        file.set_permissions(Permissions::from_mode(PLUGIN_MODE))?;
        file.sync_all()?;
        fs::rename(&copy, target)
    };
    write().or_else(|error| remove_if_there(&copy).and(Err(error)))?;
    Ok(true)
}

/// True if a program is some version of our plugin.
pub(super) fn is_our_plugin(program: &[u8]) -> bool {
    let first = ABOUT.as_bytes().first().copied().unwrap_or_default();
    let mut rest = program;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(ABOUT.as_bytes()) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

/// What is there of ours, in the order in which it must go: first what calls, then what is called.
pub(super) fn ours(conf_dir: &Path, bin_dir: &Path) -> Vec<PathBuf> {
    let (configuration, plugin) = (conf_dir.join(FILE_NAME), bin_dir.join(PLUGIN_TYPE));
    let mut found = Vec::new();
    if matches!(read_configuration(&configuration), Ok(Some(text)) if is_our_configuration(&text)) {
        found.push(configuration);
    }
    if fs::read(&plugin).is_ok_and(|program| is_our_plugin(&program)) {
        found.push(plugin);
    }
    let copy = bin_dir.join(COPY);
    if copy.symlink_metadata().is_ok() {
        found.push(copy);
    }
    found
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
