//! `netpol-agent cleanup`: leaves the node as it was before netpol. Also what an agent does that is asked to retire.
//!
//! In: where things are. Order, so that no pod is stuck on the way: first the CNI configuration and the plugin, by which new
//! pods wait for the agent; then every pod's packets pass; then programs, maps and pins go; then nftables' table, as nothing is deferred any more; then files.
//! Each part is tried even if an earlier one failed, and doing it twice is as good as once.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::anyhow;

use crate::cli::CleanupArgs;
use crate::cni::{install, records};
use crate::datapath::pins::{PinDir, PinError};
use crate::datapath::store::KernelStore;
use crate::datapath::{attach, backstop};
use crate::problem::chain;
use crate::socket;

/// Something that is still there.
#[derive(Debug, thiserror::Error)]
#[error("not everything could be removed, and what was not is still in force: {}", .0.join("; "))]
pub struct Incomplete(Vec<String>);

/// What was done.
#[derive(Debug, Default)]
struct Work {
    /// There was something to remove, as far as can be told.
    found: bool,
    failed: Vec<String>,
}

/// Removes everything of netpol from this node.
///
/// # Errors
/// A [`PinError`](crate::datapath::pins::PinError) if there is no BPF file system at the path or an agent is running; [`Incomplete`] if something is left.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let pins = PinDir::at(&args.bpffs)?;
    let lock = pins.lock_if_present().map_err(|error| match error {
        PinError::Locked { path } => anyhow!(
            "a netpol-agent is at work with {}; stop it first, or have it clean up by itself: `netpol cleanup --yes`",
            path.display()
        ),
        error @ (PinError::NotBpffs { .. } | PinError::Io { .. }) => error.into(),
    })?;
    let mut work = Work { found: lock.is_some(), ..Work::default() };
    if let Err(error) = socket::remove(&args.socket) {
        work.failed.push(chain(&error));
    }
    work.remove(args, &pins);
    // Made by the agent if it was not there; whatever else lies in it stays.
    if let Some(parent) = args.socket.parent() {
        work.remove_if_empty(parent);
    }
    Ok(work.end()?)
}

/// Removes everything but the socket; the caller is the agent that serves it, and holds the lock of the pins.
///
/// # Errors
/// If something is left.
pub fn retire(args: &CleanupArgs, pins: &PinDir) -> Result<(), Incomplete> {
    let mut work = Work { found: true, ..Work::default() };
    work.remove(args, pins);
    work.end()
}

impl Work {
    fn remove(&mut self, args: &CleanupArgs, pins: &PinDir) {
        match install::uninstall(&args.cni_conf_dir, &args.cni_bin_dir) {
            Ok(removed) => {
                self.found |= !removed.is_empty();
                removed.iter().for_each(|path| tracing::info!(path = %path.display(), "removed"));
            }
            Err(error) => self.failed.push(chain(&error)),
        }
        // Maps of another version, or none, are no obstacle: then hooks end as they are.
        match KernelStore::open(pins) {
            Ok(mut store) => {
                if let Err(error) = store.let_all_pass() {
                    tracing::warn!("{}", chain(&error));
                }
            }
            Err(error) => tracing::debug!("{}", chain(&error)),
        }
        if let Err(error) = attach::cleanup(pins) {
            self.failed.push(chain(&error));
        }
        if let Err(error) = backstop::remove() {
            self.failed.push(chain(&error));
        }
        if let Err(error) = records::clear(&args.state_dir) {
            self.failed.push(chain(&error));
        }
        self.remove_if_empty(&args.state_dir);
    }

    fn end(self) -> Result<(), Incomplete> {
        if !self.failed.is_empty() {
            return Err(Incomplete(self.failed));
        }
        if !self.found {
            tracing::info!("nothing to remove: this node has no CNI plugin, programs or maps of netpol");
            return Ok(());
        }
        tracing::info!("removed netpol's CNI plugin, programs, maps and files; traffic is no longer policed");
        Ok(())
    }

    fn judge(&mut self, path: &Path, result: io::Result<()>) {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.failed.push(format!("cannot remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }

    fn remove_if_empty(&mut self, path: &Path) {
        match fs::remove_dir(path) {
            // A mount point, as the agent's container has it, or somebody else's files.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {}
            result => self.judge(path, result),
        }
    }
}
