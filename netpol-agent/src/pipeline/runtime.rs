//! The runtime's cache of CNI results, read where it keeps nothing waiting, and only if it may have something new.
//!
//! In: which interfaces nobody told of. Out: attachments that the cache has. A directory of hundreds of files on a busy disk
//! is read on a thread of its own; as long as neither it nor the interfaces changed it is not read again.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinHandle;

use crate::cni::cache::{self, Cached};
use crate::cni::protocol::{Attachment, AttachmentKey};

/// A directory that changed a moment ago may change again within the same tick of the file system's clock, and a file in it
/// may be half written: neither shows.
const SETTLED: Duration = Duration::from_secs(2);
/// It is read again after this time, whatever it looks like: a file that was written over does not show.
const AGAIN: Duration = Duration::from_secs(60);

/// Interfaces by index and name.
pub(super) type Interfaces = BTreeSet<(u32, String)>;

/// What a reading was made for, and of.
#[derive(Debug)]
struct Reading {
    silent: Interfaces,
    changed: Option<SystemTime>,
    at: Instant,
}

/// What the directory holds, and when it was changed if that can be told from a later change.
type Content = (Option<SystemTime>, Cached);

/// A reading that is under way; it comes to nothing where the directory is as it was.
#[derive(Debug)]
struct Underway {
    task: JoinHandle<io::Result<Option<Content>>>,
    silent: Interfaces,
    at: Instant,
    /// A DEL came meanwhile: what is read of these is of before.
    ended: BTreeSet<AttachmentKey>,
}

/// The directory, and what is known of it.
#[derive(Debug)]
pub(super) struct RuntimeCache {
    directory: PathBuf,
    last: Option<Reading>,
    underway: Option<Underway>,
}

impl RuntimeCache {
    /// A cache in `directory`, not read yet.
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self { directory, last: None, underway: None }
    }

    /// Begins to read, if there may be something new about the interfaces that nobody told of (`silent`, of all `names`).
    pub(super) fn look(&mut self, silent: Interfaces, names: BTreeSet<String>, now: Instant) {
        if silent.is_empty() || self.underway.is_some() {
            return;
        }
        let last = self.last.as_ref().filter(|it| it.silent == silent && now.saturating_duration_since(it.at) < AGAIN);
        let known = last.and_then(|last| last.changed);
        let directory = self.directory.clone();
        let read = move || read(&directory, known, |name| names.contains(name));
        let task = tokio::task::spawn_blocking(read);
        self.underway = Some(Underway { task, silent, at: now, ended: BTreeSet::new() });
    }

    /// A DEL of this attachment came.
    pub(super) fn ended(&mut self, key: &AttachmentKey) {
        if let Some(underway) = &mut self.underway {
            underway.ended.insert(key.clone());
        }
    }

    /// Waits until something was found. Cancel safe.
    pub(super) async fn found(&mut self) -> Vec<Attachment> {
        loop {
            if self.underway.is_none() {
                std::future::pending::<()>().await;
            }
            let found = self.finish().await;
            if !found.is_empty() {
                return found;
            }
        }
    }

    /// What the reading that is under way finds; nothing if none is. Cancel safe.
    pub(super) async fn finish(&mut self) -> Vec<Attachment> {
        let Some(underway) = &mut self.underway else { return Vec::new() };
        let read = (&mut underway.task).await;
        let Some(Underway { silent, at, ended, .. }) = self.underway.take() else { return Vec::new() };
        let why: Box<dyn Error> = match read {
            Ok(Ok(Some((changed, cached)))) => {
                self.last = Some(Reading { silent, changed, at });
                return cached.attachments.into_iter().filter(|it| !ended.contains(&it.key)).collect();
            }
            Ok(Ok(None)) => return Vec::new(),
            Ok(Err(error)) => error.into(),
            Err(error) => error.into(),
        };
        self.last = None;
        tracing::debug!(directory = %self.directory.display(), error = %why, "cannot read the runtime's cache of CNI results");
        Vec::new()
    }
}

/// What the directory holds; nothing if it was not changed since `known`.
fn read(
    directory: &Path,
    known: Option<SystemTime>,
    is_pod_interface: impl Fn(&str) -> bool,
) -> io::Result<Option<Content>> {
    let changed = match std::fs::metadata(directory).and_then(|it| it.modified()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        changed => Some(changed?),
    };
    if changed.is_some() && changed == known {
        return Ok(None);
    }
    let telling = changed.filter(|changed| changed.elapsed().is_ok_and(|age| age >= SETTLED));
    Ok(Some((telling, cache::read(directory, is_pod_interface)?)))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    const FILE: &str = r#"{"kind":"cniCacheV1","containerId":"ID","ifName":"eth0","networkName":"n",
        "cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web"],["K8S_POD_UID","u"]],
        "result":{"cniVersion":"1.0.0","interfaces":[{"mac":"6e:d1:55:00:00:02","name":"veth1"},
        {"mac":"a6:d1:55:00:00:03","name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.0.0.7/24","interface":1}]}}"#;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("netpol-runtime-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, id: &str) {
            fs::write(self.0.join(id), FILE.replace("ID", id)).unwrap();
        }

        /// As if the last change were so long ago.
        fn age(&self, seconds: u64) {
            File::open(&self.0).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    async fn look(cache: &mut RuntimeCache, silent: &[u32], now: Instant) -> Vec<String> {
        let silent = silent.iter().map(|ifindex| (*ifindex, "veth1".to_owned())).collect();
        cache.look(silent, BTreeSet::from(["veth1".to_owned()]), now);
        cache.finish().await.into_iter().map(|it| it.key.container_id).collect()
    }

    #[tokio::test]
    async fn it_is_read_again_only_when_it_or_the_interfaces_changed_or_after_a_time() {
        let dir = Dir::new("again");
        let start = Instant::now();
        let mut cache = RuntimeCache::new(dir.0.clone());
        dir.put("one");
        assert_eq!(look(&mut cache, &[], start).await, [""; 0], "everybody's interface is known");
        // It changed a moment ago: that does not tell whether it changes again.
        assert_eq!(look(&mut cache, &[1], start).await, ["one"]);
        assert_eq!(look(&mut cache, &[1], start).await, ["one"]);
        dir.age(10);
        assert_eq!(look(&mut cache, &[1], start).await, ["one"]);
        assert_eq!(look(&mut cache, &[1], start).await, [""; 0], "nothing changed");
        assert_eq!(look(&mut cache, &[1, 2], start).await, ["one"], "another interface");
        assert_eq!(look(&mut cache, &[1, 2], start + AGAIN).await, ["one"], "a minute later");
        assert_eq!(look(&mut cache, &[1, 2], start + AGAIN).await, [""; 0]);
        dir.put("two");
        assert_eq!(look(&mut cache, &[1, 2], start + AGAIN).await, ["one", "two"], "another file");
    }

    #[tokio::test]
    async fn what_ended_while_it_was_read_does_not_come_back() {
        let dir = Dir::new("ended");
        dir.put("one");
        dir.put("two");
        let mut cache = RuntimeCache::new(dir.0.clone());
        cache.look(BTreeSet::from([(1, "veth1".to_owned())]), BTreeSet::from(["veth1".to_owned()]), Instant::now());
        cache.ended(&AttachmentKey { container_id: "one".to_owned(), ifname: "eth0".to_owned() });
        let found = cache.found().await;
        assert_eq!(found.iter().map(|it| it.key.container_id.as_str()).collect::<Vec<_>>(), ["two"]);
    }
}
