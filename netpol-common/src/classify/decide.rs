//! Flow, then policy: the part of the decision that is the same in both directions.

use super::{Found, Frame, Refusal, Shared, Stage, Tables};
use crate::abi::{
    AddressRole, AllowKey, Config, Direction, FlowKey, FlowKind, FlowState, FlowWord, Fragment, FragmentKey,
    IDENTITY_NONE, POLICY_DENY, POLICY_NOT_ISOLATED, PortRule, Reason,
};
use crate::flow::{self, Setting};
use crate::packet::{Address, Header, Icmp, PacketBytes, Part, protocol, tcp_flag};

/// What may be done with the flow table for this packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opens {
    /// Opens a flow if policy allows it.
    Yes,
    /// TCP in mid-stream: opens one as picked up.
    InMidStream,
    /// Is judged, but leaves no entry (RST, SYN-ACK, echo reply): it can only belong to a flow that we do not know.
    No,
}

impl<'a, P: PacketBytes + ?Sized, T> Stage<'a, P, T> {
    /// Judges a packet whose header is parsed and whose ends are checked.
    #[inline(always)]
    pub(super) fn decide<A: Address>(&self, header: &Header<A>, direction: Direction) -> Result<Reason, Refusal>
    where
        T: Tables<A>,
    {
        let result = match header.part {
            Part::Later(offset) => return self.follow_first_fragment(header, direction, offset),
            Part::Whole | Part::First => self.decide_flow(header, direction),
        };
        if header.part == Part::First {
            let fragment = Fragment {
                source_port: header.source_port,
                destination_port: header.destination_port,
                seen: self.tables.now(),
                allowed: u32::from(result.is_ok()),
            };
            self.tables.record_fragment(&self.fragment_key(header, direction), &fragment);
        }
        result
    }

    /// A later fragment goes the way of its first one.
    #[inline(always)]
    fn follow_first_fragment<A: Address>(
        &self,
        header: &Header<A>,
        direction: Direction,
        offset: u16,
    ) -> Result<Reason, Refusal>
    where
        T: Tables<A>,
    {
        // RFC 1858, RFC 3128: a fragment that starts inside the TCP header could rewrite what was judged.
        if header.protocol == protocol::TCP && offset < 20 {
            return Err(Reason::FragmentTooSmall.into());
        }
        let limit = self.tables.setting(Setting::Fragment);
        match self.tables.find_fragment(&self.fragment_key(header, direction)) {
            Some(first) if flow::is_live(self.tables.now(), first.seen, limit) => {
                if first.allowed == 1 {
                    Ok(Reason::FragmentOfAllowed)
                } else {
                    Err(Reason::FragmentOfDenied.into())
                }
            }
            _ if self.is_unpoliced() => Ok(Reason::NotIsolated),
            _ => Err(Reason::FragmentWithoutFirst.into()),
        }
    }

    #[inline(always)]
    fn fragment_key<A: Address>(&self, header: &Header<A>, direction: Direction) -> FragmentKey<A> {
        FragmentKey {
            source: header.source,
            destination: header.destination,
            id: header.fragment_id,
            slot: self.subject.endpoint.slot,
            protocol: header.protocol,
            direction: direction as u8,
        }
    }

    /// True if no policy isolates the pod in any direction.
    #[inline(always)]
    fn is_unpoliced(&self) -> bool {
        Direction::ALL.iter().all(|&direction| !self.subject.policy.is_isolated(direction))
    }

    #[inline(always)]
    fn decide_flow<A: Address>(&self, header: &Header<A>, direction: Direction) -> Result<Reason, Refusal>
    where
        T: Tables<A>,
    {
        let key = flow_key(header, direction, self.subject.endpoint.slot);
        let Some(found) = self.tables.find_flow(&key) else {
            return self.decide_new(header, direction, &key, None);
        };
        let word = found.flow.word;
        let limit = self.tables.setting(flow::timeout(header.protocol, word.state()));
        if !flow::is_live(self.tables.now(), found.flow.last_seen, limit) {
            return self.decide_new(header, direction, &key, Some(&found));
        }
        self.decide_known(header, direction, &key, &found)
    }

