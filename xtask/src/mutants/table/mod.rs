//! The table of faults, by the part of the project that they are in.

mod policy;

use super::suite::Suite;
use super::Mutant;

/// Every fault.
pub(super) fn all() -> impl Iterator<Item = Mutant> {
    [policy::MUTANTS].into_iter().flatten().copied()
}
