//! One look at the directories, after which plugin and configuration are as they should be, or a problem says why not.
//!
//! Nothing is written that is so already. A configuration that cannot be read leaves what was made of it before.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::super::PLUGIN_TYPE;
use super::super::conflist::{self, DeriveError, FILE_NAME, Source};
use super::{InstallOptions, files};
use crate::problem::{Problem, Severity};

/// Pods that start then are held, as their interface appears without the plugin's word.
const NOT_CALLED: &str = "pods that start are not announced to the agent: they are held at default deny, or not policed from \
                          their first packet on";
const CANNOT_START: &str = "pods cannot start";
const NOT_STARTED: &str = "pods cannot start while the runtime calls a plugin that is not there";

/// The state between two looks.
pub(super) struct Pass {
    options: InstallOptions,
    /// Our copy of the plugin and the runtime's, when they were last found the same.
    same: Option<[files::Stamp; 2]>,
    /// What this look finds wrong.
    problems: Vec<Problem>,
}

impl Pass {
    pub(super) fn new(options: InstallOptions) -> Self {
        Self { options, same: None, problems: Vec::new() }
    }

    /// What to watch.
    pub(super) fn directories(&self) -> [PathBuf; 2] {
        [self.options.conf_dir.clone(), self.options.bin_dir.clone()]
    }

    /// Looks and acts; returns what is wrong.
    pub(super) fn run(&mut self) -> Vec<Problem> {
        let has_plugin = self.keep_plugin();
        self.keep_configuration(has_plugin);
        std::mem::take(&mut self.problems)
    }

    fn say(&mut self, severity: Severity, path: &Path, message: String, effect: &str) {
        let (origin, effect) = (path.display().to_string(), effect.to_owned());
        let object = "CNI plugin".to_owned();
        self.problems.push(Problem { severity, origin, object, field: String::new(), message, effect });
    }

    fn refuse(&mut self, path: &Path, message: String, effect: &str) {
        self.say(Severity::Refused, path, message, effect);
    }

