//! Checks of what stands in the packet's headers: addresses, protocol, ports, TCP flags.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Check, FilterError};
use crate::observe::hubble::proto::flow::layer4::Protocol;
use crate::observe::hubble::proto::flow::{Flow, Ip, TcpFlags};

/// Single addresses are compared as text, as Hubble does.
pub(super) fn addresses(asked: &[String], of: fn(&Ip) -> &String) -> Result<Check, FilterError> {
    let mut singles = Vec::new();
    let mut blocks = Vec::new();
    for text in asked {
        if text.contains('/') {
            let block: IpNet = text.parse().map_err(|_bad: ipnet::AddrParseError| FilterError::Cidr(text.clone()))?;
            blocks.push(block.trunc());
        } else {
            let _: IpAddr =
                text.parse().map_err(|_bad: std::net::AddrParseError| FilterError::Address(text.clone()))?;
            singles.push(text.clone());
        }
    }
    Ok(Box::new(move |flow| {
        let Some(address) = flow.ip.as_ref().map(of).filter(|address| !address.is_empty()) else { return false };
        singles.contains(address)
            || !blocks.is_empty()
                && address.parse::<IpAddr>().is_ok_and(|address| blocks.iter().any(|block| block.contains(&address)))
    }))
}

fn protocol(flow: &Flow) -> Option<&Protocol> {
    flow.l4.as_ref()?.protocol.as_ref()
}

/// Source and destination port of a flow, if its protocol has ports.
#[must_use]
pub fn ports_of(flow: &Flow) -> Option<(u32, u32)> {
    match protocol(flow)? {
        Protocol::Tcp(tcp) => Some((tcp.source_port, tcp.destination_port)),
        Protocol::Udp(udp) => Some((udp.source_port, udp.destination_port)),
        Protocol::Sctp(sctp) => Some((sctp.source_port, sctp.destination_port)),
        Protocol::IcmPv4(_) | Protocol::IcmPv6(_) | Protocol::Vrrp(_) | Protocol::Igmp(_) => None,
    }
}

pub(super) fn ports(side: &'static str, asked: &[String], of: fn((u32, u32)) -> u32) -> Result<Check, FilterError> {
    let number = |text: &String| match text.parse::<u16>() {
        Ok(port) if !text.starts_with('+') => Ok(u32::from(port)),
        _ => Err(FilterError::Port { side, port: text.clone() }),
    };
    let asked = asked.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(move |flow| ports_of(flow).is_some_and(|ports| asked.contains(&of(ports)))))
}

pub(super) fn protocols(asked: &[String]) -> Result<Check, FilterError> {
    let known = ["icmp", "icmpv4", "icmpv6", "tcp", "udp", "sctp", "vrrp", "igmp", "dns", "http", "kafka"];
    let name = |text: &String| {
        let name = text.to_lowercase();
        known.iter().find(|it| **it == name).copied().ok_or_else(|| FilterError::Protocol(text.clone()))
    };
    let asked = asked.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(move |flow| {
        let names: &[&str] = match protocol(flow) {
            Some(Protocol::Tcp(_)) => &["tcp"],
            Some(Protocol::Udp(_)) => &["udp"],
            Some(Protocol::Sctp(_)) => &["sctp"],
            Some(Protocol::IcmPv4(_)) => &["icmpv4", "icmp"],
            Some(Protocol::IcmPv6(_)) => &["icmpv6", "icmp"],
            Some(Protocol::Vrrp(_)) => &["vrrp"],
            Some(Protocol::Igmp(_)) => &["igmp"],
            None => &[],
        };
        asked.iter().any(|it| names.contains(it))
    }))
}

pub(super) fn tcp_flags(asked: Vec<TcpFlags>) -> Check {
    Box::new(move |flow| {
        let Some(Protocol::Tcp(tcp)) = protocol(flow) else { return false };
        let Some(set) = tcp.flags.as_ref().map(bits) else { return false };
        asked.iter().any(|it| bits(it).iter().zip(set).all(|(asked, set)| !asked || set))
    })
}

const fn bits(flags: &TcpFlags) -> [bool; 9] {
    [flags.fin, flags.syn, flags.rst, flags.psh, flags.ack, flags.urg, flags.ece, flags.cwr, flags.ns]
}
