//! The few system calls that neither `aya`, `nix` nor `std` offers in the form needed here, each behind a safe function:
//! TCX links by interface index (`aya` takes names, which can move to another interface between look-up and use), what
//! is attached to a hook (`aya` opens every program by id, which needs `CAP_SYS_ADMIN`), and a memory-mapped array.
//!
//! Nothing here decides anything; errors are the kernel's own.

use std::ffi::CString;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_common::abi::Hook;

// Command and attach type numbers of include/uapi/linux/bpf.h, which never change.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;

/// Programs that [`tcx_programs`] can report; the kernel's own limit is 64.
const MAX_PROGRAMS: usize = 64;

const fn attach_type(hook: Hook) -> u32 {
    match hook {
        Hook::FromPod => BPF_TCX_INGRESS,
        Hook::ToPod | Hook::ToUplink => BPF_TCX_EGRESS,
    }
}

/// The members of `union bpf_attr` for commands on one element of a map.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Member `link_create` of `union bpf_attr`, as TCX uses it.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_id: u32,
    pad: u32,
    expected_revision: u64,
    reserved: [u64; 4],
}

/// Member `link_update` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Member `test` of `union bpf_attr`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct ProgramRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// The members of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct ObjectPath {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Member `query` of `union bpf_attr`, up to the first revision.
#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Member `info` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// The kernel's `struct bpf_link_info` as far as TCX links fill it.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}

/// What the kernel says of a TCX link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcxLink {
    /// Number of the link.
    pub(super) id: u32,
    /// Interface index in the interface's own network namespace, 0 once the interface is gone.
    pub(super) ifindex: u32,
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for these commands")]
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a live, exclusive, `repr(C)` prefix of `union bpf_attr` and `size` is its size; the
    // pointers that callers in this module store in it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[expect(unsafe_code, reason = "the kernel returns a bare descriptor number")]
fn bpf_descriptor<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the command succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

/// Attaches `program` to `hook` of an interface, ahead of every other TCX program. Needs kernel 6.6; older ones answer
/// `EINVAL`.
pub(super) fn tcx_attach_first(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    // kernel: BEFORE without a reference means before all others (kernel/bpf/mprog.c).
    let mut attributes = LinkCreate {
        prog_fd: number(program),
        target_ifindex: ifindex,
        attach_type: attach_type(hook),
        flags: BPF_F_BEFORE,
        ..LinkCreate::default()
    };
    bpf_descriptor(BPF_LINK_CREATE, &mut attributes)
}

/// Makes `link` run `program` from now on; no packet sees neither. `ENOLINK` if its interface is gone.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdate { link_fd: number(link), new_prog_fd: number(program), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Takes the program of `link` off its hook before it returns; the link stays, dead.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // Member `link_detach` of `union bpf_attr` is the descriptor alone.
    bpf(BPF_LINK_DETACH, &mut number(link)).map(drop)
}

/// What the kernel says of a TCX link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<TcxLink> {
    let mut info = RawLinkInfo::default();
    let mut attributes = InfoByFd {
        fd: number(link),
        info_len: u32::try_from(size_of::<RawLinkInfo>()).map_err(io::Error::other)?,
        info: address(std::ptr::from_mut(&mut info)),
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(TcxLink { id: info.id, ifindex: info.ifindex })
}

/// Pins a link at `path`, which must not exist.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = ObjectPath { path: address(path.as_ptr()), fd: number(object), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens the pinned object at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = ObjectPath { path: address(path.as_ptr()), ..ObjectPath::default() };
    bpf_descriptor(BPF_OBJ_GET, &mut attributes)
}

/// A program at a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcxProgram {
    /// Its id.
    pub(super) id: u32,
    /// Id of the link that holds it there, 0 if none does.
    pub(super) link: u32,
}

/// The TCX programs at `hook` of an interface of this network namespace, in the order in which they run. Needs
/// `CAP_NET_ADMIN` only.
pub(super) fn tcx_programs(ifindex: u32, hook: Hook) -> io::Result<Vec<TcxProgram>> {
    let (mut ids, mut links) = ([0_u32; MAX_PROGRAMS], [0_u32; MAX_PROGRAMS]);
    let mut attributes = ProgramQuery {
        target_ifindex: ifindex,
        attach_type: attach_type(hook),
        prog_ids: address(ids.as_mut_ptr()),
        link_ids: address(links.as_mut_ptr()),
        count: u32::try_from(MAX_PROGRAMS).map_err(io::Error::other)?,
        ..ProgramQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count).map_err(io::Error::other)?;
    Ok(ids.into_iter().zip(links).map(|(id, link)| TcxProgram { id, link }).take(count).collect())
}

