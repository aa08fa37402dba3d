//! Opening pinned maps with their types, and the kernel's answers as [`StoreError`]s.

use std::io;

use aya::maps::{Map, MapData, MapError};

use super::OpenError;
use crate::datapath::pins::PinDir;
use crate::datapath::plan::StoreError;

/// Opens maps of one pin directory.
pub(in crate::datapath) struct Pinned<'a>(pub(in crate::datapath) &'a PinDir);

impl Pinned<'_> {
    /// The untyped map behind a pin.
    pub(super) fn data(&self, name: &str) -> Result<MapData, OpenError> {
        let path = self.0.map(name);
        MapData::from_pin(&path).map_err(|error| OpenError { path, source: io_error(error) })
    }

    /// The map behind a pin as a typed one; aya checks kind, key size and value size against the kernel's.
    pub(in crate::datapath) fn open<T: TryFrom<Map, Error = MapError>>(&self, name: &str) -> Result<T, OpenError> {
        let path = self.0.map(name);
        Map::from_map_data(self.data(name)?)
            .and_then(T::try_from)
            .map_err(|error| OpenError { path, source: io_error(error) })
    }
}

/// The kernel's answer inside an error of aya's.
#[expect(clippy::wildcard_enum_match_arm, reason = "every other error has no answer of the kernel's inside")]
pub(super) fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// Turns aya's answer into a [`StoreError`] that says what was tried.
pub(super) fn stored<T>(
    map: &'static str,
    operation: impl FnOnce() -> String,
    result: Result<T, MapError>,
) -> Result<T, StoreError> {
    result.map_err(|error| StoreError { operation: operation(), map, source: io_error(error) })
}

/// A removal of what is not there is done.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
