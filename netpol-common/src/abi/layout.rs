//! Layout versions of the maps: in, a map's name; out, the number that its pin carries.
//!
//! An agent shares a pinned map of its own layout with the programs that an older or newer version left running, and makes
//! every other map anew; so an upgrade keeps what both versions understand. Raise a number with any change of what the
//! maps of its group hold: sizes, fields, meaning of a number, kind of map. Maps that name numbers of each other are one
//! group, as half of a group is worth nothing. Three rules hold for ever, so that any version can take over from any
//! other, also from a newer one:
//! - Every layout of `ENDPOINTS` and `ENDPOINTS_FAR` is indexed by interface and *begins* with the fields of
//!   [`Endpoint`](super::Endpoint) of layout 1 ([`ENDPOINT_PREFIX`] bytes): new fields are appended. Slots carry over.
//! - Every layout of `POLICY_WORDS` is an array indexed by slot whose values begin with a `u64` that has the revision in its
//!   upper half. Revisions carry over: flows are judged under them, whatever the policy ids beside them mean.
//! - If the layout of the flows changes, they start empty: connections are taken up in mid-stream as if nobody had seen them
//!   open, so one that only its answers keep going may break. Do it only if there is no other way.

use super::map;

/// 1 in the test build with other layouts (see the feature `next-abi`), else 0.
const NEXT: u32 = if cfg!(feature = "next-abi") { 1 } else { 0 };

/// Policy ids, identities and port sets, which name each other.
const POLICY: u32 = 1 + NEXT;
/// Endpoints, near and far, and those of slots.
const ENDPOINT: u32 = 1 + NEXT;
/// Flows, answered or not, and confirmed backends, with the rings that name their entries.
const FLOW: u32 = 1;
/// The records of the event ring.
const EVENT: u32 = 1 + NEXT;
/// Everything that is alone.
const SINGLE: u32 = 1;

/// Bytes with which an endpoint of any layout begins: those of layout 1.
pub const ENDPOINT_PREFIX: usize = 32;

/// The layout version of a map.
#[must_use]
pub fn layout(name: &str) -> u32 {
    match name {
        map::POLICY_WORDS
        | map::IDENTITY_V4
        | map::IDENTITY_V6
        | map::CIDR_V4
        | map::CIDR_V6
        | map::ALLOW
        | map::PORT_SETS => POLICY,
        map::ENDPOINTS | map::ENDPOINTS_FAR | map::PODS => ENDPOINT,
        map::FLOWS_V4
        | map::FLOWS_V6
        | map::UNANSWERED_V4
        | map::UNANSWERED_V6
        | map::BACKENDS
        | map::FLOWS_V4_RING
        | map::FLOWS_V6_RING
        | map::UNANSWERED_V4_RING
        | map::UNANSWERED_V6_RING
        | map::BACKENDS_RING
        | map::RING_HEADS => FLOW,
        map::EVENTS => EVENT,
        _ => SINGLE,
    }
}
