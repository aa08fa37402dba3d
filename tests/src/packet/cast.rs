//! Who takes part in the scenes, and what the tables say of them: one pod that is judged, another of the same node, and
//! the world around them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use netpol_common::abi::{
    AddressRole, AllowKey, AllowValue, Config, Endpoint, EndpointFlags, IDENTITY_NONE, Mac, POLICY_DENY,
    POLICY_NOT_ISOLATED, PORT_SET_BYTES, PolicyWord, PortRule, Prefix, V4, V6,
};
use netpol_common::host::HostTables;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
    /// IPv4 alone.
    pub const ONLY_V4: [Self; 1] = [Self::V4];
    /// IPv6 alone.
    pub const ONLY_V6: [Self; 1] = [Self::V6];

    /// True for IPv4.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        matches!(self, Self::V4)
    }

    /// EtherType of the family.
    #[must_use]
    pub const fn ether_type(self) -> u16 {
        if self.is_v4() { 0x0800 } else { 0x86dd }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_v4() { "IPv4" } else { "IPv6" })
    }
}

/// Slot of the pod.
pub const SLOT: u16 = 7;
/// Slot of the other pod of the node.
pub const OTHER_SLOT: u16 = 8;
/// MAC address of the pod.
pub const POD_MAC: [u8; 6] = [0x02, 0x42, 0x0a, 0xf4, 0x01, 0x07];
/// MAC address of the other pod.
pub const OTHER_POD_MAC: [u8; 6] = [0x02, 0x42, 0x0a, 0xf4, 0x01, 0x08];
/// MAC address of the bridge.
pub const BRIDGE_MAC: [u8; 6] = [0x02, 0x42, 0x0a, 0xf4, 0x01, 0x01];

/// Policy id that isolates the pod's ingress.
pub const INGRESS_POLICY: u16 = 2;
/// Policy id that isolates the pod's egress.
pub const EGRESS_POLICY: u16 = 3;

/// Identity of the client.
pub const CLIENT_IDENTITY: u32 = 100;
/// Identity of the block.
pub const BLOCK_IDENTITY: u32 = 200;
/// Identity of the part of the block that is excepted.
pub const EXCEPTED_IDENTITY: u32 = 201;

/// A TCP port that policies allow from and to the client.
pub const WEB: u16 = 8080;
/// A UDP port that they allow.
pub const DNS: u16 = 53;
/// An SCTP port that they allow.
pub const SIP: u16 = 5060;
/// A port of each protocol that they do not allow.
pub const SHUT: u16 = 2222;

const TCP_SET: u16 = 2;
const UDP_SET: u16 = 3;
const SCTP_SET: u16 = 4;

/// The participants' addresses in one family.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The family.
    pub family: Family,
    /// The pod that is judged.
    pub pod: IpAddr,
    /// Another pod of the node.
    pub other_pod: IpAddr,
    /// An address that the policies allow.
    pub client: IpAddr,
    /// An address that no policy names.
    pub stranger: IpAddr,
    /// An address in a block whose TCP the policies allow.
    pub block: IpAddr,
    /// An address in the part of the block that is excepted.
    pub excepted: IpAddr,
    /// The node itself.
    pub node: IpAddr,
    /// Another node of the cluster.
    pub other_node: IpAddr,
    /// An address that a service may have.
    pub service: IpAddr,
    /// An address in the cluster's service range.
    pub in_service_range: IpAddr,
    /// A multicast group.
    pub group: IpAddr,
    /// The link-local address that the pod's MAC address forms (IPv4: that of nobody).
    pub link_local: IpAddr,
}

impl Cast {
    /// The participants in this family.
    #[must_use]
    pub fn of(family: Family) -> Self {
        let address = |v4: [u8; 4], v6: [u16; 8]| match family {
            Family::V4 => IpAddr::from(v4),
            Family::V6 => IpAddr::from(v6),
        };
        let pods = |host: u8| address([10, 244, 1, host], [0xfd00, 10, 244, 1, 0, 0, 0, host.into()]);
        let far = |host: u8| address([10, 244, 2, host], [0xfd00, 10, 244, 2, 0, 0, 0, host.into()]);
        Self {
            family,
            pod: pods(7),
            other_pod: pods(8),
            client: far(5),
            stranger: far(6),
            block: address([203, 0, 113, 9], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
            excepted: address([203, 0, 113, 200], [0x2001, 0xdb8, 0, 0, 0, 0, 0x80, 9]),
            node: pods(1),
            other_node: address([192, 168, 7, 3], [0xfd00, 192, 168, 7, 0, 0, 0, 3]),
            service: address([10, 96, 0, 9], [0xfd00, 10, 96, 0, 0, 0, 0, 9]),
            in_service_range: address([10, 97, 3, 9], [0xfd00, 10, 97, 0, 3, 0, 0, 9]),
            group: address([224, 0, 0, 251], [0xff02, 0, 0, 0, 0, 0, 0, 0xfb]),
            link_local: address([169, 254, 1, 7], [0xfe80, 0, 0, 0, 0x0042, 0x0aff, 0xfef4, 0x0107]),
        }
    }

    /// The unspecified address of the family.
    #[must_use]
    pub fn unspecified(&self) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0_u16; 8]),
        }
    }

    /// The tables around the participants.
    #[must_use]
    pub fn tables(&self, config: Config) -> HostTables {
        let mut tables = HostTables::new(config);
        tables.set_identity(self.client, CLIENT_IDENTITY);
        let (block, excepted) = if self.family.is_v4() { (24, 25) } else { (64, 112) };
        tables.set_cidr(network(self.block, block), block, BLOCK_IDENTITY);
        tables.set_cidr(network(self.excepted, excepted), excepted, EXCEPTED_IDENTITY);
        tables.set_role(self.node, AddressRole::OWN);
        for policy in [INGRESS_POLICY, EGRESS_POLICY] {
            tables.allow.insert(AllowKey::new(policy, CLIENT_IDENTITY), client_may());
            let block_may = AllowValue { tcp: PortRule::All.encode(), ..AllowValue::default() };
            tables.allow.insert(AllowKey::new(policy, BLOCK_IDENTITY), block_may);
        }
        for (set, ports) in [(TCP_SET, &[WEB, 9000, 9001, 65_535][..]), (UDP_SET, &[DNS]), (SCTP_SET, &[SIP])] {
            tables.port_sets.insert(set, port_set(ports));
        }
        tables
    }
}

