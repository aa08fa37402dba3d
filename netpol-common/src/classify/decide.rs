//! Flow, then policy: the part of the decision that is the same in both directions.

use super::{Found, Frame, Shared, Stage, Tables, Verdict, merge};
use crate::abi::{
    AddressRole, AllowKey, Config, Direction, FlowKey, FlowKind, FlowState, FlowWord, Fragment, FragmentKey,
    POLICY_DENY, POLICY_NOT_ISOLATED, PortRule, Reason,
};
use crate::flow::{self, Setting};
use crate::packet::{Address, Header, Icmp, PacketBytes, Part, Quoted, protocol, tcp_flag};

/// A packet that may open a flow.
struct Attempt<'a, A, H> {
    /// The flow it would open.
    key: &'a FlowKey<A>,
    /// Its direction.
    direction: Direction,
    /// An entry of the same key that is dead, or that this packet replaces.
    // verifier: the handle alone. Of a whole entry that is not there, the compiler would store what a register happens
    // to hold, and half a pointer in a 32-bit field is refused.
    old: Option<H>,
}

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
    pub(super) fn decide<A: Address>(&self, header: &mut Header<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        if let Part::Later(offset) = header.part {
            return this.follow_first_fragment(header, direction, offset);
        }
        let verdict = this.decide_flow(header, direction);
        if header.part == Part::First {
            let fragment = Fragment {
                source_port: header.source_port,
                destination_port: header.destination_port,
                seen: this.tables.now(),
                allowed: u32::from(!verdict.is_drop()),
            };
            this.tables.record_fragment(&this.fragment_key(header, direction), &fragment);
        }
        verdict
    }

    /// A later fragment goes the way of its first one.
    #[inline(always)]
    fn follow_first_fragment<A: Address>(&self, header: &Header<A>, direction: Direction, offset: u16) -> Verdict
    where
        T: Tables<A>,
    {
        // RFC 1858, RFC 3128: a fragment that starts inside the TCP header could rewrite what was judged.
        if header.protocol == protocol::TCP && offset < 20 {
            return Verdict(Reason::FragmentTooSmall);
        }
        let limit = self.tables.setting(Setting::Fragment);
        match self.tables.find_fragment(&self.fragment_key(header, direction)) {
            Some(first) if flow::is_live(self.tables.now(), first.seen, limit) => {
                Verdict(if first.allowed == 1 { Reason::FragmentOfAllowed } else { Reason::FragmentOfDenied })
            }
            _ if self.is_unpoliced() => Verdict(Reason::NotIsolated),
            _ => Verdict(Reason::FragmentWithoutFirst),
        }
    }

    #[inline(always)]
    fn fragment_key<A: Address>(&self, header: &Header<A>, direction: Direction) -> FragmentKey<A> {
        FragmentKey {
            source: header.source,
            destination: header.destination,
            id: header.fragment_id,
            slot: self.subject.endpoint.slot,
            protocol: header.fragment_protocol,
            direction: direction as u8,
        }
    }

    /// True if no policy isolates the pod in any direction.
    #[inline(always)]
    fn is_unpoliced(&self) -> bool {
        Direction::ALL.iter().all(|&direction| !self.subject.policy.is_isolated(direction))
    }

    #[inline(always)]
    fn decide_flow<A: Address>(&self, header: &mut Header<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        let key = flow_key(header, direction, self.subject.endpoint.slot);
        if !has_flow(header) {
            return self.decide_new(header, &Attempt { key: &key, direction, old: None });
        }
        let found = self.tables.find_flow(&key);
        if let Some(found) = &found {
            let limit = self.tables.setting(flow::timeout(header.protocol, found.flow.word.state()));
            if flow::is_live(self.tables.now(), found.flow.last_seen, limit)
                && let Some(verdict) = self.decide_known(header, direction, &key, found)
            {
                return verdict;
            }
        }
        let verdict = self.decide_new(header, &Attempt { key: &key, direction, old: found.map(|found| found.handle) });
        merge(header, verdict)
    }

    /// A packet of a live flow. The opener's tuple is judged again when the slot's revision has moved, whichever
    /// direction the packet has: a server that pushes to a revoked client must stop too.
    /// None if the packet does not belong to the flow but opens a new one.
    #[inline(always)]
    fn decide_known<A: Address>(
        &self,
        header: &mut Header<A>,
        direction: Direction,
        key: &FlowKey<A>,
        found: &Found<T::Handle>,
    ) -> Option<Verdict>
    where
        T: Tables<A>,
    {
        let now = self.tables.now();
        let word = self.current(header, key, found.flow.word);
        let from_opener = word.opener() == direction;
        let replaceable = !from_opener || matches!(word.state(), FlowState::Closing | FlowState::Revoked);
        if replaceable && flow::is_syn(header.protocol, header.tcp_flags) {
            return None;
        }
        // With identifier 0 both ends' requests have one key; a request still answers nothing, nor does a reply ask.
        if header.protocol == A::ICMP && (A::icmp(header.icmp_type) == Icmp::EchoReply) == from_opener {
            return None;
        }
        if word.state() == FlowState::Revoked {
            self.tables.update_flow(found, &flow::seen(word, now));
            header.judged_policy = self.subject.policy.policy(word.opener());
            return Some(Verdict(Reason::FlowRevoked));
        }
        let next = flow::seen(flow::advance(word, header.protocol, header.tcp_flags, direction), now);
        let settled = flow::is_settled(next.word, header.protocol, from_opener);
        let promoted = !found.answered && settled && self.tables.promote_flow(key, &next);
        if !promoted && next != found.flow {
            self.tables.update_flow(found, &next);
        }
        Some(Verdict(if from_opener { Reason::Established } else { Reason::Reply }))
    }

    /// The flow's word under the slot's present revision.
    #[inline(always)]
    fn current<A: Address>(&self, header: &mut Header<A>, key: &FlowKey<A>, word: FlowWord) -> FlowWord
    where
        T: Tables<A>,
    {
        let revision = self.subject.policy.revision();
        if word.revision() == revision {
            return word;
        }
        let allowed = word.has(FlowWord::OWN_NODE) || !self.judge(header, key, word.opener()).is_drop();
        let state = if allowed { flow::resumed_state(word) } else { FlowState::Revoked };
        word.with_state(state).with_revision(revision)
    }

    /// A packet of no live flow: judged by policy in its own direction. An old entry is written over in place.
    // verifier: here and below, a function of its own is verified once for each call, not once for each path to it.
    #[inline(never)]
    fn decide_new<A: Address>(&self, header: &mut Header<A>, attempt: &Attempt<'_, A, T::Handle>) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let Attempt { key, direction, old } = whole(attempt);
        let opens = opens(header);
        if opens == Opens::InMidStream && this.flag(Config::STRICT_TCP) && !this.is_unpoliced() {
            return Verdict(Reason::MidStream);
        }
        let own_node = header.from_own_node;
        let verdict = if own_node { Verdict(Reason::FromOwnNode) } else { this.judge(header, key, *direction) };
        let verdict = merge(header, verdict);
        if verdict.is_drop() || opens == Opens::No || is_to_group(header, *direction) {
            return verdict;
        }
        let mut flags = if own_node { FlowWord::OWN_NODE } else { 0 };
        if opens == Opens::InMidStream {
            flags |= FlowWord::PICKED_UP;
        }
        let word = FlowWord::new(FlowState::Opening, *direction, flags, this.subject.policy.revision());
        let opened = flow::seen(word, this.tables.now());
        match old {
            Some(handle) => this.tables.replace_flow(*handle, &opened),
            // A full table must not cut what policy allows; the counter tells.
            None if !this.tables.open_flow(key, &opened) => return Verdict(Reason::FlowNotRecorded),
            None => {}
        }
        if opens == Opens::InMidStream { Verdict(Reason::PickedUp) } else { verdict }
    }

    /// Policy: may the flow's ends talk, opened in `direction`? The port is the one that the opener went for. What the
    /// peer was judged as is left in the header, for the event.
    #[inline(never)]
    fn judge<A: Address>(&self, header: &mut Header<A>, key: &FlowKey<A>, direction: Direction) -> Verdict
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let policy = this.subject.policy.policy(direction);
        if policy == POLICY_NOT_ISOLATED {
            return Verdict(Reason::NotIsolated);
        }
        if direction == Direction::Egress && this.is_own_node(&key.peer) && !this.flag(Config::ENFORCE_OWN_NODE) {
            return Verdict(Reason::ToOwnNode);
        }
        let port = match direction {
            Direction::Ingress => key.pod_port,
            Direction::Egress => key.peer_port,
        };
        header.judged_policy = policy;
        if policy == POLICY_DENY {
            return Verdict(Reason::PolicyDenied);
        }
        let identity = this.tables.identity(&key.peer);
        header.judged_identity = identity;
        let allowed = is_allowed(this.tables, policy, identity, key.protocol, port);
        Verdict(if allowed { Reason::AllowedByPolicy } else { Reason::PolicyDenied })
    }

    #[inline(always)]
    fn is_own_node<A: Address>(&self, address: &A) -> bool
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
        let Frame { from_host_stack, mark, .. } = *self.frame;
        from_host_stack && mark & self.tables.setting(Setting::MarkMask) == 0 && self.is_own_node(source)
    }

    /// An ICMP error passes if the packet it quotes belongs to a live flow of this pod and it goes to that packet's
    /// source (or comes from its destination's side): no error is a licence of its own.
    #[inline(always)]
    pub(super) fn is_related_error<A: Address>(&self, header: &mut Header<A>, direction: Direction) -> bool
    where
        T: Tables<A>,
    {
        let is_error = header.protocol == A::ICMP && A::icmp(header.icmp_type) == Icmp::Error;
        is_error && header.part == Part::Whole && self.quotes_live_flow(header, direction)
    }

    #[inline(never)]
    fn quotes_live_flow<A: Address>(&self, header: &mut Header<A>, direction: Direction) -> bool
    where
        T: Tables<A>,
    {
        let this = whole(self);
        let Some(quoted) = A::parse_quoted(this.packet, usize::from(header.l4) + 8) else {
            return false;
        };
        if quoted.source != header.destination {
            return false;
        }
        // The quoted packet went the other way: an error that the pod gets is about a packet of its own.
        let Quoted { source, destination, source_port, destination_port, protocol } = quoted;
        let (pod, peer, pod_port, peer_port) = match direction {
            Direction::Ingress => (source, destination, source_port, destination_port),
            Direction::Egress => (destination, source, destination_port, source_port),
        };
        let (kind, slot) = (FlowKind::Direct as u8, this.subject.endpoint.slot);
        let key = FlowKey { pod, peer, pod_port, peer_port, protocol, kind, slot };
        if A::of_endpoint(this.subject.endpoint) != Some(key.pod) {
            return false;
        }
        let Some(found) = this.tables.find_flow(&key) else {
            return false;
        };
        let word = this.current(header, &key, found.flow.word);
        let limit = this.tables.setting(flow::timeout(key.protocol, word.state()));
        word.state() != FlowState::Revoked && flow::is_live(this.tables.now(), found.flow.last_seen, limit)
    }
}

