//! The scenes, by subject. Each is a few packets with the reason that each must have, in the words of one story.
//!
//! A scene runs in both families unless its subject exists in one only, and in both worlds unless BPF_PROG_TEST_RUN cannot
//! play it. [`all`] is all of them.

mod exits;
mod flows;
mod fragments;
mod headers;
mod icmp;
mod lifetime;
mod link;
mod node;
mod opening;
mod revocation;
mod services;

use anyhow::{Context as _, Result};

use super::Case;

/// Environment variable with the names of the cases to play, separated by commas; without it all are played.
pub const WANTED_VARIABLE: &str = "NETPOL_SCENES";

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
        services::CASES,
        exits::CASES,
    ]
    .concat()
}

/// The cases to play, see [`WANTED_VARIABLE`].
///
/// # Errors
/// There is no case of a name.
pub fn wanted() -> Result<Vec<Case>> {
    let all = all();
    let Ok(names) = std::env::var(WANTED_VARIABLE) else { return Ok(all) };
    let of = |name| all.iter().find(|case| case.name == name).copied().with_context(|| format!("no scene {name:?}"));
    names.split(',').map(of).collect()
}
