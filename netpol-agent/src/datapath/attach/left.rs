//! What earlier agents left at the hooks: which of it lives here, which is dead, which is somebody else's now.
//!
//! In: the pin directory. Out: the live links, and the rest put out of the way. A pin can outlive what it is about: its
//! interface may be gone, the index may belong to another interface, the whole network namespace may be another one. So
//! nothing counts but what the kernel finds at an interface of *this* namespace: a TCX link by its id, a filter by its name.
//! Both end with their interface, hence what is live was attached to this very interface. Programs are not needed.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netpol_common::abi::Hook;

use super::{AttachError, DIRECTIONS, HOOKS, QDISC, Role, refused};
use crate::datapath::pins::PinDir;
use crate::datapath::sys::TcxProgram;
use crate::datapath::{sys, tc};

/// The pinned link of a hook if it lives at this interface. A pin that is about another interface frees the name: a dead
/// one is removed, one that lives in another network namespace goes on there under another name.
pub(super) fn live_link(pins: &PinDir, ifindex: u32, hook: Hook) -> Result<Option<OwnedFd>, AttachError> {
    let path = pins.link(ifindex, hook);
    let link = match sys::open_pin(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused("open the pinned link of", ifindex, hook)(error)),
    };
    let info = sys::link_info(link.as_fd()).map_err(refused("read the pinned link of", ifindex, hook))?;
    let here = match tcx_programs(ifindex, hook) {
        Err(AttachError::Gone { .. }) => Vec::new(),
        other => other?,
    };
    if here.iter().any(|program| program.link == info.id) {
        return Ok(Some(link));
    }
    if info.ifindex == 0 {
        pins.remove(&path)?;
    } else {
        tracing::warn!(
            ifindex,
            link = info.id,
            "a program of ours runs in another network namespace and is left alone"
        );
        pins.set_aside(ifindex, hook, info.id)?;
    }
    Ok(None)
}

/// True if a program of an earlier agent sits at a hook of this interface: whatever is known of the interface's index in
/// this role is about this interface.
pub(super) fn is_live(pins: &PinDir, ifindex: u32, role: Role) -> Result<bool, AttachError> {
    for &hook in role.hooks() {
        if live_link(pins, ifindex, hook)?.is_some() {
            return Ok(true);
        }
        let failed = refused("look for the filter of", ifindex, hook);
        match tc::own_filter(ifindex, hook).map_err(failed) {
            Ok(tc::Filter::Ours { .. }) => return Ok(true),
            Ok(tc::Filter::Absent | tc::Filter::Foreign) | Err(AttachError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Removes everything of ours from the kernel: hooks of every interface in this network namespace, links, maps. Needs no
/// programs and no working agent.
///
/// # Errors
/// The first removal that failed; run it again.
pub fn cleanup(pins: &PinDir) -> Result<(), AttachError> {
    for ifindex in interfaces()? {
        detach_tcx(pins, ifindex, &HOOKS)?;
        detach_clsact(pins, ifindex)?;
    }
    Ok(pins.remove_all()?)
}

/// Every interface of this network namespace.
pub(super) fn interfaces() -> Result<BTreeSet<u32>, AttachError> {
    let interfaces = nix::net::if_::if_nameindex().map_err(|error| AttachError::Interfaces(error.into()))?;
    Ok(interfaces.iter().map(|interface| interface.index()).collect())
}

/// Forgets the pins of interfaces that are gone.
pub(super) fn collect_vanished(pins: &PinDir) -> Result<(), AttachError> {
    let present = interfaces()?;
    for ifindex in pins.interfaces()? {
        for hook in HOOKS {
            live_link(pins, ifindex, hook)?;
        }
        if !present.contains(&ifindex) {
            pins.remove(&pins.clsact_mark(ifindex))?;
        }
    }
    for path in pins.set_aside_earlier()? {
        let dead = |link: OwnedFd| sys::link_info(link.as_fd()).is_ok_and(|info| info.ifindex == 0);
        if sys::open_pin(&path).is_ok_and(dead) {
            pins.remove(&path)?;
        }
    }
    Ok(())
}

/// Takes our TCX programs off these hooks of an interface.
pub(super) fn detach_tcx(pins: &PinDir, ifindex: u32, hooks: &[Hook]) -> Result<(), AttachError> {
    // from_pod first: until to_pod is gone, what reaches the pod is still judged.
    for &hook in hooks.iter().rev() {
        if let Some(link) = live_link(pins, ifindex, hook)? {
            // Without its pin the link would end too, but some time later.
            sys::link_detach(link.as_fd()).map_err(refused("detach", ifindex, hook))?;
            pins.remove(&pins.link(ifindex, hook))?;
        }
    }
    Ok(())
}

/// Takes our filters off these hooks of an interface.
pub(super) fn detach_filters(ifindex: u32, hooks: &[Hook]) -> Result<(), AttachError> {
    for &hook in hooks.iter().rev() {
        let failed = |operation| refused(operation, ifindex, hook);
        let result = match tc::own_filter(ifindex, hook) {
            Ok(tc::Filter::Ours { .. }) => tc::remove_filter(ifindex, hook),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match result.map_err(failed("detach")) {
            Ok(()) | Err(AttachError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes all our filters, and the qdisc if we made it and nobody else uses it.
pub(super) fn detach_clsact(pins: &PinDir, ifindex: u32) -> Result<(), AttachError> {
    detach_filters(ifindex, &HOOKS)?;
    let mark = pins.clsact_mark(ifindex);
    if !mark.exists() {
        return Ok(());
    }
    let left = DIRECTIONS.into_iter().map(|hook| tc::count_filters(ifindex, hook).unwrap_or(1));
    if left.sum::<usize>() == 0 {
        match tc::remove_clsact(ifindex).map_err(refused("remove the clsact qdisc for", ifindex, QDISC)) {
            Ok(()) | Err(AttachError::Gone { .. }) => {}
            // Marked, and ended before it was made.
            Err(AttachError::Refused { source, .. }) if is_absent(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pins.remove(&mark)?)
}

/// What the kernel says of a qdisc that is not there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL))
}

/// The TCX programs at a hook; none on a kernel without TCX.
pub(super) fn tcx_programs(ifindex: u32, hook: Hook) -> Result<Vec<TcxProgram>, AttachError> {
    match sys::tcx_programs(ifindex, hook) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        other => other.map_err(refused("list the programs beside", ifindex, hook)),
    }
}