    /// True if the runtime has some version of the plugin.
    fn keep_plugin(&mut self) -> bool {
        let InstallOptions { plugin_binary, bin_dir, .. } = self.options.clone();
        let target = bin_dir.join(PLUGIN_TYPE);
        let stamps = || Some([files::stamp(&plugin_binary)?, files::stamp(&target)?]);
        if self.same.is_some() && self.same == stamps() {
            return true;
        }
        self.same = None;
        let installed = if bin_dir.is_dir() {
            files::install_plugin(&plugin_binary, &target)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "there is no such directory"))
        };
        match installed {
            Ok(is_new) => {
                if is_new {
                    tracing::info!(plugin = %target.display(), "installed the CNI plugin");
                }
                self.same = stamps();
                true
            }
            Err(error) => {
                let has_older = std::fs::read(&target).is_ok_and(|program| files::is_our_plugin(&program));
                let message = format!(
                    "cannot copy the CNI plugin there from {}: {error}; give the runtime's directory of plugins with \
                     --cni-bin-dir",
                    plugin_binary.display()
                );
                self.refuse(&target, message, if has_older { "an older version goes on" } else { NOT_CALLED });
                has_older
            }
        }
    }

    fn keep_configuration(&mut self, has_plugin: bool) {
        let directory = self.options.conf_dir.clone();
        let names = match configurations(&directory) {
            Ok(names) => names,
            Err(error) => {
                let message = format!("cannot be listed: {error}; give the runtime's directory with --cni-conf-dir");
                return self.refuse(&directory, message, NOT_CALLED);
            }
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (before, source) = conflist::choose(&names);
        self.warn_of(&before);
        let own = directory.join(FILE_NAME);
        let present = match files::read_configuration(&own) {
            Ok(Some(text)) if !files::is_our_configuration(&text) => {
                let message = format!("is not ours, as it does not call {PLUGIN_TYPE}; rename it");
                return self.refuse(&own, message, NOT_CALLED);
            }
            Ok(text) => text,
            Err(error) => {
                return self.refuse(&own, format!("cannot be read: {error}; remove it"), NOT_CALLED);
            }
        };
        let Some(source) = source.map(|name| directory.join(name)) else {
            return self.withdraw(&own, &directory, "has no network configuration");
        };
        match self.derived(&source) {
            Ok(None) => {}
            Ok(Some((text, mode))) if has_plugin => self.put(&own, present.as_deref(), (&text, mode)),
            Ok(Some(_)) if present.is_some() => {
                self.refuse(&own, format!("calls {PLUGIN_TYPE}, which is missing"), NOT_STARTED);
            }
            Ok(Some(_)) => {}
            Err(Unusable::Loopback) => self.withdraw(&own, &source, "connects no pods"),
            Err(Unusable::Otherwise(why)) => {
                let kept = if present.is_some() { "what was made of it before stays in force" } else { NOT_CALLED };
                self.refuse(&source, format!("cannot be extended by {PLUGIN_TYPE}: {why}"), kept);
            }
        }
    }

    /// Names what the runtime uses in place of ours, unless that calls us too.
    fn warn_of(&mut self, before: &[&str]) {
        for name in before {
            let path = self.options.conf_dir.join(name);
            if !matches!(files::read_configuration(&path), Ok(Some(text)) if conflist::calls_us(&text)) {
                let message = format!(
                    "sorts before {FILE_NAME}, so the runtime uses it, and it does not call {PLUGIN_TYPE}: rename it to \
                     sort later, or have it use {FILE_NAME} as its network"
                );
                self.refuse(&path, message, NOT_CALLED);
            }
        }
    }

    fn put(&mut self, own: &Path, present: Option<&str>, (text, mode): (&str, u32)) {
        if present == Some(text) && files::mode_of(own).ok() == Some(mode) {
            return;
        }
        match files::write_in_place(own, text, mode) {
            Ok(()) => tracing::info!(file = %own.display(), "pods that start come to netpol-cni"),
            Err(error) => self.refuse(own, format!("cannot be written: {error}"), NOT_CALLED),
        }
    }

    /// Without a network there is nothing to extend, and ours must not be taken for one.
    fn withdraw(&mut self, own: &Path, because_of: &Path, why: &str) {
        match files::remove_if_there(own) {
            Ok(()) => {
                let message = format!("{why}; Flannel or another network has to write a configuration first");
                self.say(Severity::Note, because_of, message, CANNOT_START);
            }
            Err(error) => self.refuse(own, format!("cannot be removed: {error}"), CANNOT_START),
        }
    }

    /// The text that ours should have, and its mode; none if the source has gone meanwhile.
    fn derived(&self, source: &Path) -> Result<Option<(String, u32)>, Unusable> {
        let Some(text) = files::read_configuration(source)? else { return Ok(None) };
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let folder = match conflist::plugin_folder(name, &text) {
            Some(folder) => plugins_of(&self.options.conf_dir.join(folder))?,
            None => Vec::new(),
        };
        let source_conf = Source { name, text: &text, folder: &folder };
        let derived = conflist::derive(&source_conf, &self.options.entry())?;
        Ok(Some((derived, files::mode_of(source)?)))
    }
}

/// Why a source gives nothing.
enum Unusable {
    Loopback,
    Otherwise(String),
}

impl From<DeriveError> for Unusable {
    fn from(error: DeriveError) -> Self {
        match error {
            DeriveError::OnlyLoopback => Self::Loopback,
            DeriveError::Json(_) | DeriveError::Shape(_) | DeriveError::NoType(_) | DeriveError::Version { .. } => {
                Self::Otherwise(error.to_string())
            }
        }
    }
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Otherwise(error.to_string())
    }
}

/// Names of the configurations in a directory. One that is no UTF-8 is nobody's.
fn configurations(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().map_err(|name: OsString| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the file name {} is no UTF-8", name.display()))
        });
        match name {
            Ok(name) if conflist::is_configuration(&name) => names.push(name),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "passed over among the CNI configurations"),
        }
    }
    Ok(names)
}

/// Texts of the plugins that newer libcni adds to a list: `*.conf` in byte order.
fn plugins_of(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = match configurations(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        names => names?,
    };
    names.retain(|name| name.ends_with(".conf"));
    names.sort_unstable();
    let texts = names.iter().map(|name| files::read_configuration(&folder.join(name)));
    texts.filter_map(Result::transpose).collect()
}
