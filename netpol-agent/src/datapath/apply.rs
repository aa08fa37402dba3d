//! Carries a plan out against a [`MapStore`], and says what is in force where that fails.
//!
//! Rules on failure, so that losing an operation never widens access and costs others as little as may be:
//! - An allow entry or port set: whoever was to pass to that policy id or identity does not.
//! - A slot that cannot pass to its new policy id keeps the old one if that only takes a widening back, else the direction
//!   concerned moves to the deny id (`OnFailure::Deny`).
//! - An address that cannot pass to its new identity stays as it is if no policy would let it do less there, else it is
//!   removed, and falls to its ipBlock region, which allows no more than either; if even that fails, whatever depended on
//!   it is denied.
//! - A region: no larger one is touched, as it would show through, and no slot passes to another policy id.
//! - Removals wait until everything else has succeeded.
//!
//! Whatever was left undone is compared again at the next [`Applier::apply`].

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::abi::Direction;

use super::desired::{DesiredDatapath, Touched};
use super::diff::diff;
use super::installed::Installed;
use super::plan::{MapStore, Plan, StoreError};
use crate::problem::{Problem, Severity};
use run::Run;

/// What becomes of a pod whose policy could not be tightened (`--on-apply-failure`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The direction concerned is denied until it succeeds.
    #[default]
    Deny,
    /// The old policy stays in force until it succeeds.
    Keep,
}

/// State of a slot in one direction that is not the desired one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fallback {
    /// Everything is denied.
    Denied,
    /// The policy before the change is in force, and allows no more than the desired one (or `keep` was asked for).
    Kept,
    /// The policy before the change is in force although it allows more: not even the deny id could be written.
    Stuck,
}

/// What came of an [`Applier::apply`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything that is desired is in the maps, and nothing else.
    pub complete: bool,
    /// Slots that are not in the desired state.
    pub slots: BTreeMap<(u16, Direction), Fallback>,
    /// Addresses that were taken out, as they could not pass to their new identity.
    pub removed: BTreeSet<IpAddr>,
    /// Addresses that have their old identity.
    pub stale: BTreeSet<IpAddr>,
    /// What the kernel refused.
    pub failures: Vec<StoreError>,
}

/// Keeps the maps as desired: knows what is installed, and what was left undone.
#[derive(Clone, Debug)]
pub struct Applier {
    installed: Installed,
    unresolved: Touched,
    on_failure: OnFailure,
}

impl Applier {
    /// Takes over maps with these contents. All of it is compared at the first apply: what an earlier run left and nobody
    /// wants any more is removed then.
    #[must_use]
    pub fn new(installed: Installed, on_failure: OnFailure) -> Self {
        Self { unresolved: installed.everything(), installed, on_failure }
    }

    /// What is installed.
    #[must_use]
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// True if an earlier apply left something undone, so that an apply without any change is worth while.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.unresolved.is_empty()
    }

    /// What [`Self::apply`] would do.
    #[must_use]
    pub fn plan(&self, desired: &DesiredDatapath, touched: &Touched) -> Plan {
        let mut all = self.unresolved.clone();
        all.extend(touched);
        diff(&self.installed, desired, &all)
    }

    /// Makes the maps what is desired where `touched` says that it changed, and where an earlier apply failed.
    pub fn apply(&mut self, desired: &DesiredDatapath, touched: &Touched, store: &mut impl MapStore) -> Outcome {
        let plan = self.plan(desired, touched);
        let mut run = Run::new(&mut self.installed, store, self.on_failure);
        run.carry_out(&plan);
        let (outcome, unresolved) = run.finish();
        self.unresolved = unresolved;
        outcome
    }
}

impl Outcome {
    /// One problem for each slot and address that is not in the desired state, and the kernel's reasons.
    /// `pod` names the pod of a slot.
    #[must_use]
    pub fn problems(&self, pod: impl Fn(u16) -> String) -> Vec<Problem> {
        let reason = match self.failures.as_slice() {
            [] => "an earlier operation failed".to_owned(),
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
        };
        let problem = |object: String, effect: String| Problem {
            severity: Severity::Refused,
            origin: "apply".to_owned(),
            object,
            field: String::new(),
            message: reason.clone(),
            effect: format!("{effect}; it is tried again"),
        };
        let slots = self.slots.iter().map(|((slot, direction), fallback)| {
            let direction = direction.name();
            let effect = match fallback {
                Fallback::Denied => format!("all {direction} is denied"),
                Fallback::Kept => format!("the policy before the change stays in force for {direction}"),
                Fallback::Stuck => {
                    format!("MORE {direction} IS ALLOWED THAN WRITTEN: the policy before the change is in force")
                }
            };
            problem(format!("Pod {}", pod(*slot)), effect)
        });
        let removed = self.removed.iter().map(|address| {
            problem(format!("address {address}"), "no pod selector matches this peer for now".to_owned())
        });
        let stale = self.stale.iter().map(|address| {
            problem(format!("address {address}"), "this peer counts as what it was before the change".to_owned())
        });
        let mut all: Vec<Problem> = slots.chain(removed).chain(stale).collect();
        if all.is_empty() && !self.complete {
            all.push(problem(String::new(), "none on traffic; unused map entries stay".to_owned()));
        }
        all
    }
}
