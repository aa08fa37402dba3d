//! What the source makes of manifests: a corpus of broken and of valid ones, reloading, and watching real files.

mod corpus;
mod files;
mod reload;
mod render;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Changes, ManifestSource};
use crate::cluster::model::ClusterEvent;

/// A directory of its own for one test, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("netpol-source-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), content).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).unwrap();
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A failing test may have left nothing to remove.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The directory's source, read for the first time.
fn load(dir: &TempDir) -> (ManifestSource, Changes) {
    ManifestSource::load(dir.path()).unwrap()
}

fn problem_lines(changes: &Changes) -> Vec<String> {
    changes.problems.iter().map(ToString::to_string).collect()
}

/// What is in force, one line an object.
fn model_lines(source: &ManifestSource) -> Vec<String> {
    source.objects().map(render::object).collect()
}

fn event_lines(changes: &Changes) -> Vec<String> {
    let line = |event: &ClusterEvent| match event {
        ClusterEvent::Apply(object) => format!("+ {}", object.reference()),
        ClusterEvent::Delete(reference) => format!("- {reference}"),
    };
    changes.events.iter().map(line).collect()
}