/// The cluster's service ranges: 10.97.0.0/16 and fd00:a:61::/48.
#[must_use]
pub fn with_service_ranges(config: Config) -> Config {
    let v4 = |octets| [V4::from_octets(octets).0];
    let [a, b, ..] = V6::from(Ipv6Addr::new(0xfd00, 10, 97, 0, 0, 0, 0, 0)).0;
    let [mask, half, ..] = V6::from(Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0, 0, 0, 0, 0)).0;
    Config {
        services_v4: Prefix { address: v4([10, 97, 0, 0]), mask: v4([255, 255, 0, 0]) },
        services_v6: Prefix { address: [a, b, 0, 0], mask: [mask, half, 0, 0] },
        ..config
    }
}

/// What the client may do in both directions.
#[must_use]
pub fn client_may() -> AllowValue {
    AllowValue {
        tcp: PortRule::Set(TCP_SET).encode(),
        udp: PortRule::Set(UDP_SET).encode(),
        sctp: PortRule::Set(SCTP_SET).encode(),
        other: 1,
    }
}

/// The network address of `address`.
fn network(address: IpAddr, prefix_len: u8) -> IpAddr {
    ipnet::IpNet::new(address, prefix_len).map_or(address, |network| network.network())
}

fn port_set(ports: &[u16]) -> Vec<u8> {
    let mut bits = vec![0; PORT_SET_BYTES];
    for port in ports {
        if let Some(byte) = bits.get_mut(usize::from(port / 8)) {
            *byte |= 1 << (port % 8);
        }
    }
    bits
}

/// The pod's endpoint in both families.
#[must_use]
pub fn endpoint() -> Endpoint {
    of_slot(SLOT, POD_MAC, |family| Cast::of(family).pod)
}

/// The other pod's endpoint.
#[must_use]
pub fn other_endpoint() -> Endpoint {
    of_slot(OTHER_SLOT, OTHER_POD_MAC, |family| Cast::of(family).other_pod)
}

fn of_slot(slot: u16, mac: [u8; 6], address: impl Fn(Family) -> IpAddr) -> Endpoint {
    let mut endpoint = Endpoint { slot, mac: Mac::from_octets(mac), ..Endpoint::default() };
    endpoint.flags = EndpointFlags::HAS_V4 | EndpointFlags::HAS_V6;
    for family in Family::BOTH {
        match address(family) {
            IpAddr::V4(address) => endpoint.ipv4 = address.into(),
            IpAddr::V6(address) => endpoint.ipv6 = address.into(),
        }
    }
    endpoint
}

/// In which directions the pod is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// In none.
    Free,
    /// Ingress: the client may, and TCP of the block.
    Ingress,
    /// Egress: to the client, and TCP to the block.
    Egress,
    /// Both.
    Both,
    /// Both, and nobody may anything.
    DenyAll,
}

impl Isolation {
    /// The policy word of it under this revision.
    #[must_use]
    pub const fn word(self, revision: u32) -> PolicyWord {
        let (ingress, egress) = match self {
            Self::Free => (POLICY_NOT_ISOLATED, POLICY_NOT_ISOLATED),
            Self::Ingress => (INGRESS_POLICY, POLICY_NOT_ISOLATED),
            Self::Egress => (POLICY_NOT_ISOLATED, EGRESS_POLICY),
            Self::Both => (INGRESS_POLICY, EGRESS_POLICY),
            Self::DenyAll => (POLICY_DENY, POLICY_DENY),
        };
        PolicyWord::new(ingress, egress, revision)
    }
}

const _: () = assert!(IDENTITY_NONE != CLIENT_IDENTITY);