/// The allow table's word on (`policy`, `identity`, `protocol`, `port`).
#[inline(always)]
fn is_allowed<T: Shared>(tables: &T, policy: u16, identity: u32, protocol: u8, port: u16) -> bool {
    let Some(value) = tables.allow(&AllowKey::new(policy, identity)) else {
        return false;
    };
    let rule = match protocol {
        protocol::TCP => value.tcp,
        protocol::UDP => value.udp,
        protocol::SCTP => value.sctp,
        _ => return value.other == 1,
    };
    match PortRule::decode(rule) {
        PortRule::None => false,
        PortRule::All => true,
        PortRule::Set(set) => tables.port_set_has(set, port),
    }
}

/// The flow as the pod sees it.
#[inline(always)]
fn flow_key<A: Address>(header: &Header<A>, direction: Direction, slot: u16) -> FlowKey<A> {
    let (source, destination) = (header.source.by_words(), header.destination.by_words());
    let (pod, peer, pod_port, peer_port) = match direction {
        Direction::Egress => (source, destination, header.source_port, header.destination_port),
        Direction::Ingress => (destination, source, header.destination_port, header.source_port),
    };
    FlowKey { pod, peer, pod_port, peer_port, protocol: header.protocol, kind: FlowKind::Direct as u8, slot }
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
fn whole<T>(reference: &T) -> &T {
    core::hint::black_box(reference)
}
