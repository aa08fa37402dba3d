//! Connections that were open before the first agent, as the flows that the datapath would know of them. Pure.
//!
//! In: what conntrack says of a connection, and the pods of this node. Out: [`Seeds`], entries for the flow tables. And
//! which of them the pods' policies will refuse ([`Replay::refusal`]), for `--dry-run`.
//!
//! Nothing is worked out here a second time: packets of the connection are played through the very decision that judges
//! real ones, at every hook of this node that they pass, with the addresses that translation gives them there; what it
//! opens are the seeds. So the opener's direction, what is left to be judged behind a service, who hides behind a
//! masquerade, and the backend that a service led to come out as if the hooks had been there all the time.
//!
//! Seeds are made while no pod is isolated, and so under the revision before the pods' first policies: the first packet
//! after those are in force has its flow judged again by its opener's tuple.

mod frame;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_common::abi::{
    AddressRole, Backend, BackendKey, Direction, Endpoint, EndpointFlags, Flow, FlowKey, FlowState, FlowWord, Mac,
    Mark, PolicyWord, Reason, Sender, V4, V6,
};
use netpol_common::classify::{Decision, Frame, Tables};
use netpol_common::host::HostTables;
use netpol_common::packet::{protocol, tcp_flag};

use super::conntrack::{Connection, TcpState, Tuple};
use frame::{Content, ECHO_V4, ECHO_V6, End, ether_type_of, frame};

/// A device that is no pod's: a bridge or a router.
const ROUTER: Mac = Mac::from_octets([2, 0, 0, 0, 0, 1]);

/// A flow for the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed<A> {
    /// Its key.
    pub key: FlowKey<A>,
    /// Its entry.
    pub flow: Flow,
    /// It belongs among the answered flows.
    pub answered: bool,
}

/// Entries for the tables. What is worth most comes first, should there not be room for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeds {
    /// IPv4 flows.
    pub v4: Vec<Seed<V4>>,
    /// IPv6 flows.
    pub v6: Vec<Seed<V6>>,
    /// Where flows to services were led to.
    pub backends: Vec<(BackendKey, Backend)>,
}

/// Who refuses a connection, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The pod whose policy it is.
    pub slot: u16,
    /// In which of its directions the connection was opened, and does not count as allowed.
    pub direction: Direction,
    /// The hook's word.
    pub reason: Reason,
}

/// The hooks of this node, before which connections pass once more.
#[derive(Debug)]
pub struct Replay {
    tables: HostTables,
    pods: BTreeMap<IpAddr, u16>,
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Opener,
    Answerer,
}

impl Replay {
    /// The hooks with these tables: the configuration, the secret, addresses' roles and node ports, the time. Which pods are
    /// here is [`Self::set_pods`].
    #[must_use]
    pub const fn new(tables: HostTables) -> Self {
        Self { tables, pods: BTreeMap::new() }
    }

    /// Sets the pods of this node and what they are subject to.
    pub fn set_pods(&mut self, pods: impl IntoIterator<Item = (Endpoint, PolicyWord)>) {
        self.tables.pods = pods.into_iter().map(|(endpoint, word)| (endpoint.slot, (endpoint, word))).collect();
        self.pods = self.tables.pods.values().flat_map(|(endpoint, _)| addresses(endpoint)).collect();
    }

    /// Sets the tables that policy ids name.
    pub fn set_policy(&mut self, fill: impl FnOnce(&mut HostTables)) {
        fill(&mut self.tables);
    }

    /// True if one end of the connection is a pod of this node.
    #[must_use]
    pub fn concerns(&self, connection: &Connection) -> bool {
        [connection.original.source, connection.reply.source].iter().any(|address| self.pods.contains_key(address))
    }

