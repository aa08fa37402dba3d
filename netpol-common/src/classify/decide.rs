//! Flow, then policy: the part of the decision that is the same in both directions.

use super::cookie::{cookie, fingerprint};
use super::deferred::is_deferred;
use super::{Found, Shared, Stage, Tables, Verdict, merge};
use crate::abi::{
    AddressRole, AllowKey, Config, Direction, Flow, FlowKey, FlowState, FlowWord, FragmentCell, POLICY_DENY,
    POLICY_NOT_ISOLATED, PortRule, Reason, SLOT_NONE, Sender,
};
use crate::flow::{self, Setting};
use crate::packet::{Address, Header, Icmp, PacketBytes, Part, Quoted, Scratch, protocol, settle_all, tcp_flag};

/// What may be done with the flow table for this packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opens {
    /// Opens a flow if policy allows it.
    Yes,
    /// TCP in mid-stream: opens one as picked up.
    InMidStream,
    /// Is judged, but leaves no entry (RST, SYN-ACK, echo reply): it can only belong to a flow that we do not know; or it
    /// has no flows at all (ICMP that is not echo).
    No,
}

impl<'a, P: PacketBytes + ?Sized, T> Stage<'a, P, T> {
    /// Judges a packet whose header is parsed and whose ends are checked.
    #[inline(always)]
    pub(super) fn decide<A: Address>(&self, scratch: &mut Scratch<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let part = scratch.header.part;
        if let Part::Later(offset) = part {
            return this.follow_first_fragment(scratch, direction, offset);
        }
        let verdict = this.decide_flow(scratch, direction);
        if part == Part::First {
            this.record_fragment(&scratch.header, direction as u8, verdict);
        }
        verdict
    }

    /// A later fragment goes the way of its first one.
    #[inline(always)]
    fn follow_first_fragment<A: Address>(&self, scratch: &mut Scratch<A>, direction: Direction, offset: u16) -> Verdict
    where
        T: Tables<A>,
    {
        let header = &scratch.header;
        if offset < header.first_later_offset() {
            return Verdict(Reason::FragmentTooSmall);
        }
        match self.first_fragment(&scratch.header, direction as u8) {
            Some(reason) => Verdict(reason),
            None if self.is_unpoliced() => Verdict(Reason::NotIsolated),
            None => self.decide_ahead(scratch, direction),
        }
    }

    /// A later fragment whose first one was not seen: datagrams may arrive in any order. It has no port to be judged by, and
    /// is of no use to the receiver before the first one, which will be; so it passes where policy allows the peer some port
    /// of the protocol in this direction.
    #[inline(never)]
    fn decide_ahead<A: Address>(&self, scratch: &mut Scratch<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        write_flow_key(scratch, direction, this.subject.endpoint.slot);
        let Scratch { header, key, .. } = settle_all(scratch);
        if let Some(reason) = this.excuse(header, key, direction) {
            return Verdict(reason);
        }
        let policy = this.subject.policy.policy(direction);
        if policy == POLICY_NOT_ISOLATED {
            return Verdict(Reason::FragmentAhead);
        }
        header.judged_policy = policy;
        let identity = this.peer_identity(key, header.origin);
        header.judged_identity = identity;
        let rule = rule_for(this.tables, policy, identity, header.protocol);
        Verdict(if rule == PortRule::None { Reason::FragmentWithoutFirst } else { Reason::FragmentAhead })
    }

    /// What the first fragment of this one's datagram makes of it, if it was seen at this place.
    #[inline(always)]
    pub(super) fn first_fragment<A: Address>(&self, header: &Header<A>, at: u8) -> Option<Reason>
    where
        T: Shared,
    {
        let fingerprint = fingerprint(header, at, self.tables.secret());
        let cell = self.tables.fragment(FragmentCell::index(self.subject.endpoint.slot, fingerprint));
        cell.for_later(fingerprint, self.tables.now(), self.tables.setting(Setting::Fragment))
    }

