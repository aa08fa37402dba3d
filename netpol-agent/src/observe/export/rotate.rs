//! Lines to a file that is put aside when it is full: `flows.jsonl`, then `flows.jsonl.1` (the newest), `.2`, and so on.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Where lines go.
pub(super) enum Output {
    Stdout,
    File(Rotating),
}

/// A file, and those put aside.
pub(super) struct Rotating {
    path: PathBuf,
    max_bytes: u64,
    backups: usize,
    /// The open file, and how much is in it.
    open: Option<(File, u64)>,
}

impl Output {
    pub(super) fn new(path: &Path, max_bytes: u64, backups: usize) -> Self {
        if path == Path::new("stdout") || path == Path::new("-") {
            return Self::Stdout;
        }
        Self::File(Rotating { path: path.to_owned(), max_bytes, backups, open: None })
    }

    pub(super) fn write_line(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                writeln!(out, "{line}").and_then(|()| out.flush())
            }
            Self::File(file) => file.write_line(line),
        }
    }
}

impl Rotating {
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX).saturating_add(1);
        let (file, size) = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let is_full = size > 0 && size.saturating_add(length) > self.max_bytes;
        let (mut file, size) = if is_full {
            drop(file);
            self.rotate()?;
            self.open()?
        } else {
            (file, size)
        };
        // One write a line, so that a full disk leaves at most one torn line, which the next one does not continue.
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            if file.set_len(size).is_err() {
                tracing::debug!("a line of the export stays torn");
            }
            return Err(error);
        }
        self.open = Some((file, size.saturating_add(length)));
        Ok(())
    }

    /// Flows name pods and addresses: only root reads them.
    fn open(&self) -> io::Result<(File, u64)> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }

    fn rotate(&self) -> io::Result<()> {
        if self.backups == 0 {
            return absent_is_fine(fs::remove_file(&self.path));
        }
        for number in (1..self.backups).rev() {
            absent_is_fine(fs::rename(self.aside(number), self.aside(number + 1)))?;
        }
        absent_is_fine(fs::rename(&self.path, self.aside(1)))
    }

    fn aside(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