    /// Plays a connection up to where it is. Packets that the hooks refuse leave nothing behind.
    pub fn open(&self, connection: &Connection) {
        const ANSWER: [(Side, u8); 1] = [(Side::Answerer, tcp_flag::SYN | tcp_flag::ACK)];
        const GOES_ON: [(Side, u8); 1] = [(Side::Opener, tcp_flag::ACK)];
        const ENDS: [(Side, u8); 2] =
            [(Side::Opener, tcp_flag::FIN | tcp_flag::ACK), (Side::Answerer, tcp_flag::FIN | tcp_flag::ACK)];
        let mut packets = vec![(Side::Opener, tcp_flag::SYN)];
        if connection.answered {
            packets.extend(ANSWER);
            match connection.tcp {
                Some(TcpState::Established) => packets.extend(GOES_ON),
                Some(TcpState::Over) => packets.extend(GOES_ON.iter().chain(&ENDS)),
                Some(TcpState::SynSent | TcpState::SynReceived) | None => {}
            }
        }
        for (side, flags) in packets {
            // A refusal is of the kind that every pod meets, policed or not: the packet was not this pod's.
            if self.pass(connection, side, flags).is_err() {
                return;
            }
        }
    }

    /// Who refuses the connection's next packet from either side, if somebody does.
    #[must_use]
    pub fn refusal(&self, connection: &Connection) -> Option<Refusal> {
        const DATA: u8 = tcp_flag::ACK;
        let refused =
            [Side::Opener, Side::Answerer].into_iter().find_map(|side| self.pass(connection, side, DATA).err())?;
        // Whichever packet meets it first: what is judged is the opener's.
        let opened_here = self.pods.get(&connection.original.source) == Some(&refused.slot);
        Some(Refusal { direction: if opened_here { Direction::Egress } else { Direction::Ingress }, ..refused })
    }

    /// Everything that was opened.
    #[must_use]
    pub fn seeds(&self) -> Seeds {
        fn of<A: Copy + Ord>(
            answered: &std::cell::RefCell<std::collections::HashMap<FlowKey<A>, Flow>>,
            unanswered: &std::cell::RefCell<std::collections::HashMap<FlowKey<A>, Flow>>,
        ) -> Vec<Seed<A>> {
            let take = |table: &std::cell::RefCell<std::collections::HashMap<FlowKey<A>, Flow>>, answered| {
                table.borrow().iter().map(|(&key, &flow)| Seed { key, flow, answered }).collect::<Vec<_>>()
            };
            let mut seeds = take(answered, true);
            seeds.extend(take(unanswered, false));
            seeds.sort_unstable_by_key(|seed| (rank(seed.flow, seed.key.protocol), seed.key));
            seeds
        }
        let HostTables { v4, v6, backends, .. } = &self.tables;
        let mut backends: Vec<(BackendKey, Backend)> = backends.borrow().iter().map(|(&key, &it)| (key, it)).collect();
        backends.sort_unstable_by_key(|(key, _)| *key);
        Seeds { v4: of(&v4.flows, &v4.unanswered), v6: of(&v6.flows, &v6.unanswered), backends }
    }

    /// A packet past every hook of this node on its way: the sender's, if that is a pod of this node; then the receiver's, or
    /// that of the device through which the packet leaves.
    fn pass(&self, connection: &Connection, side: Side, tcp_flags: u8) -> Result<(), Refusal> {
        let Some((sent, arriving)) = packet(connection, side, tcp_flags) else { return Ok(()) };
        let mut frame =
            Frame { from_host_stack: self.is_own(sent.source.address), mark: 0, hash: 0, vlan_tagged: false };
        if let Some((endpoint, word)) = self.pod_at(sent.source.address) {
            let bytes = sent.bytes([endpoint.mac, ROUTER]);
            let decision = allowed(self.tables.from_pod(&bytes, &frame, endpoint, *word))?;
            let config = &self.tables.config;
            let sender = decision.sender();
            frame.from_host_stack = false;
            frame.mark = Mark::new(config.mark_mask, config.mark_shift).write(0, sender);
            frame.hash = self.tables.cookie.take();
            if matches!(sender, Sender::Deferred(_)) && self.leaves(arriving.destination.address) {
                let bytes = arriving.bytes([ROUTER, ROUTER]);
                let kind = ether_type_of(arriving.source.address);
                return allowed(self.tables.to_uplink(&bytes, kind, &frame)).map(drop);
            }
        }
        let Some((endpoint, word)) = self.pod_at(arriving.destination.address) else { return Ok(()) };
        let bytes = arriving.bytes([ROUTER, endpoint.mac]);
        allowed(self.tables.to_pod(&bytes, &frame, endpoint, *word)).map(drop)
    }

