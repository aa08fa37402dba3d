//! The scenes, by subject. Each is a few packets with the reason that each must have, in the words of one story.
//!
//! A scene runs in both families unless its subject exists in one only, and in both worlds unless BPF_PROG_TEST_RUN cannot
//! play it. [`all`] is all of them.

mod flows;
mod fragments;
mod headers;
mod icmp;
mod lifetime;
mod link;
mod node;
mod opening;
mod revocation;

use super::Case;

/// A case named after its function.
macro_rules! case {
    ($scene:ident $(, $change:ident($($argument:expr),*))*) => {
        $crate::packet::Case::new(stringify!($scene), $scene)$(.$change($($argument),*))*
    };
}
use case;

/// Every case.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        opening::CASES,
        flows::CASES,
        lifetime::CASES,
        revocation::CASES,
        icmp::CASES,
        fragments::CASES,
        headers::CASES,
        link::CASES,
        node::CASES,
    ]
    .concat()
}
