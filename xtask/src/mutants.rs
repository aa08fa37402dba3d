//! Deliberate faults in compiler and datapath, each with the test that it must fail.
//!
//! The table is the whole of it: a fault is a line of a file, what it becomes, and the test that must notice.

use anyhow::{Result, bail};

/// One fault.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the runner that reads the fields comes with the first faults")]
pub(crate) struct Mutant {
    /// What is wrong, in a few words.
    pub(crate) name: &'static str,
    /// Workspace path of the file.
    pub(crate) file: &'static str,
    /// Text that occurs in it exactly once.
    pub(crate) original: &'static str,
    /// What takes its place.
    pub(crate) fault: &'static str,
    /// Arguments of `cargo test` that must fail then.
    pub(crate) test: &'static [&'static str],
}

/// Every fault.
pub(crate) const MUTANTS: &[Mutant] = &[];

/// Runs the table.
pub(crate) fn run() -> Result<bool> {
    if MUTANTS.is_empty() {
        bail!("no faults are listed yet: xtask/src/mutants.rs");
    }
    bail!("the runner is not there yet: xtask/src/mutants.rs")
}
