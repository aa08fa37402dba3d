//! Which devices a service's packet may leave through, as the backstop is told.
//!
//! In: what is attached. Out: the backstop's set, narrowed before a hook goes and widened after one came.

use std::collections::BTreeSet;

use super::Enforcer;
use crate::datapath::backstop::BackstopError;
use crate::node::view::NodeView;
use crate::problem::{Problem, Severity};

impl Enforcer {
    /// Devices where deferred packets are judged, and those whose packets come to another one.
    pub(super) fn hooked(&self, view: &NodeView) -> BTreeSet<u32> {
        let uplinks = self.uplinks.attached().filter(|ifindex| view.uplinks.contains_key(ifindex));
        let pods = self.attached.keys().copied().filter(|ifindex| view.interfaces.contains_key(ifindex));
        // Where an earlier agent's programs still run, they judge.
        let live = self.live.iter().copied();
        view.passages.iter().copied().chain(uplinks).chain(pods).chain(live).collect()
    }

    /// Makes the backstop before the first pod's hook is there; pods that an earlier agent attached are not cut off.
    pub(super) fn begin_backstop(&mut self, view: &NodeView) {
        let mut devices = self.hooked(view);
        match self.hooks.left_by_earlier_agent() {
            Ok(left) => devices.extend(left),
            Err(error) => tracing::warn!(%error, "cannot tell which interfaces an earlier agent attached"),
        }
        self.let_out(devices);
    }

    pub(super) fn let_out(&mut self, devices: BTreeSet<u32>) {
        let result = self.backstop.let_out(&devices);
        self.judge_backstop(result);
    }

    fn judge_backstop(&mut self, result: Result<(), BackstopError>) {
        self.backstop_problem = result.err().map(|error| Problem {
            severity: match error {
                BackstopError::Missing(_) => Severity::Note,
                BackstopError::Refused { .. } => Severity::Refused,
            },
            origin: "node".to_owned(),
            object: "nftables table inet netpol".to_owned(),
            field: String::new(),
            message: error.to_string(),
            effect: "what pods send to services is not stopped on a device that lacks netpol's hook".to_owned(),
        });
    }

    /// Looks after what others can take away: call it now and then. True if [`Enforcer::problems`] are others than before.
    pub fn tend(&mut self) -> bool {
        let before = self.backstop_problem.clone();
        if self.backstop.is_made() {
            let result = self.backstop.restore();
            self.judge_backstop(result);
        }
        self.backstop_problem != before
    }
}
