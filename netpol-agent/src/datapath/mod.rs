//! From the desired map contents to the kernel: `desired` (value), `diff` (pure), `plan` and `apply` (order and
//! failure), `ids` (which numbers are free), `store`, `loader`, `attach`, `takeover` (the kernel).

pub mod apply;
pub mod attach;
pub mod backstop;
pub mod conntrack;
pub mod desired;
pub mod diff;
pub mod events;
pub mod figures;
pub mod flows;
pub mod housekeeping;
pub mod ids;
pub mod installed;
pub mod jiffies;
pub mod loader;
pub(crate) mod nfnetlink;
pub mod pins;
pub mod plan;
pub mod seed;
pub mod sizing;
pub mod store;
mod sys;
pub mod takeover;
mod tc;
#[cfg(test)]
mod tests;
