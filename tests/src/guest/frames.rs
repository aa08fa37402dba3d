//! A pod on the loopback device, what it may do, and frames that must pass or be dropped there.
//!
//! `BPF_PROG_TEST_RUN` has its packets on the loopback. The frames touch every kind of map and both families once: what
//! each verdict is in detail is for the packet level.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use netpol_agent::datapath::plan::{Op, PortBits};
use netpol_common::abi::{
    AllowKey, AllowValue, Endpoint, EndpointFlags, Hook, Mac, PORT_SET_BYTES, PolicyWord, PortRule, V4, V6,
};

use crate::frame::{Link, Packet, SOURCE_PORT, frame};
use crate::judge::{Probe, Protocol, Side};

/// The loopback's interface index.
pub(super) const LOOPBACK: u32 = 1;
/// The pod's slot.
pub(super) const SLOT: u16 = 1;

const INGRESS: u16 = 2;
const EGRESS: u16 = 3;
const FRIEND: u32 = 7;
const BLOCK: u32 = 9;
const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// One packet and what must come of it.
pub(super) struct Case {
    /// What it is, for the report.
    pub(super) name: String,
    /// Where it is seen.
    pub(super) hook: Hook,
    /// Its bytes.
    pub(super) frame: Vec<u8>,
    /// True if it must pass.
    pub(super) passes: bool,
}

/// Addresses of one family.
struct Family {
    pod: &'static str,
    friend: &'static str,
    stranger: &'static str,
    in_block: &'static str,
    block: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        pod: "10.244.0.11",
        friend: "10.244.0.12",
        stranger: "10.244.0.13",
        in_block: "192.0.2.5",
        block: "192.0.2.0/24",
    },
    Family { pod: "fd00::b", friend: "fd00::c", stranger: "fd00::d", in_block: "2001:db8::5", block: "2001:db8::/32" },
];

/// The pod's endpoint.
pub(super) fn endpoint() -> Result<Endpoint> {
    let [v4, v6] = FAMILIES;
    Ok(Endpoint {
        slot: SLOT,
        flags: EndpointFlags::HAS_V4 | EndpointFlags::HAS_V6,
        mac: Mac::from_octets(POD_MAC),
        pad: 0,
        ipv4: V4::from(v4.pod.parse::<std::net::Ipv4Addr>()?),
        ipv6: V6::from(v6.pod.parse::<std::net::Ipv6Addr>()?),
    })
}

/// The pod's policy: a friend may reach one TCP port, it may send UDP to a block, and nothing else.
pub(super) fn policy() -> Result<Vec<Op>> {
    let set = PortRule::FIRST_SET;
    let mut ops = vec![
        Op::WritePortSet { number: set, bits: Arc::new(bits_of(PORT)?) },
        Op::WriteAllow(AllowKey::new(INGRESS, FRIEND), AllowValue { tcp: set, ..AllowValue::default() }),
        Op::WriteAllow(
            AllowKey::new(EGRESS, BLOCK),
            AllowValue { udp: PortRule::All.encode(), ..AllowValue::default() },
        ),
    ];
    for family in &FAMILIES {
        ops.push(Op::WriteAddress(family.friend.parse()?, FRIEND));
        ops.push(Op::WriteCidr(family.block.parse()?, BLOCK));
    }
    ops.push(Op::WritePolicyWord { slot: SLOT, word: PolicyWord::new(INGRESS, EGRESS, 1) });
    Ok(ops)
}

fn bits_of(port: u16) -> Result<PortBits> {
    let mut bits = [0; PORT_SET_BYTES];
    *bits.get_mut(usize::from(port / 8)).context("a port set is too small")? = 1 << (port % 8);
    Ok(bits)
}

