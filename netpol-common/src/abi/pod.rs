//! `aya::Pod` for the wire types; it must live with them, by the orphan rule.

#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait; this is its one home")]

use super::{
    AllowKey, AllowValue, Backend, BackendKey, Config, Counter, Endpoint, EventGate, Flow, FlowKey, FragmentCell,
    PolicyWord, RingHeads, TokenBucket, V4, V6,
};

macro_rules! wire_pod {
    ($($ty:ty),+ $(,)?) => {
        // SAFETY: each is `repr(C)` or `repr(transparent)`, `Copy`, made of integers and byte arrays only, and
        // asserted to have no padding where it is defined, so every bit pattern of its size is a value.
        $(unsafe impl aya::Pod for $ty {})+
    };
}

wire_pod!(
    AllowKey,
    AllowValue,
    Backend,
    BackendKey,
    Config,
    Counter,
    Endpoint,
    EventGate,
    Flow,
    FlowKey<V4>,
    FlowKey<V6>,
    FragmentCell,
    PolicyWord,
    RingHeads,
    TokenBucket,
    V4,
    V6,
);
