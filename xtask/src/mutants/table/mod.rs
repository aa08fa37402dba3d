//! The table of faults, by the part of the project that they are in.

mod apply;
mod policy;
mod source;

use super::Mutant;
use super::suite::Suite;

/// Every fault.
pub(super) fn all() -> impl Iterator<Item = Mutant> {
    [policy::MUTANTS, source::MUTANTS, apply::MUTANTS].into_iter().flatten().copied()
}
