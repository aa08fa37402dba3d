//! [`Compiler`]: events in, one step of the desired datapath after the other out.
//!
//! A step is either *made* or *retired*:
//! - Making takes events in and only adds: new contents and identities get their entries beside the old ones, and what a
//!   content that goes away asked stays in the signatures. So words can move one by one while every packet sees the policy
//!   before or after, whole.
//! - Retiring, once everything before is in the maps, drops contents and identities that nobody has, and lets signatures
//!   shrink. Were both one step, addresses would lose what the old policy asked of them before the words have moved, and
//!   allowed packets would be dropped for a moment.
//!
//! Events are made in their order, in groups that touch either peers (who has which labels) or subjects (which policies
//! isolate whom); with both in one step a packet could meet an old policy with new labels, a state that never was.

mod passes;
mod problems;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::answers::{Answers, Output};
use super::cidr::Regions;
use super::criteria::Criteria;
use super::identities::Identities;
use super::limits::Limits;
use super::peers::PeerIndex;

use super::provenance::Provenance;
use super::subjects::Subjects;
use crate::cluster::model::{ClusterEvent, Object, ObjectRef, PodKey};
use crate::cluster::{Change, ClusterState};
use crate::datapath::desired::{DesiredDatapath, Touched};
use crate::datapath::ids::NumbersInUse;
use crate::problem::Problem;
use passes::Work;

/// One step on the way to what is desired: [`Compiler::desired`] is what the maps should hold after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where that differs from the step before.
    pub touched: Touched,
    /// What changed in the cluster, if anything did.
    pub changes: Vec<Change>,
}

/// Something that waits for its step.
enum Queued {
    Event(ClusterEvent),
    Slot(u16, Option<PodKey>),
}

/// What a queued item may change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touches {
    Nothing,
    Peers,
    Subjects,
    Both,
}

/// Exact addresses of a family in the maps; those removed in a step make room only after it.
#[derive(Clone, Copy, Default)]
struct AddressCount {
    present: usize,
    removed: usize,
}

/// Compiles cluster state and local pods into a [`DesiredDatapath`], incrementally.
///
/// Owns the [`ClusterState`], as a step must see exactly the events that belong to it. Start with [`Self::apply`] and
/// [`Self::set_local`], then take steps with [`Self::next_step`] and report on each with [`Self::applied`].
pub struct Compiler {
    limits: Limits,
    state: ClusterState,
    queue: VecDeque<Queued>,
    /// What `set_local` was last told; the slots in `subjects` follow step by step.
    asked: BTreeMap<u16, PodKey>,
    /// Slots that the maps do not have.
    impossible: BTreeMap<u16, PodKey>,
    criteria: Criteria,
    peers: PeerIndex,
    regions: Regions,
    identities: Identities,
    answers: Answers,
    subjects: Subjects,
    /// Addresses that did not fit.
    refused_addresses: BTreeSet<IpAddr>,
    v4_addresses: AddressCount,
    v6_addresses: AddressCount,
    out: Output,
    provenance: Arc<Provenance>,
    /// Steps handed out so far.
    steps: u64,
    /// Everything handed out is in the maps.
    settled: bool,
    /// Something was freed, so what did not fit may fit now.
    retry: bool,
}

impl Compiler {
    /// A compiler that knows nothing yet. `in_use` are the numbers in the maps of an earlier run.
    #[must_use]
    pub fn new(limits: Limits, in_use: NumbersInUse) -> Self {
        Self {
            state: ClusterState::default(),
            queue: VecDeque::new(),
            asked: BTreeMap::new(),
            impossible: BTreeMap::new(),
            criteria: Criteria::default(),
            peers: PeerIndex::default(),
            regions: Regions::default(),
            identities: Identities::new(in_use.identities),
            answers: Answers::new(&limits, in_use.port_sets),
            subjects: Subjects::new(limits.last_policy, in_use.policies),
            refused_addresses: BTreeSet::new(),
            v4_addresses: AddressCount::default(),
            v6_addresses: AddressCount::default(),
            out: Output::default(),
            provenance: Arc::default(),
            steps: 0,
            settled: true,
            retry: false,
            limits,
        }
    }

    /// Takes an event in; it has its effect in one of the next steps.
    pub fn apply(&mut self, event: ClusterEvent) {
        self.queue.push_back(Queued::Event(event));
    }

    /// Says which pods have a slot on this node, all of them. A pod that the cluster does not know (yet) is denied.
    pub fn set_local(&mut self, slots: BTreeMap<u16, PodKey>) {
        for (slot, pod) in &slots {
            if self.asked.get(slot) != Some(pod) {
                self.queue.push_back(Queued::Slot(*slot, Some(pod.clone())));
            }
        }
        for slot in self.asked.keys().filter(|slot| !slots.contains_key(slot)) {
            self.queue.push_back(Queued::Slot(*slot, None));
        }
        self.asked = slots;
    }

