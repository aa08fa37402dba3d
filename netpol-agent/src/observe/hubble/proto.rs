//! The Hubble API's messages and services in Rust, made from `netpol-agent/proto` by the build, and their descriptors.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// What the reflection service tells and JSON is written by.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hubble.bin"));

/// The descriptors, understood; empty if they could not be (a test sees to it that they can).
pub static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).unwrap_or_default());

macro_rules! generated {
    ($(#[$doc:meta])+ $package:ident) => {
        $(#[$doc])+
        #[allow(
            missing_docs,
            clippy::all,
            clippy::too_many_lines,
            clippy::wildcard_enum_match_arm,
            clippy::allow_attributes_without_reason,
            unreachable_pub,
            rust_2018_idioms,
            reason = "generated; docs are the proto file's"
        )]
        pub mod $package {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($package), ".rs"));
        }
    };
}

generated!(
    /// `flow.proto`.
    flow
);
generated!(
    /// `relay.proto`.
    relay
);
generated!(
    /// `observer.proto`.
    observer
);
generated!(
    /// `peer.proto`.
    peer
);
