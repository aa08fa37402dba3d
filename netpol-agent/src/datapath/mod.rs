//! From the desired map contents to the kernel: `desired` (value), `diff` (pure), `plan` and `apply` (order and
//! failure), `ids` (which numbers are free), `store`, `loader`, `attach` (the kernel).

pub mod apply;
pub mod desired;
pub mod diff;
pub mod ids;
pub mod installed;
pub mod plan;
#[cfg(test)]
mod tests;
