//! How many entries pinned maps have.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapType};

/// Of include/uapi/linux/bpf.h.
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// The members of `union bpf_attr` for a step from key to key.
#[repr(C)]
struct Step {
    map: u32,
    pad: u32,
    key: u64,
    next: u64,
}

/// Entries of each hash and trie pinned below a directory, by its path there. (Arrays are always full.)
///
/// # Errors
/// If a directory cannot be listed, or the kernel does not let a map be walked.
pub fn entries(directory: &Path) -> Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(entries(&path)?);
        } else if let Ok(map) = MapData::from_pin(&path) {
            let info = map.info()?;
            let is_counted = matches!(info.map_type()?, MapType::Hash | MapType::LpmTrie | MapType::LruHash);
            if is_counted {
                match count(&map, info.key_size()) {
                    Ok(count) => _ = found.insert(path.display().to_string(), count),
                    // A pinned link opens as a map would; its description means something else.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                    Err(error) => return Err(error).with_context(|| format!("entries of {}", path.display())),
                }
            }
        }
    }
    Ok(found)
}

fn count(map: &MapData, key_size: u32) -> io::Result<usize> {
    let size = usize::try_from(key_size).map_err(io::Error::other)?;
    let mut key: Option<Vec<u8>> = None;
    let mut next = vec![0_u8; size];
    let mut count = 0;
    loop {
        let mut step = Step {
            map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.as_ref().map_or(0, |key| key.as_ptr().addr() as u64),
            next: next.as_mut_ptr().addr() as u64,
        };
        // SAFETY: both keys have the map's key size and outlive the call; the kernel writes the second.
        #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for keys of any size")]
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_GET_NEXT_KEY, &raw mut step, size_of::<Step>()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(count) } else { Err(error) };
        }
        count += 1;
        key = Some(next.clone());
    }
}
