//! Egress to services: which packets are not judged where a pod sends them, what is judged where they leave, and which
//! replies that lets back in (design §3.5).
//!
//! A pod sends to a service's address; kube-proxy then rewrites the destination, and policy speaks of the backend. So
//! `from_pod` lets such a packet go with its slot in the mark and its flow's [`cookie`] in the hash, and the hook where it
//! leaves judges it under the slot's present policy, each packet anew: nothing is remembered there that could let anything
//! in. What is remembered is where the flow was led to, under its cookie; a reply from the service is let in only
//! if policy allows that backend now.

use super::cookie::cookie;
use super::decide::{whole, write_flow_key};
use super::{Stage, Tables, Verdict, merge};
use crate::abi::{AddressRole, Backend, BackendKey, Config, Direction, FlowKey, FlowWord, Reason, SLOT_NONE, Sender};
use crate::flow::Setting;
use crate::packet::{Address, Header, PacketBytes, Part, Scratch, settle_all};

/// Where fragments of a deferred datagram are seen, beside the two directions.
const AT_EXIT: u8 = 2;

/// True if a packet with this reason is judged where it leaves.
#[must_use]
#[inline(always)]
pub(super) const fn is_deferred(reason: Reason) -> bool {
    matches!(reason, Reason::Deferred | Reason::ToOwnNode)
}

