//! Unix sockets as files: made in place of one that nobody serves any more, and never in place of anything else.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why a socket could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else's.
    #[error("{} is a {kind}, no socket, and is left as it is", path.display())]
    InTheWay {
        /// What lies there.
        path: PathBuf,
        /// Of which kind it is.
        kind: &'static str,
    },
    /// The file system.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Listens at `path`, in place of a socket that nobody serves any more; only the owner may connect.
///
/// # Errors
/// If something else lies there, or the socket cannot be made.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    remove(path)?;
    let failed = |what| move |source| SocketError::File { what, path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen at"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
    Ok(listener)
}

/// Removes a socket; one that is not there is removed already.
///
/// # Errors
/// If something else lies there, or it cannot be removed.
pub fn remove(path: &Path) -> Result<(), SocketError> {
    let failed = |what| move |source| SocketError::File { what, path: path.to_owned(), source };
    // Where a link leads is somebody else's, too.
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed("look at"))?.file_type(),
    };
    if !kind.is_socket() {
        return Err(SocketError::InTheWay { path: path.to_owned(), kind: name_of(kind) });
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
        _ => Ok(()),
    }
}

fn name_of(kind: FileType) -> &'static str {
    let kinds = [
        (kind.is_file(), "regular file"),
        (kind.is_dir(), "directory"),
        (kind.is_symlink(), "symbolic link"),
        (kind.is_fifo(), "pipe"),
    ];
    kinds.into_iter().find_map(|(is_it, name)| is_it.then_some(name)).unwrap_or("device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_is_replaced_and_removed() {
        let dir = std::env::temp_dir().join(format!("netpol-socket-{}", std::process::id()));
        fs::create_dir_all(dir.join("directory")).unwrap();
        fs::write(dir.join("regular file"), "precious").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("symbolic link")).unwrap();
        nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for kind in ["directory", "regular file", "symbolic link", "pipe"] {
            let path = dir.join(kind);
            for error in [bind(&path).unwrap_err(), remove(&path).unwrap_err()] {
                let error = error.to_string();
                assert!(error.contains(&format!("is a {kind}")) && error.contains(dir.to_str().unwrap()), "{error}");
            }
            assert!(path.symlink_metadata().is_ok());
        }
        let path = dir.join("new/socket");
        let first = bind(&path).unwrap();
        // As a killed agent leaves it.
        let second = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop((first, second));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
