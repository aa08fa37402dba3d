//! Keyed hashes: a flow's name in 32 bits, which a deferred packet carries through the node in `skb->hash`, and a fragmented
//! datagram's in 64.

use crate::abi::FlowKey;
use crate::packet::{Address, Header};

/// The cookie of a flow as its pod sees it, keyed with `secret`; never 0, which `skb->hash` is when nobody set it.
///
/// Translation changes addresses and ports but not `skb->hash`, so that the hook where the packet leaves can tell which
/// flow of the pod it belongs to. Two flows of one pod that share a cookie share a [`crate::abi::Backend`]: the secret
/// keeps a pod from looking for such a pair.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves are mixed into the low one")]
pub fn cookie<A: Address>(key: &FlowKey<A>, secret: [u32; 2]) -> u32 {
    let [low, high] = secret;
    let mut hash = u64::from(high) << 32 | u64::from(low);
    for word in key.pod.widen() {
        hash = mix(hash, word);
    }
    for word in key.peer.widen() {
        hash = mix(hash, word);
    }
    hash = mix(hash, u32::from(key.pod_port) << 16 | u32::from(key.peer_port));
    hash = mix(hash, u32::from(key.protocol) << 16 | u32::from(key.slot));
    let folded = (hash >> 32) as u32 ^ hash as u32;
    if folded == 0 { 1 } else { folded }
}

/// What a datagram's fragments have in common, seen at one place (`at`: a direction as number, or that of the exit).
#[must_use]
#[inline(always)]
pub(super) fn fingerprint<A: Address>(header: &Header<A>, at: u8, secret: [u32; 2]) -> u64 {
    let [low, high] = secret;
    let mut hash = u64::from(high) << 32 | u64::from(low);
    for word in header.source.widen() {
        hash = mix(hash, word);
    }
    for word in header.destination.widen() {
        hash = mix(hash, word);
    }
    hash = mix(hash, header.fragment_id);
    mix(hash, u32::from(header.fragment_protocol) << 8 | u32::from(at))
}

/// One round of a multiplicative hash: every bit of the word reaches the upper half, which the shift brings down again.
#[inline(always)]
const fn mix(hash: u64, word: u32) -> u64 {
    let mixed = (hash ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::abi::V4;

    fn key(pod_port: u16, slot: u16) -> FlowKey<V4> {
        let pod = V4::from_octets([10, 244, 1, 5]);
        FlowKey { pod, peer: V4::from_octets([10, 96, 0, 10]), pod_port, peer_port: 53, protocol: 17, pad: 0, slot }
    }

    #[test]
    fn flows_have_different_cookies_and_another_secret_others() {
        let of = |secret| -> BTreeSet<u32> {
            (1..=20_000).flat_map(|port| [cookie(&key(port, 1), secret), cookie(&key(port, 2), secret)]).collect()
        };
        let (one, other) = (of([1, 2]), of([1, 3]));
        // 40,000 in 2^32: a fifth of a pair is expected to meet.
        assert!(one.len() >= 39_997 && other.len() >= 39_997);
        assert!(one.intersection(&other).count() < 10);
    }
}