impl<P: PacketBytes + ?Sized, T> Stage<'_, P, T> {
    /// Why egress to this peer is not judged here, if it is not. What ends at the node itself is never judged: a pod may
    /// reach its node.
    #[inline(always)]
    pub(super) fn deferral<A: Address>(&self, key: &FlowKey<A>) -> Option<Reason>
    where
        T: Tables<A>,
    {
        let role = self.tables.address_role(&key.peer);
        if role & AddressRole::SERVICE != 0 || self.is_in_service_range(&key.peer) {
            return Some(Reason::Deferred);
        }
        if role & AddressRole::OWN == 0 {
            return None;
        }
        if !self.flag(Config::ENFORCE_OWN_NODE) {
            return Some(Reason::ToOwnNode);
        }
        self.tables.is_node_port(key.protocol, key.peer_port).then_some(Reason::Deferred)
    }

    #[inline(always)]
    fn is_in_service_range<A: Address>(&self, address: &A) -> bool
    where
        T: Tables<A>,
    {
        let range = if A::WORDS == 1 { Setting::ServicesV4 } else { Setting::ServicesV6 };
        let [a, b, c, d] = address.widen();
        let differs = |word: u32, at: usize| {
            at < A::WORDS
                && word & self.tables.setting_behind(range, A::WORDS + at) != self.tables.setting_behind(range, at)
        };
        !differs(a, 0) && !differs(b, 1) && !differs(c, 2) && !differs(d, 3)
    }

    /// Judges a deferred packet of this stage's subject where it leaves. `header.source` becomes the pod's address, whatever
    /// translation made of it.
    #[inline(never)]
    pub(super) fn judge_at_exit<A: Address>(&self, scratch: &mut Scratch<A>) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let verdict = match scratch.header.part {
            Part::Later(_) => this.follow_at_exit(&scratch.header),
            Part::Whole | Part::First => this.judge_backend(scratch),
        };
        let verdict = merge(&mut scratch.header, verdict);
        if scratch.header.part == Part::First {
            this.record_fragment(&scratch.header, AT_EXIT, verdict);
        }
        if let Some(own) = A::of_endpoint(this.subject.endpoint) {
            scratch.header.source = own;
        }
        verdict
    }

    #[inline(always)]
    fn judge_backend<A: Address>(&self, scratch: &mut Scratch<A>) -> Verdict
    where
        T: Tables<A>,
    {
        let slot = self.subject.endpoint.slot;
        write_flow_key(scratch, Direction::Egress, slot);
        let Scratch { header, key, .. } = settle_all(scratch);
        if !self.any_source() && self.is_tunnel_to_node(header) {
            return Verdict(Reason::TunnelFromPod);
        }
        if self.judge(header, key, Direction::Egress, SLOT_NONE).is_drop() {
            return Verdict(Reason::DeniedAfterTranslation);
        }
        let address = header.destination.widen();
        let backend = Backend { address, port: header.destination_port, protocol: header.protocol, pad: 0 };
        self.tables.record_backend(&BackendKey { cookie: self.frame.hash, slot, pad: 0 }, &backend);
        Verdict(Reason::AllowedAfterTranslation)
    }

    /// A later fragment goes the way of its first one.
    #[inline(always)]
    fn follow_at_exit<A: Address>(&self, header: &Header<A>) -> Verdict
    where
        T: Tables<A>,
    {
        match self.first_fragment(header, AT_EXIT) {
            Some(reason) if reason.is_drop() => Verdict(reason),
            None if self.subject.policy.is_isolated(Direction::Egress) => Verdict(Reason::FragmentWithoutFirst),
            Some(_) | None => Verdict(Reason::AllowedAfterTranslation),
        }
    }

    /// A deferred packet for this pod: its sender's egress policy first. What is left in the header is whose packet it
    /// is, however it was masqueraded.
    #[inline(always)]
    pub(super) fn judge_sender<A: Address>(&self, scratch: &mut Scratch<A>) -> Result<(), Reason>
    where
        T: Tables<A>,
    {
        let Sender::Deferred(slot) = self.marked_sender() else {
            return Ok(());
        };
        let Some(sender) = self.tables.sender(slot) else {
            // Somebody else's mark: it says nothing, and the packet is no pod's.
            return Ok(());
        };
        let subject = &sender;
        let stage = Stage { packet: self.packet, frame: self.frame, subject, tables: self.tables };
        let seen_as = scratch.header.source.by_words();
        let is_masqueraded = A::of_endpoint(subject.endpoint) != Some(seen_as);
        scratch.header.on_behalf = slot;
        let Verdict(reason) = stage.judge_at_exit(scratch);
        if reason.is_drop() {
            return Err(reason);
        }
        scratch.header.source = seen_as;
        scratch.header.on_behalf = SLOT_NONE;
        self.tables.count_sender(slot, reason);
        if is_masqueraded && self.tables.address_role(&seen_as) & AddressRole::OWN != 0 {
            scratch.header.origin = slot;
        }
        Ok(())
    }

    /// The word of a deferred flow under which a packet that comes back is let in, or none if it is not. The node's own stack
    /// answers for what ended at the node.
    #[inline(always)]
    pub(super) fn confirmed<A: Address>(&self, scratch: &mut Scratch<A>, word: FlowWord) -> Option<FlowWord>
    where
        T: Tables<A>,
    {
        let policy = self.subject.policy;
        if word.has(FlowWord::CONFIRMED) && word.revision() == policy.revision() {
            return Some(word);
        }
        if scratch.header.from_node_stack {
            return Some(word);
        }
        let allowed = !policy.is_isolated(Direction::Egress)
            || self.finds_backend(scratch) && {
                let Scratch { header, at_backend, .. } = scratch;
                !self.judge(header, at_backend, Direction::Egress, SLOT_NONE).is_drop()
            };
        allowed.then(|| word.with_flag(FlowWord::CONFIRMED).with_revision(policy.revision()))
    }

    /// Puts the backend that the flow was led to in the peer's place; false if none is known.
    #[inline(never)]
    fn finds_backend<A: Address>(&self, scratch: &mut Scratch<A>) -> bool
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let Scratch { key, at_backend, .. } = scratch;
        let cookie = cookie(key, this.tables.secret());
        let Some(backend) = this.tables.backend(&BackendKey { cookie, slot: key.slot, pad: 0 }) else {
            return false;
        };
        at_backend.pod = key.pod.by_words();
        at_backend.peer = A::narrow(backend.address);
        at_backend.pod_port = key.pod_port;
        at_backend.peer_port = backend.port;
        at_backend.protocol = backend.protocol;
        at_backend.slot = key.slot;
        true
    }
}
