//! Passes over directories in a temporary place; the watch once.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::conflist::FILE_NAME;
use super::super::plugin::ABOUT;
use super::*;
use crate::problem::Severity;

const FLANNEL: &str = r#"{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

/// Two directories and a plugin; gone when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let place = Self(std::env::temp_dir().join(format!("netpol-cni-install-{}-{serial}", std::process::id())));
        fs::create_dir_all(place.conf("")).unwrap();
        fs::create_dir_all(place.0.join("bin")).unwrap();
        fs::write(place.0.join("plugin"), format!("ELF {ABOUT} one")).unwrap();
        place
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.0.join("net.d").join(name)
    }

    fn own(&self) -> PathBuf {
        self.conf(FILE_NAME)
    }

    fn plugin(&self) -> PathBuf {
        self.0.join("bin/netpol-cni")
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).unwrap();
    }

    fn options(&self) -> InstallOptions {
        InstallOptions {
            conf_dir: self.conf(""),
            bin_dir: self.0.join("bin"),
            plugin_binary: self.0.join("plugin"),
            socket: "/run/netpol/netpol.sock".into(),
            agent_absent: AgentAbsent::Fail,
            timeout_seconds: None,
            enter_namespace: true,
        }
    }

    fn pass(&self) -> Pass {
        Pass::new(self.options())
    }

    fn types(&self) -> Vec<String> {
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(self.own()).unwrap()).unwrap();
        json["plugins"].as_array().unwrap().iter().map(|it| it["type"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn texts(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn plugin_and_configuration_are_put_once_and_then_left_alone() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    fs::set_permissions(place.conf("10-flannel.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut pass = place.pass();
    assert_eq!(pass.run(), []);
    assert_eq!(place.types(), ["flannel", "portmap", "netpol-cni"]);
    assert_eq!(fs::metadata(place.own()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(place.plugin()).unwrap().mode() & 0o777, 0o755);
    let before = [place.own(), place.plugin()].map(|path| files::stamp(&path));
    assert_eq!(pass.run(), []);
    assert_eq!(place.pass().run(), []);
    assert_eq!([place.own(), place.plugin()].map(|path| files::stamp(&path)), before, "nothing was written");
}

#[test]
fn a_change_of_the_source_changes_ours_in_place() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    let mut pass = place.pass();
    pass.run();
    let inode = fs::metadata(place.own()).unwrap().ino();
    for (text, wanted) in [
        (FLANNEL.replace("portmap", "a-much-longer-name"), vec!["flannel", "a-much-longer-name", "netpol-cni"]),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#.to_owned(), vec!["bridge", "netpol-cni"]),
    ] {
        place.put("10-flannel.conflist", &text);
        assert_eq!(pass.run(), []);
        assert_eq!(place.types(), wanted);
        assert_eq!(fs::metadata(place.own()).unwrap().ino(), inode, "it is the same file");
        assert!(fs::read_to_string(place.own()).unwrap().ends_with("}\n"), "nothing of the old text is left");
    }
}

#[test]
fn a_broken_source_leaves_what_was_made_of_it_and_a_removed_one_takes_it_along() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    let mut pass = place.pass();
    pass.run();
    for broken in ["", &FLANNEL[..50], r#"{"cniVersion":"0.3.1","name":"n","plugins":[]}"#] {
        place.put("10-flannel.conflist", broken);
        let problems = texts(&pass.run());
        assert!(problems.contains("what was made of it before stays in force"), "{problems}");
        assert_eq!(place.types(), ["flannel", "portmap", "netpol-cni"]);
    }
    fs::remove_file(place.conf("10-flannel.conflist")).unwrap();
    let problems = pass.run();
    assert!(!place.own().exists() && problems[0].severity == Severity::Note, "{}", texts(&problems));
    place.put("10-flannel.conflist", &FLANNEL[..50]);
    let problems = texts(&pass.run());
    assert!(!place.own().exists() && problems.contains("default deny"), "{problems}");
    place.put("10-flannel.conflist", r#"{"cniVersion":"0.3.1","name":"lo","plugins":[{"type":"loopback"}]}"#);
    let problems = texts(&pass.run());
    assert!(!place.own().exists() && problems.contains("connects no pods"), "{problems}");
}

#[test]
fn what_sorts_before_ours_is_named_unless_it_calls_us() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    place.put("00-multus.conf", r#"{"cniVersion":"0.3.1","name":"m","type":"multus","delegates":[]}"#);
    let mut pass = place.pass();
    let problems = pass.run();
    let text = texts(&problems);
    assert!(problems.len() == 1 && text.contains("00-multus.conf") && text.contains("rename it"), "{text}");
    assert_eq!(place.types(), ["flannel", "portmap", "netpol-cni"], "ours does not come of it");
    let own = fs::read_to_string(place.own()).unwrap();
    place.put("00-multus.conf", &format!(r#"{{"name":"m","type":"multus","delegates":[{own}]}}"#));
    assert_eq!(pass.run(), []);
}

#[test]
fn missing_directories_and_plugins_are_named_with_their_flag() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    let at = |conf_dir: &str, bin_dir: &str, plugin: &str| {
        let dirs = [conf_dir, bin_dir, plugin].map(|name| place.0.join(name));
        let [conf_dir, bin_dir, plugin_binary] = dirs;
        texts(&Pass::new(InstallOptions { conf_dir, bin_dir, plugin_binary, ..place.options() }).run())
    };
    let text = at("net.d", "missing", "plugin");
    assert!(text.contains("--cni-bin-dir") && !place.own().exists(), "without plugin it must not be called: {text}");
    let text = at("net.d", "bin", "missing");
    assert!(text.contains("cannot copy") && !place.own().exists(), "{text}");
    assert!(at("missing", "bin", "plugin").contains("--cni-conf-dir"));
    assert_eq!(at("net.d", "bin", "plugin"), "");
    let text = at("net.d", "bin", "missing");
    assert!(text.contains("an older version goes on") && place.own().exists(), "{text}");
    fs::remove_file(place.plugin()).unwrap();
    let text = at("net.d", "bin", "missing");
    assert!(text.contains("pods cannot start") && place.own().exists(), "{text}");
}

#[test]
fn a_new_version_takes_the_place_of_an_old_one_and_of_nothing_else() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    place.pass().run();
    fs::write(place.0.join("plugin"), format!("ELF {ABOUT} two")).unwrap();
    fs::write(place.0.join("bin/.netpol-cni.new"), "what a killed agent left").unwrap();
    assert_eq!(place.pass().run(), []);
    assert!(fs::read_to_string(place.plugin()).unwrap().ends_with("two"));
    assert_eq!(fs::read_dir(place.0.join("bin")).unwrap().count(), 1);
    fs::write(place.plugin(), "somebody else's").unwrap();
    let text = texts(&place.pass().run());
    assert!(text.contains("not ours"), "{text}");
    assert_eq!(fs::read_to_string(place.plugin()).unwrap(), "somebody else's");
}

#[test]
fn what_a_killed_agent_left_empty_is_written() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    fs::write(place.own(), "").unwrap();
    assert_eq!(place.pass().run(), []);
    assert_eq!(place.types(), ["flannel", "portmap", "netpol-cni"]);
    fs::write(place.own(), FLANNEL).unwrap();
    let text = texts(&place.pass().run());
    assert!(text.contains("is not ours") && fs::read_to_string(place.own()).unwrap() == FLANNEL, "{text}");
    fs::remove_file(place.own()).unwrap();
    std::os::unix::fs::symlink(place.conf("10-flannel.conflist"), place.own()).unwrap();
    place.pass().run();
    assert_eq!(fs::read_to_string(place.conf("10-flannel.conflist")).unwrap(), FLANNEL, "no link is followed");
}

#[test]
fn uninstalling_removes_what_is_ours_and_twice_is_once() {
    let place = Place::new();
    place.put("10-flannel.conflist", FLANNEL);
    place.pass().run();
    fs::write(place.0.join("bin/bridge"), "x").unwrap();
    let directories = (place.conf(""), place.0.join("bin"));
    assert_eq!(uninstall(&directories.0, &directories.1).unwrap(), [place.own(), place.plugin()]);
    assert!(uninstall(&directories.0, &directories.1).unwrap().is_empty());
    assert_eq!(fs::read_to_string(place.conf("10-flannel.conflist")).unwrap(), FLANNEL);
    fs::write(place.own(), FLANNEL).unwrap();
    fs::write(place.plugin(), "somebody else's").unwrap();
    assert!(uninstall(&directories.0, &directories.1).unwrap().is_empty());
    assert!(place.own().exists() && place.plugin().exists());
    assert!(uninstall(Path::new("/nonexistent"), Path::new("/nonexistent")).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_installer_follows_changes_and_tells_of_problems() {
    let place = Place::new();
    let mut installer = CniInstaller::start(place.options());
    assert!(texts(installer.problems()).contains("no network configuration"));
    place.put("10-flannel.conflist", FLANNEL);
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, installer.changed()).await.unwrap();
    assert_eq!(installer.problems(), []);
    assert_eq!(place.types(), ["flannel", "portmap", "netpol-cni"]);
    fs::remove_file(place.own()).unwrap();
    place.put("00-a.conf", "{}");
    tokio::time::timeout(limit, installer.changed()).await.unwrap();
    assert!(texts(installer.problems()).contains("00-a.conf"));
    assert_eq!(place.types(), ["flannel", "portmap", "netpol-cni"], "what somebody removed is back");
}