    /// Remembers what became of a first fragment at this place.
    #[inline(always)]
    pub(super) fn record_fragment<A: Address>(&self, header: &Header<A>, at: u8, Verdict(reason): Verdict)
    where
        T: Shared,
    {
        let fingerprint = fingerprint(header, at, self.tables.secret());
        let cell = FragmentCell::new(fingerprint, self.tables.now(), reason);
        self.tables.set_fragment(FragmentCell::index(self.subject.endpoint.slot, fingerprint), cell);
    }

    /// True if no policy isolates the pod in any direction.
    #[inline(always)]
    fn is_unpoliced(&self) -> bool {
        Direction::ALL.iter().all(|&direction| !self.subject.policy.is_isolated(direction))
    }

    #[inline(always)]
    fn decide_flow<A: Address>(&self, scratch: &mut Scratch<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        write_flow_key(scratch, direction, self.subject.endpoint.slot);
        let scratch = settle_all(scratch);
        let mut old = None;
        if has_flow(&scratch.header)
            && let Some(found) = self.tables.find_flow(&scratch.key)
        {
            let limit = self.tables.setting(flow::timeout(scratch.header.protocol, found.flow.word.state()));
            if flow::is_live(self.tables.now(), found.flow.last_seen, limit)
                && let Some(verdict) = self.decide_known(scratch, direction, &found)
            {
                return self.name_deferred(&scratch.key, verdict);
            }
            old = Some(found.handle);
        }
        scratch.opens = 0;
        let verdict = self.decide_new(scratch, direction);
        let scratch = settle_all(scratch);
        let verdict = merge(&mut scratch.header, verdict);
        let recorded = scratch.opens == 0 || self.record(scratch, old);
        // A full table must not cut what policy allows; the counter tells.
        self.name_deferred(&scratch.key, if recorded { verdict } else { Verdict(Reason::FlowNotRecorded) })
    }

    /// Adds the flow that a packet opens, or writes it over an old entry of the same key. False if there was no room.
    // verifier: called from the outermost function, as what makes room needs a third of the stack.
    #[inline(always)]
    fn record<A: Address>(&self, scratch: &Scratch<A>, old: Option<T::Handle>) -> bool
    where
        T: Tables<A>,
    {
        match old {
            Some(handle) => {
                self.tables.replace_flow(handle, &scratch.opened);
                true
            }
            None => self.tables.open_flow(&scratch.key, &scratch.opened),
        }
    }

    /// Names the flow of a packet that is judged where it leaves.
    #[inline(always)]
    fn name_deferred<A: Address>(&self, key: &FlowKey<A>, verdict: Verdict) -> Verdict
    where
        T: Tables<A>,
    {
        if is_deferred(verdict.0) {
            self.tables.set_cookie(cookie(key, self.tables.secret()));
        }
        verdict
    }

    /// A packet of a live flow. The opener's tuple is judged again when the slot's revision has moved, whichever
    /// direction the packet has: a server that pushes to a revoked client must stop too.
    /// None if the packet does not belong to the flow but opens a new one.
    #[inline(always)]
    fn decide_known<A: Address>(
        &self,
        scratch: &mut Scratch<A>,
        direction: Direction,
        found: &Found<T::Handle>,
    ) -> Option<Verdict>
    where
        T: Tables<A>,
    {
        let now = self.tables.now();
        let from_opener = found.flow.word.opener() == direction;
        let word = match self.current(scratch, &found.flow, from_opener) {
            Ok(word) => word,
            Err(reason) => return Some(Verdict(reason)),
        };
        let Scratch { header, key, .. } = scratch;
        let replaceable = !from_opener || matches!(word.state(), FlowState::Closing | FlowState::Revoked);
        if replaceable && flow::is_syn(header.protocol, header.tcp_flags) {
            return None;
        }
        // With identifier 0 both ends' requests have one key; a request still answers nothing, nor does a reply ask.
        if header.protocol == A::ICMP && (A::icmp(header.icmp_type) == Icmp::EchoReply) == from_opener {
            return None;
        }
        if word.state() == FlowState::Revoked {
            self.tables.update_flow(found, &flow::seen(found.flow, word, now));
            header.judged_policy = self.subject.policy.policy(word.opener());
            return Some(Verdict(Reason::FlowRevoked));
        }
        let next = flow::seen(found.flow, flow::advance(word, header.protocol, header.tcp_flags, direction), now);
        let settled = flow::is_settled(next.word, header.protocol, from_opener);
        let promoted = !found.answered && settled && self.tables.promote_flow(key, &next);
        if !promoted && next != found.flow {
            self.tables.update_flow(found, &next);
        }
        let reason = match (from_opener, word.has(FlowWord::DEFERRED), word.has(FlowWord::EXEMPT)) {
            (true, true, true) => Reason::ToOwnNode,
            (true, true, false) => Reason::Deferred,
            (true, false, _) => Reason::Established,
            (false, ..) => Reason::Reply,
        };
        Some(Verdict(reason))
    }

