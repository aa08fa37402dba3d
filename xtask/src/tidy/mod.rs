//! The repository's own rules, as code: what cargo and clippy cannot hold.
//!
//! - [`layers`]: which module may name which (the agent is one crate, so cargo cannot police its layers).
//! - [`files`]: every `.rs` file is reachable from a crate root, and every module says what it is.
//!
//! A rule takes the sources as values and returns [`Finding`]s, so that each is tested on a few lines of text.

mod files;
mod layers;
mod source;

use anyhow::Result;

use self::source::Source;
use crate::shell;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Workspace path.
    path: String,
    /// Line, from 1; 0 for the whole file.
    line: usize,
    /// What is wrong and why that is a rule.
    message: String,
}

/// Checks everything. True if nothing was found.
pub(crate) fn run() -> Result<bool> {
    let findings = check()?;
    for Finding { path, line, message } in &findings {
        shell::say(&format!("{path}:{line}: {message}"));
    }
    shell::say(&format!("tidy: {} findings", findings.len()));
    Ok(findings.is_empty())
}

fn check() -> Result<Vec<Finding>> {
    let sources = Source::read_all(shell::root())?;
    let mut findings = files::check(&sources);
    findings.extend(layers::check(&sources));
    findings.sort();
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_its_rules() {
        let findings = check().unwrap();
        assert_eq!(findings, [], "see the messages; the rules are in xtask/src/tidy");
    }
}
