//! A directory of manifests kept in force: reads it, remembers what was good, and says what changed.
//!
//! Comes in: files. Goes out: [`Changes`]. No clock, no task: the caller says when ([`watch`](super::watch)).
//!
//! Rules, each the one an API server would give:
//! - An invalid version of an object does not replace the last valid one. What was never valid is narrowed.
//! - An object that stands twice counts where it stands first, in the order of file names.
//! - A file that is gone takes its objects with it. One that cannot be read or parsed, or is empty, does not: nobody can
//!   tell which objects its author took out.
//! - A directory that is gone changes nothing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use super::decode::{Identity, Outcome};
use super::directory;
use super::document::Format;
use super::file::{Entries, Entry, problem};
use crate::cluster::model::{ClusterEvent, Object, ObjectRef};
use crate::problem::{Problem, Severity};

/// Why there is no manifest source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory is not there, is no directory, or may not be read.
    #[error("cannot read manifests from {}: {source}; give a directory that exists and may be read", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The directory cannot be watched for want of a runtime.
    #[error("cannot watch {}: called outside a tokio runtime", dir.display())]
    NoRuntime {
        /// The directory.
        dir: PathBuf,
    },
}

/// What a load or reload found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What differs from before, to be applied as one batch.
    ///
    /// In an order that would open as little as possible were it applied one by one: what is new or changed first, and of
    /// that policies first, so that a new pod is isolated when it comes; then namespaces, pods, services. Then what is
    /// gone: pods, services, namespaces, and policies last, so that a policy that takes over from another is there before
    /// the other goes.
    pub events: Vec<ClusterEvent>,
    /// Everything that is wrong now, not only what is new, in the order of the files.
    pub problems: Vec<Problem>,
}

/// An object in force.
#[derive(Clone, Debug)]
struct InForce {
    object: Object,
    /// Whether it was taken as written.
    valid: bool,
    /// The file that it counts as part of.
    file: OsString,
    /// Where it stands, for messages.
    origin: String,
}

/// What was read from a file, and of what.
#[derive(Debug)]
struct FileState {
    digest: u64,
    entries: Entries,
}

/// A directory of manifests, and what of it is in force.
#[derive(Debug)]
pub struct ManifestSource {
    dir: PathBuf,
    /// Only to see that a file did not change; keyed, so that nobody can make two files look the same.
    hasher: RandomState,
    files: BTreeMap<OsString, FileState>,
    in_force: BTreeMap<ObjectRef, InForce>,
}

impl ManifestSource {
    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// Reads `dir` for the first time. Blocks on file access, as [`reload`](Self::reload) does.
    ///
    /// # Errors
    /// [`SourceError::Directory`] if there is no such directory. Whatever is wrong inside it is a [`Problem`].
    pub fn load(dir: &Path) -> Result<(Self, Changes), SourceError> {
        let error = |source| SourceError::Directory { dir: dir.to_owned(), source };
        directory::list(dir).map_err(error)?;
        let mut source =
            Self { dir: dir.to_owned(), hasher: RandomState::new(), files: BTreeMap::new(), in_force: BTreeMap::new() };
        let changes = source.reload();
        Ok((source, changes))
    }

    /// Reads the directory again.
    pub fn reload(&mut self) -> Changes {
        let mut problems = Vec::new();
        match directory::list(&self.dir) {
            Ok(names) => self.files = self.read_files(names),
            Err(error) => problems.push(problem(
                &self.dir.display().to_string(),
                &format!("the directory cannot be read: {error}"),
                "what was last read from it stays in force",
            )),
        }
        let mut resolver = Resolver { old: &self.in_force, new: BTreeMap::new() };
        let mut found: Vec<(&FileState, Vec<Found<'_>>)> = Vec::new();
        for (name, state) in &self.files {
            let entries = state.entries.entries.iter();
            found.push((state, entries.map(|entry| resolver.claim(name, entry)).collect()));
        }
        resolver.keep_unaccounted(found.iter_mut().flat_map(|(_, found)| found));
        let new = resolver.new;
        for (state, found) in found {
            let of_file = found.into_iter().flat_map(|found| found.problems).collect();
            problems.extend(state.entries.limited(of_file));
        }
        let events = differences(&self.in_force, &new);
        self.in_force = new;
        Changes { events, problems }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is in force: namespaces, pods, policies, services, each by name.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.in_force.values().map(|entry| &entry.object)
    }

    fn read_files(&mut self, names: Vec<(OsString, Format)>) -> BTreeMap<OsString, FileState> {
        let mut files = BTreeMap::new();
        for (name, format) in names {
            let shown = name.to_string_lossy().escape_debug().to_string();
            let state = match directory::read(&self.dir.join(&name)) {
                Ok(None) => continue,
                Err(error) => FileState { digest: 0, entries: Entries::unreadable(shown, &error) },
                Ok(Some(text)) => {
                    let digest = self.hasher.hash_one(&text) | 1;
                    match self.files.remove(&name).filter(|known| known.digest == digest) {
                        Some(known) => known,
                        None => FileState { digest, entries: Entries::read(shown, &text, format) },
                    }
                }
            };
            files.insert(name, state);
        }
        files
    }
}

/// An object of a file, and what is wrong with it in the light of what was in force before.
struct Found<'f> {
    file: &'f OsString,
    entry: &'f Entry,
    problems: Vec<Problem>,
}

