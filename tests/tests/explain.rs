//! `netpol explain` on every cell of every suite: it says what the suite says, its two judges agree on each, and on a
//! sample its hints, applied, let the flow through.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::cell::Cell;
use std::rc::Rc;

use netpol_tests::explained::Explained;
use netpol_tests::npconf::Suite;
use netpol_tests::replay::walk;

/// Walks a suite; returns how many hints were tried.
fn agrees(name: &str) -> usize {
    let tried = Rc::new(Cell::new(0));
    let report = walk(&Suite::committed(name).unwrap(), |_, _| true, || Explained::counting(&tried)).unwrap();
    report.require_agreement(name).unwrap();
    tried.get()
}

#[test]
fn explanations_agree_with_cyclonus_and_their_hints_help() {
    assert!(agrees("cyclonus") > 1000);
}

#[test]
fn explanations_agree_with_every_other_suite_and_their_hints_help() {
    let tried: usize = ["e2e-netpol", "recipes", "extra", "netpol", "guides"].into_iter().map(agrees).sum();
    assert!(tried > 200);
}
