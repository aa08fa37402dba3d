//! Watching real files. Every wait is for an event, with a bound that only a broken watch reaches.

use std::time::Duration;

use tokio::time::timeout;

use super::super::{ManifestSource, SourceError, Watch, WatchOptions};
use super::{TempDir, event_lines};

const BOUND: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: one}\n";

/// Only inotify can tell.
fn never_looking() -> WatchOptions {
    WatchOptions { rescan: Duration::from_secs(3600), ..WatchOptions::default() }
}

/// The directory is looked at often.
fn looking() -> WatchOptions {
    WatchOptions { rescan: Duration::from_millis(50), ..WatchOptions::default() }
}

/// Reloads on ticks until something differs.
async fn next_events(watch: &mut Watch, source: &mut ManifestSource) -> Vec<String> {
    let differing = async {
        loop {
            watch.changed().await.unwrap();
            let events = event_lines(&source.reload());
            if !events.is_empty() {
                return events;
            }
        }
    };
    timeout(BOUND, differing).await.expect("the watch says nothing of a change")
}

#[tokio::test]
async fn inotify_tells_of_writes_renames_and_removals() {
    let dir = TempDir::new();
    let mut watch = Watch::new(dir.path(), never_looking()).unwrap();
    let (mut source, _) = ManifestSource::load(dir.path()).unwrap();
    dir.write("a.yaml", NAMESPACE);
    assert_eq!(next_events(&mut watch, &mut source).await, ["+ Namespace one"]);
    dir.write(".b.tmp", NAMESPACE.replace("name: one", "name: two"));
    std::fs::rename(dir.path().join(".b.tmp"), dir.path().join("b.yaml")).unwrap();
    assert_eq!(next_events(&mut watch, &mut source).await, ["+ Namespace two"]);
    dir.remove("a.yaml");
    assert_eq!(next_events(&mut watch, &mut source).await, ["- Namespace one"]);
}

#[tokio::test]
async fn reading_the_directory_is_no_change() {
    let dir = TempDir::new();
    dir.write("a.yaml", NAMESPACE);
    let options = WatchOptions { rescan: Duration::from_millis(20), ..WatchOptions::default() };
    let mut watch = Watch::new(dir.path(), options).unwrap();
    let (mut source, _) = ManifestSource::load(dir.path()).unwrap();
    for _ in 0..50 {
        source.reload();
    }
    assert!(timeout(Duration::from_millis(500), watch.changed()).await.is_err(), "a tick without a change");
}

#[tokio::test]
async fn a_burst_of_writes_is_few_ticks() {
    let dir = TempDir::new();
    let mut watch = Watch::new(dir.path(), never_looking()).unwrap();
    for number in 0..200 {
        dir.write(&format!("{number}.yaml"), NAMESPACE);
    }
    timeout(BOUND, watch.changed()).await.unwrap().unwrap();
    let mut more = 0;
    while timeout(Duration::from_millis(300), watch.changed()).await.is_ok() {
        more += 1;
        assert!(more <= 5, "{more} ticks more");
    }
}

#[tokio::test]
async fn a_config_map_update_is_seen() {
    let dir = TempDir::new();
    for (version, name) in [("..1", "one"), ("..2", "two")] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        dir.write(&format!("{version}/a.yaml"), NAMESPACE.replace("name: one", &format!("name: {name}")));
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
    link("..1", "..data");
    link("..data/a.yaml", "a.yaml");
    let mut watch = Watch::new(dir.path(), never_looking()).unwrap();
    let (mut source, _) = ManifestSource::load(dir.path()).unwrap();
    link("..2", "..data_tmp");
    std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    assert_eq!(next_events(&mut watch, &mut source).await, ["+ Namespace two", "- Namespace one"]);
}

#[tokio::test]
async fn the_target_of_a_link_written_in_place_is_found_by_looking() {
    let (dir, elsewhere) = (TempDir::new(), TempDir::new());
    elsewhere.write("a.yaml", NAMESPACE);
    std::os::unix::fs::symlink(elsewhere.path().join("a.yaml"), dir.path().join("a.yaml")).unwrap();
    let mut watch = Watch::new(dir.path(), looking()).unwrap();
    let (mut source, _) = ManifestSource::load(dir.path()).unwrap();
    elsewhere.write("a.yaml", NAMESPACE.replace("name: one", "name: other"));
    assert_eq!(next_events(&mut watch, &mut source).await, ["+ Namespace other", "- Namespace one"]);
}

#[tokio::test]
async fn a_directory_that_is_missing_for_a_while_and_replaced_is_watched_again() {
    let dir = TempDir::new();
    dir.write("a.yaml", NAMESPACE);
    let mut watch = Watch::new(dir.path(), looking()).unwrap();
    let (mut source, _) = ManifestSource::load(dir.path()).unwrap();
    let away = dir.path().with_extension("away");
    std::fs::rename(dir.path(), &away).unwrap();
    timeout(BOUND, watch.changed()).await.unwrap().unwrap();
    let changes = source.reload();
    assert_eq!(event_lines(&changes), [""; 0], "what was last read stays");
    assert_eq!(changes.problems.len(), 1);
    std::fs::create_dir(dir.path()).unwrap();
    dir.write("a.yaml", NAMESPACE);
    dir.write("b.yaml", NAMESPACE.replace("name: one", "name: two"));
    assert_eq!(next_events(&mut watch, &mut source).await.last().unwrap(), "+ Namespace two");
    dir.write("c.yaml", NAMESPACE.replace("name: one", "name: three"));
    assert_eq!(next_events(&mut watch, &mut source).await, ["+ Namespace three"]);
    while timeout(Duration::from_millis(300), watch.changed()).await.is_ok() {}
    // Looking passes hidden files over: of this one only an inotify watch on the new directory can tell.
    dir.write(".hidden", "");
    timeout(BOUND, watch.changed()).await.expect("the new directory has no inotify watch").unwrap();
    std::fs::remove_dir_all(&away).unwrap();
}

#[tokio::test]
async fn a_missing_directory_cannot_be_watched() {
    let dir = TempDir::new();
    let error = Watch::new(&dir.path().join("nowhere"), WatchOptions::default()).unwrap_err();
    assert!(matches!(error, SourceError::Directory { .. }), "{error}");
}

#[test]
fn a_watch_wants_a_runtime() {
    let dir = TempDir::new();
    let error = Watch::new(dir.path(), WatchOptions::default()).unwrap_err();
    assert!(matches!(error, SourceError::NoRuntime { .. }), "{error}");
}