    /// A packet of a live flow. The opener's tuple is judged again when the slot's revision has moved, whichever
    /// direction the packet has: a server that pushes to a revoked client must stop too.
    #[inline(always)]
    fn decide_known<A: Address>(
        &self,
        header: &Header<A>,
        direction: Direction,
        key: &FlowKey<A>,
        found: &Found<T::Handle>,
    ) -> Result<Reason, Refusal>
    where
        T: Tables<A>,
    {
        let now = self.tables.now();
        let word = self.current(key, found.flow.word);
        let from_opener = word.opener() == direction;
        let fresh = flow::is_syn(header.protocol, header.tcp_flags)
            && (!from_opener || matches!(word.state(), FlowState::Closing | FlowState::Revoked));
        if fresh {
            return self.decide_new(header, direction, key, Some(found));
        }
        if word.state() == FlowState::Revoked {
            self.tables.update_flow(found, &flow::seen(word, now));
            let policy = self.subject.policy.policy(word.opener());
            return Err(Refusal { reason: Reason::FlowRevoked, identity: self.tables.identity(&key.peer), policy });
        }
        let next = flow::seen(flow::advance(word, header.protocol, header.tcp_flags, direction), now);
        let promoted = !found.answered && next.word.has(FlowWord::ANSWERED) && self.tables.promote_flow(key, &next);
        if !promoted && next != found.flow {
            self.tables.update_flow(found, &next);
        }
        Ok(if from_opener { Reason::Established } else { Reason::Reply })
    }

    /// The flow's word under the slot's present revision.
    #[inline(always)]
    fn current<A: Address>(&self, key: &FlowKey<A>, word: FlowWord) -> FlowWord
    where
        T: Tables<A>,
    {
        let revision = self.subject.policy.revision();
        if word.revision() == revision {
            return word;
        }
        let port = match word.opener() {
            Direction::Ingress => key.pod_port,
            Direction::Egress => key.peer_port,
        };
        let allowed = word.has(FlowWord::OWN_NODE) || self.judge(word.opener(), &key.peer, key.protocol, port).is_ok();
        let state = if allowed { flow::resumed_state(word) } else { FlowState::Revoked };
        word.with_state(state).with_revision(revision)
    }

    /// A packet of no live flow: judged by policy in its own direction. An old entry is written over in place.
    #[inline(always)]
    fn decide_new<A: Address>(
        &self,
        header: &Header<A>,
        direction: Direction,
        key: &FlowKey<A>,
        old: Option<&Found<T::Handle>>,
    ) -> Result<Reason, Refusal>
    where
        T: Tables<A>,
    {
        let opens = opens(header);
        if opens == Opens::InMidStream && self.flag(Config::STRICT_TCP) && !self.is_unpoliced() {
            return Err(Reason::MidStream.into());
        }
        let (reason, own_node) = if direction == Direction::Ingress && self.is_from_own_node(&header.source) {
            (Reason::FromOwnNode, FlowWord::OWN_NODE)
        } else {
            (self.judge(direction, &key.peer, header.protocol, header.destination_port)?, 0)
        };
        if opens == Opens::No || key_has_no_pod(header, direction) {
            return Ok(reason);
        }
        let picked_up = if opens == Opens::InMidStream { FlowWord::PICKED_UP } else { 0 };
        let word = FlowWord::new(FlowState::Opening, direction, own_node | picked_up, self.subject.policy.revision());
        let opened = flow::seen(word, self.tables.now());
        match old {
            Some(found) => self.tables.update_flow(found, &opened),
            // A full table must not cut what policy allows; the counter tells.
            None if !self.tables.open_flow(key, &opened) => return Ok(Reason::FlowNotRecorded),
            None => {}
        }
        Ok(if picked_up == 0 { reason } else { Reason::PickedUp })
    }