    /// The next step, or `None` when there is nothing to do (or, for now, nothing that may be done before the steps so far
    /// are in the maps). Carry it out, and report with [`Self::applied`].
    pub fn next_step(&mut self) -> Option<Step> {
        while !self.queue.is_empty() {
            let group = self.next_group();
            let changes = self.make(group);
            if let Some(step) = self.hand_out(changes) {
                return Some(step);
            }
        }
        if !self.settled {
            return None;
        }
        // What is dropped may have left no entry; then there is more to do in the same step.
        while self.retire() {
            self.retry = true;
            if let Some(step) = self.hand_out(Vec::new()) {
                return Some(step);
            }
        }
        if std::mem::take(&mut self.retry) {
            self.retry_refused();
        }
        self.hand_out(Vec::new())
    }

    /// Says what became of the last step: everything desired is in the maps, and nothing else, or not yet.
    pub fn applied(&mut self, complete: bool) {
        self.settled = complete;
        if !complete {
            return;
        }
        let policies = self.subjects.carried_out(self.steps);
        let identities = self.identities.carried_out(self.steps);
        self.answers.carried_out(self.steps);
        if !policies.is_empty() || !identities.is_empty() {
            Arc::make_mut(&mut self.provenance).forget(&policies, &identities);
        }
    }

    /// Takes all steps as if each were carried out: for `--check` and tests, which have no maps.
    pub fn settle(&mut self) -> &DesiredDatapath {
        while self.next_step().is_some() {
            self.applied(true);
        }
        self.desired()
    }

    /// What the maps should hold after the last step.
    #[must_use]
    pub fn desired(&self) -> &DesiredDatapath {
        &self.out.desired
    }

    /// The cluster as of the last step.
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Everything that is not enforced as written, as of the last step.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        problems::of(self)
    }

    /// What allows and isolates whom, as of the last step; keeps what was dropped until its number may come again.
    #[must_use]
    pub fn provenance(&self) -> Arc<Provenance> {
        self.provenance.clone()
    }

    #[cfg(test)]
    pub(super) fn criteria_in_use(&self) -> usize {
        self.criteria.len()
    }

    fn hand_out(&mut self, changes: Vec<Change>) -> Option<Step> {
        self.answers.end_step();
        for count in [&mut self.v4_addresses, &mut self.v6_addresses] {
            count.present -= std::mem::take(&mut count.removed);
        }
        let touched = std::mem::take(&mut self.out.touched);
        if touched.is_empty() {
            return None;
        }
        self.steps += 1;
        self.settled = false;
        Some(Step { touched, changes })
    }

    /// Number of the step that is being worked on.
    fn step(&self) -> u64 {
        self.steps + 1
    }

    /// Takes the items that make the next step off the queue: as many as touch only peers or only subjects.
    fn next_group(&mut self) -> Vec<Queued> {
        let mut group = Vec::new();
        let mut kind = Touches::Nothing;
        while let Some(item) = self.queue.front() {
            let touches = self.touches(item);
            if touches != Touches::Nothing {
                if kind != Touches::Nothing && (kind != touches || touches == Touches::Both) {
                    break;
                }
                kind = touches;
            }
            group.extend(self.queue.pop_front());
        }
        group
    }

    fn touches(&self, item: &Queued) -> Touches {
        match item {
            Queued::Slot(..)
            | Queued::Event(
                ClusterEvent::Apply(Object::NetworkPolicy(_)) | ClusterEvent::Delete(ObjectRef::NetworkPolicy(_)),
            ) => Touches::Subjects,
            Queued::Event(ClusterEvent::Apply(Object::Pod(pod))) => self.pod_touches(&pod.key),
            Queued::Event(ClusterEvent::Delete(ObjectRef::Pod(key))) => self.pod_touches(key),
            Queued::Event(
                ClusterEvent::Apply(Object::Namespace(_)) | ClusterEvent::Delete(ObjectRef::Namespace(_)),
            ) => Touches::Peers,
            Queued::Event(ClusterEvent::Apply(Object::Service(_)) | ClusterEvent::Delete(ObjectRef::Service(_))) => {
                Touches::Nothing
            }
        }
    }

    fn pod_touches(&self, key: &PodKey) -> Touches {
        if self.subjects.is_local(key) { Touches::Both } else { Touches::Peers }
    }

    fn make(&mut self, group: Vec<Queued>) -> Vec<Change> {
        let mut work = Work::default();
        let mut changes = Vec::new();
        for item in group {
            match item {
                Queued::Slot(slot, pod) => self.set_slot(slot, pod, &mut work),
                Queued::Event(event) => {
                    let change = self.state.apply(event);
                    self.note(&change, &mut work);
                    if change != Change::Nothing {
                        changes.push(change);
                    }
                }
            }
        }
        self.carry_through(work);
        changes
    }
}
