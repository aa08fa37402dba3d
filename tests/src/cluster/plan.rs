//! Who has which address: everything about a node that follows from its number.
//!
//! Node `n` has the pods of `10.244.n.0/24` and `fd00:10:244:n::/64`, as a Flannel network of `10.244.0.0/16` and
//! `fd00:10:244::/48` hands them out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All pods of the cluster, in either family.
pub const POD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Lengths of a node's own part of them.
pub(super) const POD_PREFIX: [u8; 2] = [24, 64];

/// The addresses of one node; the first of each pair is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    number: u8,
    /// The segment of the nodes has addresses that nobody writes into a description of a cluster.
    hidden: bool,
}

impl Plan {
    /// The most nodes for which there are addresses.
    pub const MOST: u8 = 80;
    /// The only node, or the first.
    pub const FIRST: Self = Self { number: 1, hidden: false };

    /// The plan of node `number`, from 1.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        if number == 0 || number > Self::MOST { None } else { Some(Self { number, hidden: false }) }
    }

    /// The same with uplinks in ranges that hardly anybody uses, so that the documentation's ranges are free for others.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    /// The outside host's addresses on the segment of the uplinks.
    #[must_use]
    pub const fn outside(self) -> [IpAddr; 2] {
        if self.hidden { segment(100) } else { super::OUTSIDE_ADDRESSES }
    }

    /// On `cni0`: the pods' gateway, where the node's own probes of pods come from.
    #[must_use]
    pub const fn gateways(self) -> [IpAddr; 2] {
        self.pod(1)
    }

    /// On `flannel.1` and `flannel-v6.1`: where packets of the node's own processes to pods elsewhere come from.
    #[must_use]
    pub const fn overlay(self) -> [IpAddr; 2] {
        self.pod(0)
    }

    /// On the uplink: the node's `status.addresses`.
    #[must_use]
    pub const fn uplink(self) -> [IpAddr; 2] {
        if self.hidden {
            return segment(self.number);
        }
        [
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9 + self.number)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x0f + self.number as u16)),
        ]
    }

    /// A pod's addresses, by a number from 2.
    #[must_use]
    pub const fn pod(self, host: u8) -> [IpAddr; 2] {
        [
            IpAddr::V4(Ipv4Addr::new(10, 244, self.number, host)),
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number as u16, 0, 0, 0, host as u16)),
        ]
    }

    /// The MAC address of `cni0`.
    #[must_use]
    pub const fn bridge_mac(self) -> [u8; 6] {
        [0x0a, 0x58, 10, 244, self.number, 1]
    }

    /// The MAC address of a VXLAN device.
    #[must_use]
    pub const fn overlay_mac(self, ipv6: bool) -> [u8; 6] {
        [0x0e, 0xf1, 0, 0, ipv6 as u8, self.number]
    }
}

/// Addresses of the hidden segment.
const fn segment(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(100, 127, 233, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd7b, 0x3c51, 0x9a2e, 0, 0, 0, 0, host as u16)),
    ]
}

/// The part of an address pair's prefix lengths that belongs to the address.
#[must_use]
pub(super) const fn prefix(address: IpAddr, [v4, v6]: [u8; 2]) -> u8 {
    if address.is_ipv4() { v4 } else { v6 }
}
