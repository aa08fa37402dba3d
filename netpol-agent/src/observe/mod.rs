//! What the agent says of itself: to tools on the node ([`admin`], answering with [`answer`]s that [`report`] makes), and
//! the figures that it makes for them.

pub mod admin;
pub mod answer;
pub mod events_kube;
pub mod events_pod;
pub mod export;
pub mod health;
mod http;
pub mod hubble;
pub mod metrics;
pub mod report;
pub mod translation;
