//! Devices through which packets leave the node: each gets the hook that judges what pods send to services.
//!
//! In: the node's view. Out: hooks on every uplink, and for those that could not get one a [`Problem`]. It knows no pods,
//! but that an interface which becomes a pod's is left to the pod's hooks. Start at [`Uplinks::follow`].

use std::collections::BTreeMap;

use netpol_common::abi::{Endpoint, EndpointFlags};

use crate::datapath::attach::{AttachError, Hooks, Role};
use crate::datapath::store::KernelStore;
use crate::node::view::{NodeView, Uplink};
use crate::observe::answer::UplinkReport;
use crate::problem::{Problem, Severity};

/// What becomes of packets that leave through a device without the hook: the backstop sees to that.
const UNHOOKED: &str = "what pods send to services through it is dropped until this is mended";

/// The uplinks that were seen last.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    known: BTreeMap<u32, Known>,
    /// What an earlier agent left on devices that are gone has been removed.
    swept: bool,
}

#[derive(Debug)]
struct Known {
    uplink: Uplink,
    attached: bool,
    problem: Option<Problem>,
}

impl Uplinks {
    /// Attaches what is new, tries again what failed, and forgets what is gone.
    pub(super) fn follow(&mut self, view: &NodeView, hooks: &mut Hooks, store: &mut KernelStore) {
        let gone: Vec<u32> = self.known.keys().filter(|it| !view.uplinks.contains_key(it)).copied().collect();
        for ifindex in gone {
            self.known.remove(&ifindex);
            // A pod's hooks take the place of this one, so that no packet meets neither.
            if !view.interfaces.contains_key(&ifindex) {
                take_down(ifindex, hooks, store);
            }
        }
        for uplink in view.uplinks.values() {
            match self.known.get_mut(&uplink.ifindex) {
                Some(known) if known.problem.is_none() && known.uplink.has_link_header == uplink.has_link_header => {
                    known.uplink.name.clone_from(&uplink.name);
                }
                _ => self.put(uplink, hooks, store),
            }
        }
        if !self.swept {
            self.swept = true;
            sweep(view, hooks, store);
        }
    }

    fn put(&mut self, uplink: &Uplink, hooks: &mut Hooks, store: &mut KernelStore) {
        let (attached, problem) = match attach(uplink, hooks, store) {
            // Its end will be told.
            Ok(Outcome::Gone) => return,
            Ok(Outcome::Attached) => (true, None),
            Ok(Outcome::Behind(programs)) => {
                let message = format!("other programs run before ours: {programs:?}");
                let effect = "what those let pass is not judged by the policies of services' backends";
                (true, Some(problem(uplink, message, effect)))
            }
            Err(message) => (false, Some(problem(uplink, message, UNHOOKED))),
        };
        self.known.insert(uplink.ifindex, Known { uplink: uplink.clone(), attached, problem });
    }

    /// Interface indexes of the devices whose hook is in place.
    pub(super) fn attached(&self) -> impl Iterator<Item = u32> {
        self.known.values().filter(|known| known.attached).map(|known| known.uplink.ifindex)
    }

    /// Devices that are not as they should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.known.values().filter_map(|known| known.problem.as_ref())
    }

    pub(super) fn statuses(&self) -> Vec<UplinkReport> {
        let status = |known: &Known| UplinkReport {
            name: known.uplink.name.clone(),
            ifindex: known.uplink.ifindex,
            state: if known.attached { "attached" } else { "failed" }.to_owned(),
        };
        self.known.values().map(status).collect()
    }
}

/// What came of attaching.
enum Outcome {
    Attached,
    /// Attached behind these programs.
    Behind(Vec<u32>),
    Gone,
}

fn attach(uplink: &Uplink, hooks: &mut Hooks, store: &mut KernelStore) -> Result<Outcome, String> {
    // Before the hook, which would look for a header that is not there.
    let written = if uplink.has_link_header {
        store.remove_endpoint(uplink.ifindex)
    } else {
        let headerless = Endpoint { flags: EndpointFlags::NO_LINK_HEADER, ..Endpoint::default() };
        store.write_endpoint(uplink.ifindex, &headerless)
    };
    written.map_err(|error| error.to_string())?;
    match hooks.attach(uplink.ifindex, Role::Uplink) {
        Ok(attachment) => {
            let ahead: Vec<u32> = attachment.ahead.into_iter().flat_map(|(_, programs)| programs).collect();
            Ok(if ahead.is_empty() { Outcome::Attached } else { Outcome::Behind(ahead) })
        }
        Err(AttachError::Gone { .. }) => Ok(Outcome::Gone),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes what an earlier agent left on interfaces that are gone, or that need no hook any more.
fn sweep(view: &NodeView, hooks: &mut Hooks, store: &mut KernelStore) {
    match hooks.left_by_earlier_agent() {
        Ok(left) => {
            for ifindex in left {
                if !view.uplinks.contains_key(&ifindex) && !view.interfaces.contains_key(&ifindex) {
                    take_down(ifindex, hooks, store);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot clean up after interfaces that are gone"),
    }
}

fn take_down(ifindex: u32, hooks: &mut Hooks, store: &mut KernelStore) {
    if let Err(error) = hooks.detach(ifindex) {
        tracing::warn!(ifindex, %error, "cannot clean up after a device that is gone");
    }
    if let Err(error) = store.remove_endpoint(ifindex) {
        tracing::warn!(ifindex, %error, "cannot clean up after a device that is gone");
    }
}

fn problem(uplink: &Uplink, message: String, effect: &str) -> Problem {
    Problem {
        severity: Severity::Refused,
        origin: "node".to_owned(),
        object: format!("device {}", uplink.name),
        field: String::new(),
        message,
        effect: effect.to_owned(),
    }
}
