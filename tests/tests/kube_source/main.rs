//! The source of the API server against the double: after each fault it has what the server has, and meanwhile nothing is
//! taken back that the server still has.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

mod away;
mod chance;
mod following;
mod objects;
mod scene;
mod start;
