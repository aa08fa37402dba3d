//! What the agent says of itself to tools on the node: [`admin`].

pub mod admin;