/// The frames, in order: a reply passes because of what came before it.
pub(super) fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for family in &FAMILIES {
        let opens = probe(family.friend, family.pod, Protocol::Tcp, PORT)?;
        cases.push(to_pod("allowed TCP SYN", &opens, Packet::Opening, true)?);
        cases.push(from_pod("its answer", &opens, Packet::Answer, true)?);
        cases.push(to_pod("data on it", &opens, Packet::FromOpener, true)?);
        let other_port = probe(family.friend, family.pod, Protocol::Tcp, OTHER_PORT)?;
        cases.push(to_pod("SYN to another port", &other_port, Packet::Opening, false)?);
        let stranger = probe(family.stranger, family.pod, Protocol::Tcp, PORT)?;
        cases.push(to_pod("SYN from a stranger", &stranger, Packet::Opening, false)?);
        let echo = probe(family.friend, family.pod, Protocol::Icmp, 0)?;
        cases.push(to_pod("echo request", &echo, Packet::Opening, false)?);
        let block = probe(family.pod, family.in_block, Protocol::Udp, 53)?;
        cases.push(from_pod("UDP into the block", &block, Packet::Opening, true)?);
        cases.push(to_pod("its answer", &block, Packet::Answer, true)?);
        let outside = probe(family.pod, family.stranger, Protocol::Udp, 53)?;
        cases.push(from_pod("UDP to a stranger", &outside, Packet::Opening, false)?);
        let spoofed = probe(family.friend, family.in_block, Protocol::Udp, 53)?;
        cases.push(from_pod("UDP with another's source", &spoofed, Packet::Opening, false)?);
    }
    let [v4, _] = FAMILIES;
    cases.push(arp("ARP request with the pod's own address", v4.pod, true)?);
    cases.push(arp("ARP request with another's address", v4.friend, false)?);
    Ok(cases)
}

fn probe(source: &str, destination: &str, protocol: Protocol, port: u16) -> Result<Probe> {
    let side = |address: &str| anyhow::Ok(Side { address: address.parse::<IpAddr>()?, pod: None });
    Ok(Probe { source: side(source)?, destination: side(destination)?, protocol, port })
}

fn from_pod(name: &str, probe: &Probe, packet: Packet, passes: bool) -> Result<Case> {
    case(name, Hook::FromPod, probe, (packet, passes))
}

fn to_pod(name: &str, probe: &Probe, packet: Packet, passes: bool) -> Result<Case> {
    case(name, Hook::ToPod, probe, (packet, passes))
}

fn case(name: &str, hook: Hook, probe: &Probe, (packet, passes): (Packet, bool)) -> Result<Case> {
    let (source, destination) = match hook {
        Hook::FromPod => (POD_MAC, NODE_MAC),
        Hook::ToPod | Hook::ToUplink => (NODE_MAC, POD_MAC),
    };
    let frame = frame(probe, packet, &Link { source, destination }).context("a probe across families")?;
    Ok(Case { name: format!("{name} ({probe} from port {SOURCE_PORT})"), hook, frame, passes })
}

fn arp(name: &str, sender: &str, passes: bool) -> Result<Case> {
    let address = |text: &str| anyhow::Ok(text.parse::<std::net::Ipv4Addr>()?.octets());
    let [v4, _] = FAMILIES;
    // Broadcast from the pod; Ethernet and IPv4, a request; sender, then the target whose MAC is asked for.
    let frame = [
        &[0xff; 6][..],
        &POD_MAC,
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1],
        &POD_MAC,
        &address(sender)?,
        &[0; 6],
        &address(v4.stranger)?,
    ]
    .concat();
    Ok(Case { name: name.to_owned(), hook: Hook::FromPod, frame, passes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_verdicts_are_expected_of_both_hooks_in_both_families() {
        let cases = cases().unwrap();
        for (hook, passes) in [(Hook::FromPod, true), (Hook::FromPod, false), (Hook::ToPod, true), (Hook::ToPod, false)]
        {
            for ether_type in [[0x08, 0x00], [0x86, 0xdd]] {
                let matching = cases.iter().filter(|case| case.frame[12..14] == ether_type && case.hook == hook);
                assert!(matching.filter(|case| case.passes == passes).count() > 0, "{hook:?} {passes} {ether_type:?}");
            }
        }
    }

    #[test]
    fn an_arp_frame_has_the_length_of_one() {
        assert_eq!(arp("x", "10.0.0.1", true).unwrap().frame.len(), 14 + 28);
    }
}
