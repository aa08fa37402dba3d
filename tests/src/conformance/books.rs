//! Denials as double-entry bookkeeping: what was not answered must have been dropped, by policy, at one of the two pods.
//!
//! In: counters of the agents before and after a batch. Out: whether the drops in between account for the silent
//! questions, no more and no less, pod by pod. A denied packet that nobody counted was lost and not denied; one that was
//! counted at a pod that has no part in it was denied for something else.

use std::collections::BTreeMap;

use crate::agent::Counter;
use crate::judge::{Name, Probe};

/// Reasons for which policy drops the first packet of a connection.
const DENIALS: [&str; 2] = ["policy-denied", "denied-after-translation"];

/// Packets by pod, direction and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<(String, String, String), u64>);

impl Counts {
    /// As the agents tell.
    pub(super) fn of(counters: Vec<Counter>) -> Self {
        let entry = |it: Counter| ((it.pod, it.direction, it.reason), it.packets);
        Self(counters.into_iter().map(entry).collect())
    }

    /// What was counted after `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let grown = |(key, now): (&(String, String, String), &u64)| {
            let new = now.saturating_sub(before.0.get(key).copied().unwrap_or_default());
            (new > 0).then(|| (key.clone(), new))
        };
        Self(self.0.iter().filter_map(grown).collect())
    }

    /// Packets that policy denied.
    pub(super) fn denials(&self) -> u64 {
        self.0.iter().filter(|((_, _, reason), _)| DENIALS.contains(&reason.as_str())).map(|(_, packets)| packets).sum()
    }

    /// Whether the silent probes account for the denials: as many in all, and at no pod more than it has part in. Where
    /// destinations are translated, the side at which one is counted depends on where it leaves.
    pub(super) fn balance(&self, silent: &[&Probe], translated: bool) -> Result<(), String> {
        let (denied, asked) = (self.denials(), silent.len());
        if usize::try_from(denied) != Ok(asked) {
            return Err(format!("{asked} questions were not answered, and {denied} packets denied"));
        }
        let mut budget: BTreeMap<(String, &str), u64> = BTreeMap::new();
        let name = |pod: &Option<Name>| pod.as_ref().map(|(namespace, name)| format!("{namespace}/{name}"));
        for probe in silent {
            for (pod, direction) in [(name(&probe.source.pod), "egress"), (name(&probe.destination.pod), "ingress")] {
                *budget.entry((pod.unwrap_or_default(), direction)).or_default() += 1;
            }
        }
        for ((pod, direction, reason), packets) in self.0.iter().filter(|_| !translated) {
            let part = budget.get(&(pod.clone(), direction.as_str())).copied().unwrap_or_default();
            if DENIALS.contains(&reason.as_str()) && *packets > part {
                return Err(format!("{pod} {direction}: {packets} denied for {part} questions without answer"));
            }
        }
        Ok(())
    }

    /// One line for each counter.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|((pod, direction, reason), packets)| format!("{pod} {direction} {reason} {packets}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{Protocol, Side};

    fn counted(pod: &str, direction: &str, reason: &str, packets: u64) -> Counter {
        let [pod, direction, reason] = [pod, direction, reason].map(str::to_owned);
        Counter { pod, direction, reason, packets, bytes: 0 }
    }

    #[test]
    fn only_denials_at_the_two_pods_of_a_question_account_for_it() {
        let side = |name: &str| Side { address: [10, 0, 0, 1].into(), pod: Some(("x".to_owned(), name.to_owned())) };
        let probe = Probe { source: side("a"), destination: side("b"), protocol: Protocol::Udp, port: 80 };
        let before = Counts::of(vec![counted("x/a", "egress", "policy-denied", 5)]);
        let try_with = |counters: Vec<Counter>, translated| {
            let mut all = vec![counted("x/a", "egress", "policy-denied", 5)];
            all.extend(counters);
            Counts::of(all).since(&before).balance(&[&probe], translated)
        };
        assert!(try_with(vec![counted("x/b", "ingress", "policy-denied", 1)], false).is_ok());
        assert!(try_with(vec![counted("x/b", "ingress", "spoofed-address", 1)], false).is_err());
        assert!(try_with(vec![counted("x/b", "egress", "policy-denied", 1)], false).is_err());
        assert!(try_with(vec![counted("x/b", "egress", "denied-after-translation", 1)], true).is_ok());
        assert!(try_with(vec![counted("x/b", "ingress", "policy-denied", 2)], false).is_err());
        assert!(try_with(Vec::new(), false).is_err());
    }
}
