//! How long to wait before the next try: longer each time, never the same on two nodes.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubles from `first` to `longest`, with the upper half of each wait left to chance.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// It worked: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many times in a row it did not work.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).filter(|_| self.failures < 20).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let whole = self.first.saturating_mul(factor).min(self.longest);
        whole / 2 + (whole / 2).mul_f64(chance())
    }
}

/// A number in 0..1 that nobody can foretell; the standard library's hash keys are random.
pub(super) fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 40;
    let bits = u32::try_from(bits).unwrap_or_default();
    f64::from(bits) / f64::from(1_u32 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_start_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= Duration::from_millis(100) && waits[0] <= Duration::from_millis(200), "{waits:?}");
        assert!(waits[3] >= Duration::from_millis(800) && waits[3] <= Duration::from_millis(1600), "{waits:?}");
        assert!(waits[10..].iter().all(|wait| (15..=30).contains(&wait.as_secs())), "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(200));
    }

    #[test]
    fn no_two_nodes_wait_equally_long() {
        let waits: std::collections::BTreeSet<Duration> =
            (0..20).map(|_| Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next()).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }
}
