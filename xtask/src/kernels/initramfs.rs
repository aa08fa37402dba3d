//! An initramfs: a cpio archive ("newc") of a program as `/init` and modules in `/modules`.
//!
//! The format is a line of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: six hex words of
//! magic, thirteen of eight digits, the name, the data, each padded to four bytes. The kernel makes `/dev/console` itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// Writes the archive.
pub(super) fn write(to: &Path, init: &Path, modules: &[PathBuf]) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    archive.add("modules", DIRECTORY, &[])?;
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.add(&format!("modules/{name}"), PROGRAM, &read(module)?)?;
    }
    archive.add("init", PROGRAM, &read(init)?)?;
    fs::write(to, archive.finish()?).with_context(|| format!("cannot write {}", to.display()))
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entries += 1;
        let (size, name_size) = (u32::try_from(data.len())?, u32::try_from(name.len() + 1)?);
        // Inode, mode, owner, group, links, time, size, four device numbers, size of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.add(TRAILER, 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_of_110_bytes_a_name_and_data_each_padded() {
        let mut archive = Archive::default();
        archive.add("init", PROGRAM, b"hello").unwrap();
        assert_eq!(archive.bytes.len(), 116 + 8);
        assert!(archive.bytes.starts_with(b"07070100000001000081ED"));
        assert_eq!(&archive.bytes[110..], b"init\0\0hello\0\0\0");
        let all = archive.finish().unwrap();
        assert_eq!(all.len() % 4, 0);
        assert!(all.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