    /// The flow's word under the slot's present revision; an error if its packet is refused without being the flow's end.
    #[inline(always)]
    fn current<A: Address>(&self, scratch: &mut Scratch<A>, flow: &Flow, from_opener: bool) -> Result<FlowWord, Reason>
    where
        T: Tables<A>,
    {
        let word = flow.word;
        if word.has(FlowWord::DEFERRED) {
            // The pod's own packets are judged where they leave.
            return if from_opener { Ok(word) } else { self.confirmed(scratch, word).ok_or(refusal(word)) };
        }
        let revision = self.subject.policy.revision();
        if word.revision() == revision {
            return Ok(word);
        }
        let Scratch { header, key, .. } = scratch;
        let allowed = word.has(FlowWord::EXEMPT) || !self.judge(header, key, word.opener(), flow.origin).is_drop();
        let state = if allowed { flow::resumed_state(word) } else { FlowState::Revoked };
        Ok(word.with_state(state).with_revision(revision))
    }

    /// A packet of no live flow: judged by policy in its own direction. The flow that it opens is left in `scratch`.
    // verifier: here and below, a function of its own is verified once for each call, not once for each path to it.
    #[inline(never)]
    fn decide_new<A: Address>(&self, scratch: &mut Scratch<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let Scratch { header, key, opened, opens: opens_flow, .. } = scratch;
        let opens = opens(header);
        if opens == Opens::InMidStream && this.flag(Config::STRICT_TCP) && !this.is_unpoliced() {
            return Verdict(Reason::MidStream);
        }
        let excuse = this.excuse(header, key, direction);
        let verdict = match excuse {
            Some(reason) => Verdict(reason),
            None => this.judge(header, key, direction, header.origin),
        };
        let verdict = merge(header, verdict);
        if verdict.is_drop() || opens == Opens::No || is_to_group(header, direction) {
            return verdict;
        }
        let mut flags = match excuse {
            Some(Reason::Deferred) => FlowWord::DEFERRED,
            Some(Reason::ToOwnNode) => FlowWord::DEFERRED | FlowWord::EXEMPT,
            Some(_) => FlowWord::EXEMPT,
            None => 0,
        };
        if opens == Opens::InMidStream {
            flags |= FlowWord::PICKED_UP;
        }
        let word = FlowWord::new(FlowState::Opening, direction, flags, this.subject.policy.revision());
        *opened = flow::opened(word, this.tables.now(), header.origin);
        *opens_flow = 1;
        if opens == Opens::InMidStream && excuse.is_none() { Verdict(Reason::PickedUp) } else { verdict }
    }

    /// Why policy is not asked about a packet of no flow, if it is not.
    #[inline(always)]
    fn excuse<A: Address>(&self, header: &Header<A>, key: &FlowKey<A>, direction: Direction) -> Option<Reason>
    where
        T: Tables<A>,
    {
        if direction == Direction::Egress {
            return self.deferral(key);
        }
        if header.from_own_node {
            return Some(Reason::FromOwnNode);
        }
        header.to_self.then_some(Reason::ToSelf)
    }

