//! The table of faults, by the part of the project that they are in.

mod apply;
mod budgets;
mod decision;
mod kernel;
mod node;
mod packet;
mod policy;
mod services;
mod source;
mod takeover;
mod words;

use super::Mutant;
use super::suite::Suite;

/// Every fault.
pub(super) fn all() -> impl Iterator<Item = Mutant> {
    let parts = [
        policy::MUTANTS,
        source::MUTANTS,
        apply::MUTANTS,
        node::MUTANTS,
        takeover::MUTANTS,
        decision::MUTANTS,
        packet::MUTANTS,
        services::MUTANTS,
        words::MUTANTS,
        kernel::MUTANTS,
        budgets::MUTANTS,
    ];
    parts.into_iter().flatten().copied()
}
