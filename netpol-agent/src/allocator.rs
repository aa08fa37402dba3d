//! The daemon's allocator: the same in the image (musl) and in a build for the machine at hand (glibc), so that what is
//! measured is what is shipped.
//!
//! A first list makes and drops as much as it keeps. glibc keeps an arena a thread (209 MB at 100,000 pods, 179 with one
//! arena), musl has one lock and takes twice the time; mimalloc keeps what is freed for a second and takes whole huge
//! pages (231 MB). With huge pages off (feature `no_thp`) and [`return_soon`] it is 171 MB, in the same time.

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc 3's `mimalloc.h`; the crate names but a few of the options.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const DELAY_MILLISECONDS: core::ffi::c_long = 10;

/// Freed memory goes back to the kernel after 10 ms rather than 1 s. To be called first of all.
pub fn return_soon() {
    // SAFETY: sets a number under an index below `_mi_option_last`, at any time; mimalloc reads it when it next frees.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, DELAY_MILLISECONDS) };
}