    /// Policy: may the flow's ends talk, opened in `direction`? The port is the one that the opener went for. What the
    /// peer was judged as is left in the header, for the event.
    ///
    /// `origin`: the slot of the peer, if it is a pod of this node that a masquerade hides.
    #[inline(never)]
    pub(super) fn judge<A: Address>(
        &self,
        header: &mut Header<A>,
        key: &FlowKey<A>,
        direction: Direction,
        origin: u16,
    ) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let policy = this.subject.policy.policy(direction);
        if policy == POLICY_NOT_ISOLATED {
            return Verdict(Reason::NotIsolated);
        }
        if direction == Direction::Egress {
            if A::of_endpoint(this.subject.endpoint) == Some(key.peer.by_words()) {
                return Verdict(Reason::ToSelf);
            }
            if this.is_own_node(&key.peer) && !this.flag(Config::ENFORCE_OWN_NODE) {
                return Verdict(Reason::ToOwnNode);
            }
        }
        let port = match direction {
            Direction::Ingress => key.pod_port,
            Direction::Egress => key.peer_port,
        };
        header.judged_policy = policy;
        if policy == POLICY_DENY {
            return Verdict(Reason::PolicyDenied);
        }
        let identity = this.peer_identity(key, origin);
        header.judged_identity = identity;
        let allowed = is_allowed(this.tables, policy, identity, key.protocol, port);
        Verdict(if allowed { Reason::AllowedByPolicy } else { Reason::PolicyDenied })
    }

    #[inline(always)]
    fn peer_identity<A: Address>(&self, key: &FlowKey<A>, origin: u16) -> u32
    where
        T: Tables<A>,
    {
        if origin != SLOT_NONE
            && let Some(sender) = self.tables.sender(origin)
            && let Some(address) = A::of_endpoint(sender.endpoint)
        {
            return self.tables.identity(&address);
        }
        self.tables.identity(&key.peer)
    }

    #[inline(always)]
    pub(super) fn is_own_node<A: Address>(&self, address: &A) -> bool
    where
        T: Tables<A>,
    {
        self.tables.address_role(address) & AddressRole::OWN != 0
    }

    /// Sent by the node itself: no interface brought it, no pod's mark is on it, and the source is the node's.
    #[inline(always)]
    pub(super) fn is_from_own_node<A: Address>(&self, source: &A) -> bool
    where
        T: Tables<A>,
    {
        self.is_from_node_stack() && self.is_own_node(source)
    }

    /// Sent by the node's own stack: no interface brought it, and no pod's mark is on it.
    #[inline(always)]
    pub(super) fn is_from_node_stack(&self) -> bool
    where
        T: Shared,
    {
        self.frame.from_host_stack && self.marked_sender() == Sender::None
    }

    /// An ICMP error passes if the packet it quotes belongs to a live flow of this pod and it goes to that packet's
    /// source (or comes from its destination's side): no error is a licence of its own.
    #[inline(always)]
    pub(super) fn is_related_error<A: Address>(
        &self,
        scratch: &mut Scratch<A>,
        direction: Direction,
    ) -> Result<bool, Reason>
    where
        T: Tables<A>,
    {
        let header = &scratch.header;
        let is_error = header.protocol == A::ICMP && A::icmp(header.icmp_type) == Icmp::Error;
        if !is_error || header.part != Part::Whole || !self.reads_quoted_flow(scratch, direction) {
            return Ok(false);
        }
        if A::of_endpoint(self.subject.endpoint) == Some(scratch.key.pod.by_words()) {
            return Ok(self.has_live_flow(scratch));
        }
        // A pod is no router: it would speak of somebody else's flow, to which the error would be let through.
        if direction == Direction::Egress && !self.any_source() { Err(Reason::ForgedError) } else { Ok(false) }
    }

    /// Makes the flow of the quoted packet the one in `scratch`; false if the error does not go to that packet's source, or
    /// quotes nothing that can be read.
    #[inline(never)]
    fn reads_quoted_flow<A: Address>(&self, scratch: &mut Scratch<A>, direction: Direction) -> bool {
        let this = whole(self);
        let Some(quoted) = A::parse_quoted(this.packet, usize::from(scratch.header.l4) + 8) else {
            return false;
        };
        if quoted.source != scratch.header.destination {
            return false;
        }
        // The quoted packet went the other way: an error that the pod gets is about a packet of its own.
        let Quoted { source, destination, source_port, destination_port, protocol } = quoted;
        let (pod, peer, pod_port, peer_port) = match direction {
            Direction::Ingress => (source, destination, source_port, destination_port),
            Direction::Egress => (destination, source, destination_port, source_port),
        };
        scratch.key = FlowKey { pod, peer, pod_port, peer_port, protocol, pad: 0, slot: this.subject.endpoint.slot };
        true
    }

    /// True if the flow in `scratch` lives and is allowed, seen from the side that did not open it: of a deferred one, that
    /// policy has let it go.
    #[inline(never)]
    fn has_live_flow<A: Address>(&self, scratch: &mut Scratch<A>) -> bool
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let Some(found) = this.tables.find_flow(&scratch.key) else {
            return false;
        };
        let Ok(word) = this.current(scratch, &found.flow, false) else {
            return false;
        };
        let limit = this.tables.setting(flow::timeout(scratch.key.protocol, word.state()));
        word.state() != FlowState::Revoked && flow::is_live(this.tables.now(), found.flow.last_seen, limit)
    }
}

