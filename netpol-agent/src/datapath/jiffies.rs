//! The programs' clock, read exactly: entries are stamped with jiffies, and userspace must say the same number.
//!
//! Jiffies cannot be reckoned from another clock: they count ticks as they come, and the monotonic clock is slewed to the
//! world's time, seconds a day from them. So the kernel is asked with a program of two instructions that returns what
//! `bpf_jiffies64` says. Needs CAP_BPF and CAP_NET_ADMIN, and kernel 5.5.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::sys;

/// Reads jiffies.
#[derive(Debug)]
pub struct Jiffies {
    program: OwnedFd,
}

impl Jiffies {
    /// Loads the program that reads them.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn open() -> io::Result<Self> {
        Ok(Self { program: sys::load_classifier(&sys::CALL_JIFFIES)? })
    }

    /// Their low 32 bits now.
    ///
    /// # Errors
    /// If the kernel does not run the program.
    pub fn now(&self) -> io::Result<u32> {
        sys::run_classifier(self.program.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Jiffies;
    use crate::testing::in_sandbox;

    #[test]
    fn they_go_on_with_the_time() {
        in_sandbox(|_| {
            let jiffies = Jiffies::open().unwrap();
            let (start, first) = (Instant::now(), jiffies.now().unwrap());
            let hz = crate::datapath::sys::ticks_per_second().unwrap();
            // Until they have counted ten; a clock that stands still would take for ever.
            while jiffies.now().unwrap().wrapping_sub(first) < 10 {
                assert!(start.elapsed() < Duration::from_secs(10), "they stand still");
            }
            let least = Duration::from_secs(9) / hz;
            assert!(start.elapsed() >= least, "ten ticks of {hz} a second in {:?}", start.elapsed());
        });
    }
}
