//! Which sources an image is made of, and when they were made.
//!
//! The image's time is that of the sources and not of the build, or no two builds would be the same: `SOURCE_DATE_EPOCH`,
//! else the commit's, else 1970. Their commit is `NETPOL_REVISION`, else what git says.

use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// The sources' time, in seconds since 1970: the usual name for it.
pub(super) const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";
/// The sources' commit, where git cannot be asked: an unpacked archive, a build in a container.
pub(super) const REVISION_VARIABLE: &str = "NETPOL_REVISION";

/// Of what, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The commit, with `-dirty` behind it if the sources are not quite that; none outside of a checkout.
    pub(crate) revision: Option<String>,
    /// Seconds since 1970.
    pub(crate) seconds: i64,
}

impl Stamp {
    /// Of the sources here.
    ///
    /// # Errors
    /// If the variable is no number.
    pub(crate) fn of_sources() -> Result<Self> {
        let seconds = match std::env::var(EPOCH_VARIABLE) {
            Ok(text) => text.parse().with_context(|| format!("{EPOCH_VARIABLE}={text:?} is no number of seconds"))?,
            Err(_unset) => git(&["log", "-1", "--format=%ct"]).and_then(|text| text.parse().ok()).unwrap_or(0),
        };
        Ok(Self { revision: revision(), seconds })
    }

    /// By RFC 3339.
    ///
    /// # Errors
    /// If there is no such time.
    pub(crate) fn time(&self) -> Result<String> {
        let time = jiff::Timestamp::from_second(self.seconds);
        Ok(time.with_context(|| format!("no time is {} seconds after 1970", self.seconds))?.to_string())
    }
}

fn revision() -> Option<String> {
    if let Ok(revision) = std::env::var(REVISION_VARIABLE) {
        return Some(revision).filter(|revision| !revision.is_empty());
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// None outside of a checkout, or without git.
fn git(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // A checkout around an unpacked archive of the sources says nothing about them.
    command.current_dir(shell::root()).env("GIT_CEILING_DIRECTORIES", shell::root().parent()?).args(arguments);
    shell::output(&mut command).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_the_format_wants_it() {
        let stamp = |seconds| Stamp { revision: None, seconds };
        assert_eq!(stamp(0).time().unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(stamp(1_795_000_000).time().unwrap(), "2026-11-18T11:06:40Z");
        assert!(stamp(i64::MAX).time().is_err());
    }
}