    fn pod_at(&self, address: IpAddr) -> Option<&(Endpoint, PolicyWord)> {
        self.tables.pods.get(self.pods.get(&address)?)
    }

    /// True if packets to this address go out of the node.
    fn leaves(&self, address: IpAddr) -> bool {
        !self.pods.contains_key(&address) && !self.is_own(address)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let role = match address {
            IpAddr::V4(v4) => self.tables.address_role(&V4::from(v4)),
            IpAddr::V6(v6) => self.tables.address_role(&V6::from(v6)),
        };
        role & AddressRole::OWN != 0
    }
}

/// A packet at one place.
struct Packet {
    source: End,
    destination: End,
    content: Content,
}

impl Packet {
    fn bytes(&self, devices: [Mac; 2]) -> Vec<u8> {
        frame(devices, self.source, self.destination, self.content)
    }
}

/// A packet as it is sent, and as it arrives; none of what has no flows.
fn packet(connection: &Connection, side: Side, tcp_flags: u8) -> Option<(Packet, Packet)> {
    let Connection { protocol: number, original, reply, echo, .. } = connection;
    let (sent, back) = match side {
        Side::Opener => (original, reply),
        Side::Answerer => (reply, original),
    };
    let [at_source, at_destination] = match number {
        &protocol::TCP => [Content::Tcp(tcp_flags); 2],
        &protocol::ICMP | &protocol::ICMPV6 => {
            let types = if original.source.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
            let echo = echo.filter(|echo| types.first() == Some(&echo.kind))?;
            let [request, answer] = types;
            match side {
                Side::Opener => {
                    [Content::Icmp(request, echo.identifier), Content::Icmp(request, echo.answered_identifier)]
                }
                Side::Answerer => {
                    [Content::Icmp(answer, echo.answered_identifier), Content::Icmp(answer, echo.identifier)]
                }
            }
        }
        &number => [Content::Other(number); 2],
    };
    let [source, destination] = ends(sent);
    // What comes back to an address went to it.
    let [seen_destination, seen_source] = ends(back);
    Some((
        Packet { source, destination, content: at_source },
        Packet { source: seen_source, destination: seen_destination, content: at_destination },
    ))
}

const fn ends(tuple: &Tuple) -> [End; 2] {
    [
        End { address: tuple.source, port: tuple.source_port },
        End { address: tuple.destination, port: tuple.destination_port },
    ]
}

fn allowed(decision: Decision) -> Result<Decision, Refusal> {
    let Decision { reason, direction, slot } = decision;
    if reason.is_drop() { Err(Refusal { slot, direction, reason }) } else { Ok(decision) }
}

fn addresses(endpoint: &Endpoint) -> Vec<(IpAddr, u16)> {
    let v4 = endpoint.has(EndpointFlags::HAS_V4).then(|| IpAddr::V4(endpoint.ipv4.into()));
    let v6 = endpoint.has(EndpointFlags::HAS_V6).then(|| IpAddr::V6(endpoint.ipv6.into()));
    v4.into_iter().chain(v6).map(|address| (address, endpoint.slot)).collect()
}

/// Connections that go on first, then answered datagrams, then what is not answered, then what is over.
fn rank(flow: Flow, number: u8) -> u8 {
    match flow.word.state() {
        FlowState::Closing => 3,
        _ if !flow.word.has(FlowWord::ANSWERED) => 2,
        FlowState::Opening | FlowState::Established | FlowState::Revoked => u8::from(number != protocol::TCP),
    }
}
