//! bpf(2) as costs need it: a program of two instructions, and runs timed by the thread's own CPU time.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

// Command and type numbers of include/uapi/linux/bpf.h, which never change.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `r0 = -1; exit`: a classifier that lets every packet go on.
static INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
static LICENSE: &[u8] = b"GPL\0";

/// Member of `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Member `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    answer: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// The trivial program.
pub(super) struct Trivial(OwnedFd);

impl Trivial {
    /// Loads it.
    pub(super) fn load() -> Result<Self> {
        let mut load = ProgramLoad {
            kind: BPF_PROG_TYPE_SCHED_CLS,
            instruction_count: u32::try_from(INSTRUCTIONS.len())?,
            instructions: address(INSTRUCTIONS.as_ptr()),
            license: address(LICENSE.as_ptr()),
            ..ProgramLoad::default()
        };
        let fd = RawFd::try_from(bpf(BPF_PROG_LOAD, &mut load)?)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        #[expect(unsafe_code, reason = "bpf(2) returns a plain number")]
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(fd))
    }

    /// Its descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs a program so many times over a frame: the CPU time that this thread spent.
pub(super) fn run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8], repeat: u32) -> Result<Duration> {
    let mut run = TestRun {
        program: u32::try_from(program.as_raw_fd())?,
        data_size_in: u32::try_from(frame.len())?,
        data_in: address(frame.as_ptr()),
        repeat,
        context_size_in: u32::try_from(context.len())?,
        context_in: address(context.as_ptr()),
        ..TestRun::default()
    };
    let before = cpu_time()?;
    bpf(BPF_PROG_TEST_RUN, &mut run)?;
    Ok(cpu_time()? - before)
}

fn cpu_time() -> Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).context("cannot read the thread's CPU time")
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for these commands")]
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is the member of `union bpf_attr` that belongs to the command, of the size that is passed; what
    // its addresses point to outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
