//! A layer: files as a compressed tar whose bytes depend on nothing but the files.
//!
//! In: paths, modes, contents. Out: the blob and the digest of what is in it. Whatever a tar could tell of the machine
//! that wrote it is fixed: times are 0, owners are root by number, directories are made from the paths, all is sorted.
//! Must not read files.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

use super::archive::{Blob, Digest};

/// gzip and not zstd: dockers before 23 cannot read zstd, and it would save half a second of a pull.
const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A file of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// From the root, without a leading slash.
    pub(crate) path: String,
    /// True for a program.
    pub(crate) executable: bool,
    /// What is in it.
    pub(crate) bytes: Vec<u8>,
}

/// Files, packed.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// As it is transferred.
    pub(crate) blob: Blob,
    /// Of the tar before compression, as the image's configuration lists it.
    pub(crate) diff_id: Digest,
}

/// Packs files, in whatever order they come.
///
/// # Errors
/// If a path is absolute, climbs, or comes twice.
pub(crate) fn pack(files: &[File]) -> Result<Layer> {
    let tar = tar_of(&entries(files)?)?;
    let diff_id = Digest::of(&tar);
    // No name, no time, and no word on the system in the header.
    let mut gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    gzip.write_all(&tar)?;
    Ok(Layer { blob: Blob::new(MEDIA_TYPE, gzip.finish()?), diff_id })
}

/// What the tar holds, sorted: a directory, which is `None`, comes before what lies in it.
fn entries(files: &[File]) -> Result<BTreeMap<String, Option<&File>>> {
    let mut entries = BTreeMap::new();
    for file in files {
        let parts: Vec<&str> = file.path.split('/').collect();
        let plain = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
        ensure!(plain, "{:?} is no path that an image may have: it must lead down from the root", file.path);
        let mut directory = String::new();
        for part in parts.iter().take(parts.len() - 1) {
            directory = format!("{directory}{part}/");
            entries.entry(directory.clone()).or_insert(None);
        }
        ensure!(entries.insert(file.path.clone(), Some(file)).is_none(), "{:?} is there twice", file.path);
    }
    Ok(entries)
}

fn tar_of(entries: &BTreeMap<String, Option<&File>>) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, file) in entries {
        let (kind, mode, bytes) = match file {
            None => (tar::EntryType::Directory, 0o755, &[][..]),
            Some(file) => (tar::EntryType::Regular, if file.executable { 0o755 } else { 0o644 }, file.bytes.as_slice()),
        };
        append(&mut tar, path, (kind, mode), bytes).with_context(|| format!("cannot pack {path}"))?;
    }
    Ok(tar.into_inner()?)
}

/// Appends an entry with nothing in its header that differs between machines.
pub(super) fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    (kind, mode): (tar::EntryType, u32),
    bytes: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> File {
        File { path: path.to_owned(), executable: path == "program", bytes: path.as_bytes().to_vec() }
    }

    #[test]
    fn the_order_of_the_files_makes_no_difference() {
        let there = pack(&[file("program"), file("usr/share/doc/LICENSE")]).unwrap();
        let back = pack(&[file("usr/share/doc/LICENSE"), file("program")]).unwrap();
        assert_eq!(there.blob, back.blob);
        assert_eq!(there.diff_id, back.diff_id);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["/program", "../program", "usr/../program", "usr//program", ""] {
            assert!(pack(&[file(path)]).unwrap_err().to_string().contains("must lead down"), "{path}");
        }
        assert!(pack(&[file("a"), file("a")]).unwrap_err().to_string().contains("twice"));
    }
}