/// Decides which version of each object is in force.
struct Resolver<'o> {
    old: &'o BTreeMap<ObjectRef, InForce>,
    new: BTreeMap<ObjectRef, InForce>,
}

impl Resolver<'_> {
    /// Puts an object in force, unless an earlier one of this name is.
    fn claim<'f>(&mut self, file: &'f OsString, entry: &'f Entry) -> Found<'f> {
        let mut problems = entry.item.problems.clone();
        if let Identity::Known(reference) = &entry.item.identity {
            if let Some(first) = self.new.get(reference) {
                problems.push(duplicate(reference, entry, first));
            } else if let Some((in_force, kept)) = self.version(file, reference, entry) {
                if kept {
                    set_effect(&mut problems, "this version is not taken; the last valid one stays in force");
                }
                self.new.insert(reference.clone(), in_force);
            }
        }
        Found { file, entry, problems }
    }

    /// The version of an object that is in force now that `entry` was read, and whether it is the one from before.
    fn version(&self, file: &OsStr, reference: &ObjectRef, entry: &Entry) -> Option<(InForce, bool)> {
        let old = self.old.get(reference);
        let taken = |object: &Object, valid| InForce {
            object: object.clone(),
            valid,
            file: file.to_owned(),
            origin: entry.origin.clone(),
        };
        let kept = |old: &InForce| taken(&old.object, old.valid);
        match &entry.item.outcome {
            Outcome::Taken(object) => Some((taken(object, true), false)),
            Outcome::Narrowed(object) => Some(match old.filter(|old| old.valid) {
                None => (taken(object, false), false),
                Some(old) => (kept(old), true),
            }),
            Outcome::Refused => old.map(|old| (kept(old), true)),
            Outcome::Skipped => None,
        }
    }

    /// Objects last read from a file that no longer shows them stay while something in it may be one of them.
    fn keep_unaccounted<'i, 'f: 'i>(&mut self, found: impl Iterator<Item = &'i mut Found<'f>>) {
        let mut kept = BTreeMap::new();
        for Found { file, entry, problems } in found {
            if entry.item.outcome != Outcome::Refused {
                continue;
            }
            let lost = self.old.iter().filter(|(key, _)| !self.new.contains_key(key));
            let mine: Vec<_> = lost.filter(|(key, value)| may_be(&entry.item.identity, file, key, value)).collect();
            if let Some(names) = names(&mine) {
                set_effect(problems, &format!("what was last read from this file stays in force: {names}"));
            }
            kept.extend(mine.into_iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        self.new.append(&mut kept);
    }
}

fn duplicate(reference: &ObjectRef, entry: &Entry, first: &InForce) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: entry.origin.clone(),
        object: reference.to_string(),
        field: String::new(),
        message: format!("already defined in {}; remove one of them", first.origin),
        effect: format!("the one in {} is in force", first.origin),
    }
}

fn set_effect(problems: &mut [Problem], effect: &str) {
    for problem in problems.iter_mut().filter(|problem| problem.severity == Severity::Refused) {
        effect.clone_into(&mut problem.effect);
    }
}

/// Whether something in `file` that is only known as `identity` may be what was read from it as this object.
fn may_be(identity: &Identity, file: &OsStr, key: &ObjectRef, value: &InForce) -> bool {
    let same_name = match identity {
        Identity::Known(_) => false,
        Identity::Unknown => true,
        Identity::Named(name) => match key {
            ObjectRef::Namespace(own) => own == name,
            ObjectRef::Pod(own) | ObjectRef::NetworkPolicy(own) | ObjectRef::Service(own) => own.name == *name,
        },
    };
    same_name && value.file == file
}

/// The first few of them for a message, `None` if there are none.
fn names(objects: &[(&ObjectRef, &InForce)]) -> Option<String> {
    const SHOWN: usize = 3;
    let (_, rest) = objects.split_first()?;
    let shown: Vec<String> = objects.iter().take(SHOWN).map(|(key, _)| key.to_string()).collect();
    let more = match (rest.len() + 1).saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(shown.join(", ") + &more)
}

/// The events that lead from `old` to `new`, in the order that [`Changes::events`] promises.
fn differences(old: &BTreeMap<ObjectRef, InForce>, new: &BTreeMap<ObjectRef, InForce>) -> Vec<ClusterEvent> {
    let changed = new.iter().filter(|(key, value)| old.get(key).is_none_or(|before| before.object != value.object));
    let mut applied: Vec<&Object> = changed.map(|(_, value)| &value.object).collect();
    applied.sort_by_key(|object| match object {
        Object::NetworkPolicy(_) => 0,
        Object::Namespace(_) => 1,
        Object::Pod(_) => 2,
        Object::Service(_) => 3,
    });
    let mut gone: Vec<&ObjectRef> = old.keys().filter(|key| !new.contains_key(key)).collect();
    gone.sort_by_key(|reference| match reference {
        ObjectRef::Pod(_) => 0,
        ObjectRef::Service(_) => 1,
        ObjectRef::Namespace(_) => 2,
        ObjectRef::NetworkPolicy(_) => 3,
    });
    let applied = applied.into_iter().cloned().map(ClusterEvent::Apply);
    applied.chain(gone.into_iter().cloned().map(ClusterEvent::Delete)).collect()
}
