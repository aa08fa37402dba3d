//! From the desired map contents to the kernel: `desired` (value), `diff` (pure), `plan` and `apply` (order and
//! failure), `store`, `loader`, `attach` (the kernel).

pub mod attach;
pub mod loader;
pub mod pins;
pub mod plan;
pub mod sizing;
pub mod store;
mod sys;
mod tc;
