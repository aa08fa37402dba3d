//! Random scenes: frames that are almost valid, policy changes and time between them.
//!
//! Out: [`proptest`] strategies of [`Step`]s. Addresses, ports and identifiers come from small pools, so that packets often
//! belong to one another; then some frames are damaged. What must hold of them is said in tests. Start at [`steps`].

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use netpol_common::abi::{Direction, Hook};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};

use super::cast::{BRIDGE_MAC, Cast, DNS, Family, Isolation, OTHER_POD_MAC, POD_MAC, SHUT, SIP, WEB};
use super::play::{FOREIGN_MARK, Play, mac_towards};
use crate::frame::datagram::{Datagram, Extension, Fragment, Transport, flag};

/// Something that happens in a random scene.
#[derive(Clone, Debug)]
pub enum Step {
    /// A frame meets a hook.
    Frame {
        /// Which.
        hook: Hook,
        /// The frame.
        bytes: Vec<u8>,
        /// The node's own stack sends it.
        from_host_stack: bool,
        /// Its mark.
        mark: u32,
    },
    /// The pod is isolated so from now on.
    Isolate(Isolation),
    /// The client is forbidden (or permitted again) what it may in one direction.
    Client(Direction, bool),
    /// Time passes.
    Seconds(u32),
}

impl Step {
    /// Carries it out; frames need only be treated alike.
    ///
    /// # Errors
    /// Host and kernel differ.
    pub fn run(&self, play: &mut Play<'_>) -> Result<()> {
        match self {
            Self::Frame { hook, bytes, from_host_stack, mark } => {
                (play.frame.from_host_stack, play.frame.mark) = (*from_host_stack, *mark);
                play.meets(*hook, bytes).map(drop).with_context(|| format!("{hook:?} {bytes:02x?}"))
            }
            Self::Isolate(isolation) => {
                play.isolate(*isolation);
                Ok(())
            }
            Self::Client(direction, true) => play.permit_client(*direction),
            Self::Client(direction, false) => play.forbid_client(*direction),
            Self::Seconds(seconds) => play.seconds_pass(*seconds),
        }
    }
}

/// Up to so many steps, most of them frames.
pub fn steps(family: Family, most: usize) -> impl Strategy<Value = Vec<Step>> {
    let isolation = select(&[
        Isolation::Free,
        Isolation::Ingress,
        Isolation::Egress,
        Isolation::Both,
        Isolation::Both,
        Isolation::DenyAll,
    ]);
    let direction = select(&Direction::ALL);
    let step = prop_oneof![
        16 => meeting(family),
        1 => isolation.prop_map(Step::Isolate),
        1 => (direction, any::<bool>()).prop_map(|(direction, permit)| Step::Client(direction, permit)),
        1 => select(&[25_u32, 70, 150, 250, 500_000]).prop_map(Step::Seconds),
    ];
    vec(step, 1..most)
}

/// A frame at a hook, with a mark.
fn meeting(family: Family) -> impl Strategy<Value = Step> {
    let mark = prop_oneof![6 => Just(0), 1 => Just(FOREIGN_MARK), 1 => Just(0x0700_0000), 1 => any::<u32>()];
    (frame(family), proptest::bool::weighted(0.2), mark)
        .prop_map(|((hook, bytes), from_host_stack, mark)| Step::Frame { hook, bytes, from_host_stack, mark })
}

/// A frame that is almost valid, and the hook it meets.
pub fn frame(family: Family) -> impl Strategy<Value = (Hook, Vec<u8>)> {
    let hook = select(&[Hook::FromPod, Hook::ToPod]);
    let macs = select(&[POD_MAC, POD_MAC, POD_MAC, POD_MAC, OTHER_POD_MAC, [0xff; 6]]);
    let damage = prop_oneof![3 => Just(Vec::new()), 2 => vec(damage(), 1..4)];
    hook.prop_flat_map(move |hook| (Just(hook), datagram(family, hook), macs.clone(), damage.clone())).prop_map(
        |(hook, datagram, mac, damage)| {
            let group = mac_towards(datagram.destination);
            let (source, destination) = match hook {
                Hook::FromPod => (mac, group.unwrap_or(BRIDGE_MAC)),
                Hook::ToPod | Hook::ToUplink => (BRIDGE_MAC, group.unwrap_or(mac)),
            };
            let mut bytes = datagram.frame(source, destination).unwrap_or_default();
            damage.iter().for_each(|damage| damage.apply(&mut bytes));
            (hook, bytes)
        },
    )
}

