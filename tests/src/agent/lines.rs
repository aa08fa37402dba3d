//! Lines that a process prints, kept as they come, to be read while it runs.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The lines printed so far; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: Mutex<Vec<String>>,
    grew: Condvar,
}

impl Lines {
    /// Reads a stream to its end, on a thread of its own.
    #[must_use]
    pub fn read(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                writer.lock().push(line);
                writer.inner.grew.notify_all();
            }
        });
        lines
    }

    /// How many there are: a mark for [`Lines::since`].
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Forgets all there are; marks of before mean nothing any more.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Those after the mark.
    #[must_use]
    pub fn since(&self, mark: usize) -> Vec<String> {
        self.lock().get(mark..).unwrap_or_default().to_vec()
    }

    /// The last `count` lines.
    #[must_use]
    pub fn last(&self, count: usize) -> Vec<String> {
        let lines = self.lock();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().to_vec()
    }

    /// The first line after the mark that is wanted, as soon as it is there.
    #[must_use]
    pub fn wait_for(&self, mark: usize, limit: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut lines = self.lock();
        loop {
            if let Some(found) = lines.iter().skip(mark).find(|line| wanted(line)) {
                return Some(found.clone());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self.inner.grew.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.inner.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_once_and_only_after_its_mark() {
        let lines = Lines::read(&b"one\ntwo\nthree\n"[..]);
        assert_eq!(lines.wait_for(0, Duration::from_secs(5), |line| line == "three").as_deref(), Some("three"));
        assert_eq!(lines.count(), 3);
        assert_eq!(lines.since(1), ["two", "three"]);
        assert_eq!(lines.last(1), ["three"]);
        assert_eq!(lines.wait_for(3, Duration::from_millis(1), |_| true), None);
    }
}
