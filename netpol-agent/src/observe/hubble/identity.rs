//! Numbers for sets of labels, as Hubble's clients group by them: the same set has the same number on every node and after
//! a restart, as it is made from the set alone; two sets that come to one number are told apart on this node.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cluster::model::Pod;

/// Identities below are reserved; bit 24 and above mean something else.
const FIRST: u32 = 256;
const END: u32 = 1 << 24;
/// Sets that are remembered to tell them apart; beyond that the number alone counts.
const MOST: usize = 65_536;

/// Labels that differ between pods of one make: they say nothing of what a pod may do.
const PASSING: [&str; 9] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
];
const PASSING_TOO: &str = "statefulset.kubernetes.io/pod-name";

/// A pod's labels as Hubble writes them, sorted, its namespace among them.
#[must_use]
pub fn labels_of(pod: &Pod) -> Vec<String> {
    let lasting = pod.labels.iter().filter(|(key, _)| !PASSING.contains(&&***key) && ***key != *PASSING_TOO);
    let mut labels: Vec<String> = lasting.map(|(key, value)| format!("k8s:{key}={value}")).collect();
    labels.push(format!("k8s:io.kubernetes.pod.namespace={}", pod.key.namespace));
    labels.sort_unstable();
    labels
}

/// The numbers that were given.
#[derive(Debug, Default)]
pub struct Identities {
    numbers: HashMap<u32, Arc<[String]>>,
}

impl Identities {
    /// The number of a sorted set of labels.
    pub fn number(&mut self, labels: &[String]) -> u32 {
        let mut number = FIRST + hash(labels) % (END - FIRST);
        loop {
            match self.numbers.get(&number) {
                Some(other) if **other == *labels => return number,
                Some(_) if self.numbers.len() < MOST => number = if number + 1 == END { FIRST } else { number + 1 },
                Some(_) => return number,
                None => {
                    if self.numbers.len() < MOST {
                        self.numbers.insert(number, labels.into());
                    }
                    return number;
                }
            }
        }
    }
}

/// FNV-1a, folded: what `std` hashes by may change with its version.
fn hash(labels: &[String]) -> u32 {
    let bytes = labels.iter().flat_map(|label| label.bytes().chain([0]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let folded = (hash ^ hash >> 32) & u64::from(u32::MAX);
    u32::try_from(folded).unwrap_or(0)
}
