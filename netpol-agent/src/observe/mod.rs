//! What the agent says of itself to tools on the node: [`admin`], and the figures that it makes for them.

pub mod admin;
pub mod translation;
