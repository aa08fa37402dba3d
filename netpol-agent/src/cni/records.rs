//! Attachments as files, one each, so that a new agent knows what the plugin told the last one.
//!
//! In and out: [`Attachment`]s. They live on a file system that a reboot empties (`/run`), as the interfaces do. A file is
//! there before an ADD is answered and goes with its DEL; half-written ones are told by their name.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::protocol::{Attachment, AttachmentKey};
use crate::problem::{Problem, Severity};

/// What a file name ends in.
const SUFFIX: &str = ".json";
/// What the name of a file begins with that is being written.
const UNFINISHED: &str = ".new-";
/// Longest container ID that is taken; runtimes use 64 hexadecimal digits.
const LONGEST_ID: usize = 128;
/// Longest name of an interface, by IFNAMSIZ.
const LONGEST_IFNAME: usize = 15;

/// Why an attachment could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could name another file.
    #[error("{0} is no container ID with an interface name; both are letters, digits and . - _ (CNI spec, parameters)")]
    Key(AttachmentKey),
    /// It is no JSON.
    #[error("cannot write attachment {key} as JSON: {source}")]
    Encode {
        /// Which.
        key: AttachmentKey,
        /// Why.
        source: serde_json::Error,
    },
    /// The file system.
    #[error("cannot {what} {}: {source}; is --state-dir writable?", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory of records.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    /// The number of the latest record.
    latest: u64,
}

/// What a file holds.
#[derive(Deserialize, Serialize)]
struct Record<A> {
    #[serde(flatten)]
    attachment: A,
    /// Later ones have greater numbers: two sandboxes of one pod may be made within one tick of the file system's clock, and
    /// that clock may be set back. Files of earlier agents have none, and are older.
    #[serde(default)]
    sequence: u64,
}

impl Records {
    /// Records in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, RecordError> {
        let error = |source| RecordError::File { what: "make", path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(error)?;
        Ok(Self { dir: dir.to_owned(), latest: 0 })
    }

    /// Every record, oldest first, and files that are none. What a killed agent left half-written is removed. Comes before the
    /// first [`Self::put`], whose records are later than all of these.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn load(&mut self) -> Result<(Vec<Attachment>, Vec<Problem>), RecordError> {
        let error = |source| RecordError::File { what: "read", path: self.dir.clone(), source };
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED) {
                erase(&path)?;
            } else if name.ends_with(SUFFIX) {
                match read(&path) {
                    Ok(record) => found.push(record),
                    Err(why) => problems.push(unreadable(&path, &why)),
                }
            }
        }
        found.sort_by_key(|(written, record)| (record.sequence, *written));
        self.latest = found.last().map_or(0, |(_, record)| record.sequence);
        Ok((found.into_iter().map(|(_, record)| record.attachment).collect(), problems))
    }

    /// Writes a record, in place of an earlier one of this key.
    ///
    /// # Errors
    /// If the key is none or the file cannot be written.
    pub fn put(&mut self, attachment: &Attachment) -> Result<(), RecordError> {
        let name = file_name(&attachment.key)?;
        let encode = |source| RecordError::Encode { key: attachment.key.clone(), source };
        self.latest += 1;
        let text = serde_json::to_vec(&Record { attachment, sequence: self.latest }).map_err(encode)?;
        let (unfinished, path) = (self.dir.join(format!("{UNFINISHED}{name}")), self.dir.join(name));
        let error = |source| RecordError::File { what: "write", path: path.clone(), source };
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished).map_err(error)?;
        file.write_all(&text).and_then(|()| fs::rename(&unfinished, &path)).map_err(error)
    }

    /// Removes a record, if it is there.
    ///
    /// # Errors
    /// If the key is none or the file cannot be removed.
    pub fn remove(&self, key: &AttachmentKey) -> Result<(), RecordError> {
        erase(&self.dir.join(file_name(key)?))
    }
}