/// An IP packet that the pod sends (or is about to get), most often one that it may.
fn datagram(family: Family, hook: Hook) -> impl Strategy<Value = Datagram> {
    let cast = Cast::of(family);
    let own =
        vec![cast.pod, cast.pod, cast.pod, cast.pod, cast.pod, cast.link_local, cast.other_pod, cast.unspecified()];
    let peers = [cast.client, cast.client, cast.client, cast.stranger, cast.block, cast.excepted].to_vec();
    let peers = [peers, vec![cast.node, cast.other_node, cast.group, cast.other_pod]].concat();
    let hops = prop_oneof![4 => Just(64_u8), 1 => Just(1_u8), 1 => Just(255_u8)];
    let fragment = prop_oneof![5 => Just(None), 2 => fragment().prop_map(Some)];
    let options = prop_oneof![5 => Just(Vec::new()), 1 => options()];
    let extensions = prop_oneof![5 => Just(Vec::new()), 1 => vec(extension(), 1..5)];
    let shape = (select(own), select(peers), transport(family, cast, hook), hops, fragment, options, extensions);
    shape.prop_map(move |(own, peer, transport, hop_limit, fragment, options, extensions)| {
        let (source, destination) = match hook {
            Hook::FromPod => (own, peer),
            Hook::ToPod | Hook::ToUplink => (peer, own),
        };
        Datagram { source, destination, hop_limit, options, extensions, fragment, transport }
    })
}

fn transport(family: Family, cast: Cast, hook: Hook) -> impl Strategy<Value = Transport> {
    let flags = select(&[flag::SYN, flag::SYN_ACK, flag::ACK, flag::PSH_ACK, flag::FIN_ACK, flag::RST, 0, 0xff]);
    let ports = move || {
        let own = select(&[WEB, DNS, SIP, SHUT, 40_000, 40_001]);
        (own.clone(), own).prop_map(|(own, peer)| [own, peer])
    };
    let raw =
        (select(&[0_u8, 1, 2, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 255]), vec(any::<u8>(), 0..48));
    prop_oneof![
        6 => (ports(), flags).prop_map(|(ports, flags)| Transport::Tcp { ports, flags }),
        5 => ports().prop_map(|ports| Transport::Udp { ports }),
        2 => ports().prop_map(|ports| Transport::Sctp { ports }),
        2 => (any::<bool>(), select(&[0_u16, 7])).prop_map(|(reply, id)| Transport::Echo { reply, id }),
        2 => error(family, cast, hook, ports()),
        1 => (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..40))
            .prop_map(|(kind, code, body)| Transport::Icmp { kind, code, body }),
        1 => raw.prop_map(|(protocol, bytes)| Transport::Raw { protocol, bytes }),
    ]
}

/// An ICMP error about a packet of the pod's, or one that it got.
fn error(
    family: Family,
    cast: Cast,
    hook: Hook,
    ports: impl Strategy<Value = [u16; 2]>,
) -> impl Strategy<Value = Transport> {
    let kinds: &[u8] = if family.is_v4() { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4, 137] };
    let quoted_ends = select(vec![(cast.pod, cast.client), (cast.client, cast.pod), (cast.pod, cast.stranger)]);
    (select(kinds), ports, any::<bool>(), quoted_ends).prop_map(move |(kind, ports, tcp, (source, destination))| {
        // About what went the other way, most often.
        let (source, destination): (IpAddr, IpAddr) = match hook {
            Hook::ToPod | Hook::ToUplink => (source, destination),
            Hook::FromPod => (destination, source),
        };
        let quoted = if tcp { Transport::Tcp { ports, flags: flag::ACK } } else { Transport::Udp { ports } };
        let quoted = Datagram::new(source, destination, quoted).bytes().unwrap_or_default();
        Transport::Icmp { kind, code: 0, body: [vec![0; 4], quoted].concat() }
    })
}

fn fragment() -> impl Strategy<Value = Fragment> {
    let offset = select(&[0_u16, 0, 0, 8, 16, 24, 1480]);
    (select(&[1_u32, 2, 0xffff]), offset, any::<bool>()).prop_map(|(id, offset, more)| Fragment { id, offset, more })
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(1_u8), 1 => Just(0_u8), 1 => select(&[2_u8, 3, 4, 8, 68, 131, 137, 148]), 1 => any::<u8>()];
    (1_usize..=10).prop_flat_map(move |words| vec(byte.clone(), words * 4))
}

fn extension() -> impl Strategy<Value = Extension> {
    let number = select(&[0_u8, 43, 44, 51, 60, 60, 135, 253]);
    // The length in eights of bytes, mostly the true one.
    (number, prop_oneof![4 => Just(0_u8), 1 => 0_u8..4], vec(any::<u8>(), 6)).prop_map(|(number, length, rest)| {
        let mut bytes = vec![length];
        bytes.extend(rest);
        (number, bytes)
    })
}

/// Something that happens to a frame.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Cut(Index),
    Grow(Vec<u8>),
}

impl Damage {
    fn apply(&self, frame: &mut Vec<u8>) {
        let at = |index: &Index| index.index(frame.len().max(1));
        match self {
            Self::Set(index, value) => {
                let at = at(index);
                frame.get_mut(at).into_iter().for_each(|byte| *byte = *value);
            }
            Self::Flip(index, bit) => {
                let at = at(index);
                frame.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (bit % 8));
            }
            Self::Cut(index) => frame.truncate(at(index)),
            Self::Grow(bytes) => frame.extend(bytes),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(index, value)| Damage::Set(index, value)),
        4 => (any::<Index>(), any::<u8>()).prop_map(|(index, bit)| Damage::Flip(index, bit)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => vec(any::<u8>(), 1..40).prop_map(Damage::Grow),
    ]
}