    /// Policy: may this peer and the pod talk, opened in `direction` towards `port`?
    #[inline(always)]
    fn judge<A: Address>(&self, direction: Direction, peer: &A, protocol: u8, port: u16) -> Result<Reason, Refusal>
    where
        T: Tables<A>,
    {
        let policy = self.subject.policy.policy(direction);
        if policy == POLICY_NOT_ISOLATED {
            return Ok(Reason::NotIsolated);
        }
        if direction == Direction::Egress && self.is_own_node(peer) && !self.flag(Config::ENFORCE_OWN_NODE) {
            return Ok(Reason::ToOwnNode);
        }
        if policy == POLICY_DENY {
            return Err(Refusal { reason: Reason::PolicyDenied, identity: IDENTITY_NONE, policy });
        }
        let identity = self.tables.identity(peer);
        if is_allowed(self.tables, policy, identity, protocol, port) {
            Ok(Reason::AllowedByPolicy)
        } else {
            Err(Refusal { reason: Reason::PolicyDenied, identity, policy })
        }
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
    fn is_from_own_node<A: Address>(&self, source: &A) -> bool
    where
        T: Tables<A>,
    {
        let Frame { from_host_stack, mark, .. } = *self.frame;
        from_host_stack && mark & self.tables.setting(Setting::MarkMask) == 0 && self.is_own_node(source)
    }

    /// An ICMP error passes if the packet it quotes belongs to a live flow of this pod and it goes to that packet's
    /// source (or comes from its destination's side): no error is a licence of its own.
    #[inline(always)]
    pub(super) fn is_related_error<A: Address>(&self, header: &Header<A>, direction: Direction) -> bool
    where
        T: Tables<A>,
    {
        if header.protocol != A::ICMP || A::icmp(header.icmp_type) != Icmp::Error || header.part != Part::Whole {
            return false;
        }
        let Some(quoted) = A::parse_quoted(self.packet, usize::from(header.l4) + 8) else {
            return false;
        };
        if quoted.source != header.destination {
            return false;
        }
        // The quoted packet went the other way.
        let key = flow_key(&quoted, direction.reverse(), self.subject.endpoint.slot);
        if A::of_endpoint(self.subject.endpoint) != Some(key.pod) {
            return false;
        }
        let Some(found) = self.tables.find_flow(&key) else {
            return false;
        };
        let word = self.current(&key, found.flow.word);
        let limit = self.tables.setting(flow::timeout(key.protocol, word.state()));
        word.state() != FlowState::Revoked && flow::is_live(self.tables.now(), found.flow.last_seen, limit)
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
    let (pod, peer, pod_port, peer_port) = match direction {
        Direction::Egress => (header.source, header.destination, header.source_port, header.destination_port),
        Direction::Ingress => (header.destination, header.source, header.destination_port, header.source_port),
    };
    FlowKey { pod, peer, pod_port, peer_port, protocol: header.protocol, kind: FlowKind::Direct as u8, slot }
}

/// True for a packet to a group: many may answer it and none can be its reply, so it opens no flow at the receiver.
#[inline(always)]
fn key_has_no_pod<A: Address>(header: &Header<A>, direction: Direction) -> bool {
    direction == Direction::Ingress && header.destination.is_group()
}

#[inline(always)]
fn opens<A: Address>(header: &Header<A>) -> Opens {
    if header.protocol == A::ICMP {
        return match A::icmp(header.icmp_type) {
            Icmp::EchoReply | Icmp::Error => Opens::No,
            Icmp::EchoRequest | Icmp::Neighbour | Icmp::Router | Icmp::Listener | Icmp::Other => Opens::Yes,
        };
    }
    if header.protocol != protocol::TCP || flow::is_syn(header.protocol, header.tcp_flags) {
        return Opens::Yes;
    }
    // A SYN-ACK or RST is an answer; it must never be what opens.
    if header.tcp_flags & (tcp_flag::SYN | tcp_flag::RST) != 0 { Opens::No } else { Opens::InMidStream }
}
