//! For tests that need the kernel: a throw-away mount and network namespace with a BPF file system, and pods in network
//! namespaces of their own. Nothing outlives the test, however it ends, as namespaces go with their last thread.
//!
//! Where privileges or the BPF object are missing a test says why and skips; under CI it fails.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, panic, process, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// What a test in [`in_sandbox`] has to work with.
pub(crate) struct Sandbox {
    /// A BPF file system of its own.
    pub(crate) bpffs: PathBuf,
}

/// A network namespace.
pub(crate) struct Netns(File);

/// Runs a test on a thread with its own network namespace, mounts and BPF file system.
pub(crate) fn in_sandbox(test: impl FnOnce(&Sandbox) + Send) {
    let directory = env::temp_dir().join(format!("netpol-test-{}-{:?}", process::id(), thread::current().id()));
    let outcome = thread::scope(|scope| {
        let body = || {
            if let Err(reason) = enter(&directory) {
                return skip(&reason);
            }
            test(&Sandbox { bpffs: directory.clone() });
        };
        scope.spawn(body).join()
    });
    let removed = fs::remove_dir(&directory);
    if let Err(panicked) = outcome {
        panic::resume_unwind(panicked);
    }
    removed.unwrap();
}

/// Skips the running test, loudly; under CI a test that cannot run has failed.
pub(crate) fn skip(reason: &str) {
    assert!(env::var_os("CI").is_none(), "cannot run under CI: {reason}");
    println!("skipped: {reason}");
}

/// True if the agent under test holds a BPF object; else skips.
pub(crate) fn has_object() -> bool {
    let present = crate::datapath::loader::embedded_object().is_ok();
    if !present {
        skip("built without the BPF object: set NETPOL_BPF_OBJECT, or run `cargo xtask test`");
    }
    present
}

fn enter(directory: &PathBuf) -> Result<(), String> {
    let step = |what: &'static str| move |error: nix::Error| format!("{what}: {error} (needs root)");
    fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(step("cannot make namespaces"))?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(step("cannot detach mounts"))?;
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), nothing).map_err(step("cannot mount a bpffs"))?;
    ip("link set lo up");
    Ok(())
}

impl Netns {
    /// The namespace of this thread.
    pub(crate) fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// A new namespace with its loopback up.
    pub(crate) fn new() -> Self {
        let netns = thread::scope(|scope| {
            let make = || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                Self::current()
            };
            scope.spawn(make).join().unwrap()
        });
        netns.run(|| ip("link set lo up"));
        netns
    }

    /// Runs something in the namespace, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// A path that `ip link set ... netns` takes.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }
}

/// Runs `ip` with these arguments; it must succeed.
pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program with these arguments and returns what it prints; it must succeed.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Index of an interface by name.
pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
