//! The kernel's release -> what works on it.

use std::fs;
use std::io;
use std::path::Path;

use super::Finding;

/// Major and minor number of a kernel's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release(pub(super) u32, pub(super) u32);

/// From here on maps count against the memory of the control group, and no longer against RLIMIT_MEMLOCK.
pub(super) const WITHOUT_MEMLOCK: Release = Release(5, 11);
const OLDEST: Release = Release(5, 10);
const WITH_TCX: Release = Release(6, 6);

/// The running kernel's.
pub(super) fn release(proc: &Path) -> io::Result<Release> {
    let text = fs::read_to_string(proc.join("sys/kernel/osrelease"))?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no release")))
}

/// `6.18.0-3-amd64` is 6.18.
fn parse(text: &str) -> Option<Release> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    Some(Release(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn check(release: Result<&Release, &io::Error>) -> Vec<Finding> {
    let Release(major, minor) = match release {
        Ok(release) => *release,
        Err(error) => {
            return vec![Finding::note(
                "kernel",
                format!("its release cannot be read: {error}"),
                "it must be 5.10 or newer",
            )];
        }
    };
    let release = Release(major, minor);
    let found = format!("{major}.{minor}");
    vec![if release < OLDEST {
        Finding::fail("kernel", found, "netpol needs 5.10 or newer")
    } else if release < WITH_TCX {
        Finding::ok("kernel", format!("{found}: programs are attached by clsact (TCX comes with 6.6)"))
    } else {
        Finding::ok("kernel", format!("{found}: programs are attached by TCX"))
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Standing;

    #[test]
    fn releases_are_read_and_compared_by_number() {
        assert_eq!(parse("6.18.0-3-amd64\n"), Some(Release(6, 18)));
        assert_eq!(parse("5.10\n"), Some(Release(5, 10)));
        assert_eq!(parse("strange"), None);
        let standing = |major, minor| check(Ok(&Release(major, minor))).first().unwrap().standing;
        assert_eq!([standing(5, 9), standing(5, 10), standing(10, 0)], [Standing::Fail, Standing::Ok, Standing::Ok]);
    }
}