fn erase(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::File { what: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes every record in a directory, and nothing else; one that is not there holds none.
///
/// # Errors
/// If something of ours cannot be removed.
pub fn clear(dir: &Path) -> Result<(), RecordError> {
    let error = |source| RecordError::File { what: "read", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(error)?,
    };
    for entry in entries {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(SUFFIX) && (name.contains('@') || name.starts_with(UNFINISHED)) {
            erase(&path)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<(SystemTime, Record<Attachment>), String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let written = fs::metadata(path).and_then(|meta| meta.modified()).map_err(|error| error.to_string())?;
    let record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    Ok((written, record))
}

/// The name that a record of this key has, which cannot lead out of the directory.
fn file_name(key: &AttachmentKey) -> Result<String, RecordError> {
    let is_plain = |text: &str, longest: usize| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        (1..=longest).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-'])
    };
    let is_key = is_plain(&key.container_id, LONGEST_ID) && is_plain(&key.ifname, LONGEST_IFNAME);
    is_key.then(|| format!("{}@{}{SUFFIX}", key.container_id, key.ifname)).ok_or_else(|| RecordError::Key(key.clone()))
}

fn unreadable(path: &Path, why: &str) -> Problem {
    Problem {
        severity: Severity::Note,
        origin: "node".to_owned(),
        object: format!("file {}", path.display()),
        field: String::new(),
        message: format!("cannot be read as the record of an attachment: {why}; remove it"),
        effect: "the interface that it was about is taken for one that nobody told of".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment {
            key: AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() },
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            uid: "u".to_owned(),
            host_interface: "veth1".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("netpol-records-{name}-{}", std::process::id()));
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        dir
    }

    #[test]
    fn what_was_put_is_there_after_a_restart_until_it_is_removed() {
        let dir = directory("put");
        let (first, second) = (attachment("c1", "eth0"), attachment("c2", "eth0"));
        let mut records = Records::open(&dir).unwrap();
        records.put(&first).unwrap();
        records.put(&second).unwrap();
        let (mut loaded, problems) = Records::open(&dir).unwrap().load().unwrap();
        loaded.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!((loaded, problems), (vec![first.clone(), second], vec![]));
        records.remove(&first.key).unwrap();
        records.remove(&first.key).unwrap();
        assert_eq!(records.load().unwrap().0.len(), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn records_are_in_the_order_they_were_put_whatever_the_clock_says_and_those_without_a_number_first() {
        let dir = directory("order");
        let mut records = Records::open(&dir).unwrap();
        let path = |id: &str| dir.join(file_name(&attachment(id, "eth0").key).unwrap());
        let at = |id: &str, seconds: u64| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::open(path(id)).unwrap().set_modified(time).unwrap();
        };
        for id in ["c1", "c2"] {
            records.put(&attachment(id, "eth0")).unwrap();
        }
        // As the agent before wrote them.
        for id in ["b2", "b1"] {
            fs::write(path(id), serde_json::to_vec(&attachment(id, "eth0")).unwrap()).unwrap();
        }
        let mut again = Records::open(&dir).unwrap();
        again.load().unwrap();
        again.put(&attachment("a", "eth0")).unwrap();
        for (id, seconds) in [("a", 1), ("c2", 2), ("c1", 3), ("b1", 4), ("b2", 5)] {
            at(id, seconds);
        }
        let loaded = Records::open(&dir).unwrap().load().unwrap().0;
        let ids: Vec<&str> = loaded.iter().map(|it| it.key.container_id.as_str()).collect();
        assert_eq!(ids, ["b1", "b2", "c1", "c2", "a"]);
        // And such an agent reads what this one wrote.
        assert!(serde_json::from_slice::<Attachment>(&fs::read(path("a")).unwrap()).is_ok());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn half_a_record_is_removed_and_a_broken_one_named() {
        let dir = directory("half");
        let mut records = Records::open(&dir).unwrap();
        fs::write(dir.join(".new-c1@eth0.json"), "{").unwrap();
        fs::write(dir.join("c2@eth0.json"), "{").unwrap();
        let (loaded, problems) = records.load().unwrap();
        assert!(loaded.is_empty());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(!dir.join(".new-c1@eth0.json").exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn clearing_takes_records_and_nothing_else() {
        let dir = directory("clear");
        let mut records = Records::open(&dir).unwrap();
        records.put(&attachment("c1", "eth0")).unwrap();
        for name in ["notes.txt", "other.json"] {
            fs::write(dir.join(name), "").unwrap();
        }
        clear(&dir).unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes.txt", "other.json"]);
        fs::remove_dir_all(&dir).unwrap();
        clear(&dir).unwrap();
    }

    #[test]
    fn no_key_leads_out_of_the_directory() {
        let dir = directory("out");
        let mut records = Records::open(&dir).unwrap();
        for (id, ifname) in
            [("../x", "eth0"), ("", "eth0"), ("c", "../../x"), ("c", ""), (".", "eth0"), ("c/d", "eth0")]
        {
            assert!(matches!(records.put(&attachment(id, ifname)), Err(RecordError::Key(_))), "{id} {ifname}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