/// The value of `key` in a map with values of `size` bytes that is no per-CPU map, as bytes; `None` if it has no such key.
pub(super) fn map_value(map: BorrowedFd<'_>, key: u32, size: u32) -> io::Result<Option<Vec<u8>>> {
    // kernel: values are copied in units of eight bytes.
    let mut value = vec![0; usize::try_from(size).map_err(io::Error::other)?.next_multiple_of(size_of::<u64>())];
    let mut attributes = Element {
        map_fd: number(map),
        key: address(&raw const key),
        value: address(value.as_mut_ptr()),
        ..Element::default()
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) {
        Ok(_zero) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ticks a second: what `bpf_jiffies64` counts. `CLOCK_REALTIME_COARSE` advances once a tick.
#[expect(unsafe_code, reason = "clock_getres(2) fills a structure")]
pub(super) fn ticks_per_second() -> io::Result<u32> {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `resolution` is a live, exclusive `timespec`.
    if unsafe { libc::clock_getres(libc::CLOCK_REALTIME_COARSE, &raw mut resolution) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match (resolution.tv_sec, u32::try_from(resolution.tv_nsec)) {
        // Rounded: 300 ticks a second are 3,333,333 ns each.
        (0, Ok(nanoseconds)) if nanoseconds > 0 => Ok((1_000_000_000 + nanoseconds / 2) / nanoseconds),
        _ => Err(io::Error::other(format!("the coarse clock claims a resolution of {resolution:?}"))),
    }
}

/// One instruction of a program, as the kernel has it (`struct bpf_insn`): code, registers, offset, immediate.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `return bpf_jiffies64();`: a call (BPF_JMP | BPF_CALL) of helper 118, and an exit (BPF_JMP | BPF_EXIT).
pub(super) const CALL_JIFFIES: [Instruction; 2] = [
    Instruction { code: 0x85, registers: 0, offset: 0, immediate: 118 },
    Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
];

/// Loads a traffic classifier. The instructions are given, not read from anywhere.
pub(super) fn load_classifier(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: address(instructions.as_ptr()),
        license: address(c"Apache-2.0".as_ptr()),
        ..ProgramLoad::default()
    };
    bpf_descriptor(BPF_PROG_LOAD, &mut attributes)
}

/// Runs a classifier once on an empty frame; what it returned.
pub(super) fn run_classifier(program: BorrowedFd<'_>) -> io::Result<u32> {
    // kernel: net/bpf/test_run.c wants a whole Ethernet header.
    let frame = [0u8; 64];
    let mut attributes = ProgramRun {
        prog_fd: number(program),
        data_size_in: 64,
        data_in: address(frame.as_ptr()),
        repeat: 1,
        ..ProgramRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes.retval)
}

/// A `BPF_F_MMAPABLE` array of `u64`, mapped: a store is one atomic write that cannot fail.
pub(super) struct MappedWords {
    base: NonNull<AtomicU64>,
    length: usize,
}

#[expect(
    unsafe_code,
    reason = "a raw pointer makes the type neither; the memory is shared and only accessed atomically"
)]
// SAFETY: the mapping lives until drop, wherever that runs, and every access goes through an `AtomicU64`.
unsafe impl Send for MappedWords {}
#[expect(unsafe_code, reason = "as for `Send`")]
// SAFETY: as for `Send`.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps the `length` words of the array behind `map`.
    pub(super) fn new(map: BorrowedFd<'_>, length: u32) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let bytes = NonZeroUsize::new(length * size_of::<u64>()).ok_or_else(|| io::Error::other("the map is empty"))?;
        #[expect(unsafe_code, reason = "mmap(2)")]
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes.get(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { base, length })
    }

    /// Number of words.
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        #[expect(unsafe_code, reason = "the slice is the mapping")]
        // SAFETY: `base` is page-aligned and maps `length` words until drop; the kernel and the programs change them
        // behind our back, which `AtomicU64` allows.
        let words = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) };
        words.get(index)
    }

    /// The word at `index`, if there is one.
    pub(super) fn load(&self, index: usize) -> Option<u64> {
        self.word(index).map(|word| word.load(Ordering::Acquire))
    }

    /// Stores a word: true unless `index` is beyond the end. Everything written before is visible to whoever sees it.
    #[must_use]
    pub(super) fn store(&self, index: usize, value: u64) -> bool {
        self.word(index).is_some_and(|word| {
            word.store(value, Ordering::Release);
            true
        })
    }
}

impl Drop for MappedWords {
    #[expect(unsafe_code, reason = "munmap(2)")]
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no reference into it outlives `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.length * size_of::<u64>()) };
        debug_assert_eq!(result, 0, "munmap of a mapping of our own");
    }
}
