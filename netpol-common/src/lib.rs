//! What crosses netpol's kernel boundary, and the decision itself.
//!
//! [`abi`] holds every map key, map value and event with its layout asserted; [`classify`] turns bytes and table
//! look-ups into a verdict, a reason and a flow update. Both are compiled twice: into the BPF object (`netpol-ebpf`) and
//! into userspace, where the same decision runs in host tests and answers `explain`.
//!
//! This crate must not allocate, do I/O, read a clock or name `aya` (but for `abi::pod` and `host`, behind `user`).
//! Start at [`classify::from_pod`].

#![cfg_attr(not(feature = "user"), no_std)]
#![deny(unsafe_code)]

pub mod abi;
pub mod classify;
pub mod flow;
#[cfg(feature = "user")]
pub mod host;
pub mod packet;