/// Why a packet that comes back on a deferred flow is refused.
#[inline(always)]
fn refusal(word: FlowWord) -> Reason {
    if word.has(FlowWord::CONFIRMED) { Reason::FlowRevoked } else { Reason::UnconfirmedReply }
}

/// The allow table's word on (`policy`, `identity`, `protocol`, `port`).
#[inline(always)]
fn is_allowed<T: Shared>(tables: &T, policy: u16, identity: u32, protocol: u8, port: u16) -> bool {
    match rule_for(tables, policy, identity, protocol) {
        PortRule::None => false,
        PortRule::All => true,
        PortRule::Set(set) => tables.port_set_has(set, port),
    }
}

/// The ports of `protocol` that the allow table lets (`policy`, `identity`) have; all or none of one without ports.
#[inline(always)]
fn rule_for<T: Shared>(tables: &T, policy: u16, identity: u32, protocol: u8) -> PortRule {
    let Some(value) = tables.allow(&AllowKey::new(policy, identity)) else {
        return PortRule::None;
    };
    let rule = match protocol {
        protocol::TCP => value.tcp,
        protocol::UDP => value.udp,
        protocol::SCTP => value.sctp,
        _ => value.other,
    };
    PortRule::decode(rule)
}

/// Writes the flow as the pod sees it.
#[inline(always)]
pub(super) fn write_flow_key<A: Address>(scratch: &mut Scratch<A>, direction: Direction, slot: u16) {
    let Scratch { header, key, .. } = scratch;
    let (source, destination) = (header.source.by_words(), header.destination.by_words());
    let (pod, peer, pod_port, peer_port) = match direction {
        Direction::Egress => (source, destination, header.source_port, header.destination_port),
        Direction::Ingress => (destination, source, header.destination_port, header.source_port),
    };
    *key = FlowKey { pod, peer, pod_port, peer_port, protocol: header.protocol, pad: 0, slot };
}

/// True for a packet to a group: many may answer it and none can be its reply, so it opens no flow at the receiver.
#[inline(always)]
fn is_to_group<A: Address>(header: &Header<A>, direction: Direction) -> bool {
    direction == Direction::Ingress && header.destination.is_group()
}

/// True if the packet may belong to a flow. Of ICMP only echo has any: other messages have no identifier that would tell
/// one exchange from another, so that a flow of theirs would let in whatever the peer likes. They are judged one by one.
#[inline(always)]
fn has_flow<A: Address>(header: &Header<A>) -> bool {
    header.protocol != A::ICMP || matches!(A::icmp(header.icmp_type), Icmp::EchoRequest | Icmp::EchoReply)
}

#[inline(always)]
fn opens<A: Address>(header: &Header<A>) -> Opens {
    if header.protocol == A::ICMP {
        return if A::icmp(header.icmp_type) == Icmp::EchoRequest { Opens::Yes } else { Opens::No };
    }
    if header.protocol != protocol::TCP || flow::is_syn(header.protocol, header.tcp_flags) {
        return Opens::Yes;
    }
    // A SYN-ACK or RST is an answer; it must never be what opens.
    if header.tcp_flags & (tcp_flag::SYN | tcp_flag::RST) != 0 { Opens::No } else { Opens::InMidStream }
}

/// Keeps a reference one argument: LLVM would pass what it points to, piece by piece, and a BPF function has five
/// registers for arguments.
#[inline(always)]
pub(super) fn whole<T>(reference: &T) -> &T {
    core::hint::black_box(reference)
}
