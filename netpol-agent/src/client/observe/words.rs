//! Hubble's words for numbers, both ways: reserved identities, event types, trace points, drop reasons. Pure tables.

use crate::observe::hubble::proto::flow::{IpVersion, Workload};

const IDENTITIES: [&str; 11] = [
    "unknown",
    "host",
    "world",
    "unmanaged",
    "health",
    "init",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "world-ipv4",
    "world-ipv6",
];

const TRACE_POINTS: [&str; 14] = [
    "to-endpoint",
    "to-proxy",
    "to-host",
    "to-stack",
    "to-overlay",
    "from-endpoint",
    "from-proxy",
    "from-host",
    "from-stack",
    "from-overlay",
    "from-network",
    "to-network",
    "from-crypto",
    "to-crypto",
];

/// Types of events.
pub(super) const DROP: i32 = 1;
pub(super) const CAPTURE: i32 = 3;
pub(super) const TRACE: i32 = 4;
pub(super) const POLICY_VERDICT: i32 = 5;
pub(super) const TRACE_SOCK: i32 = 7;
const EVENT_TYPES: [(&str, i32); 8] = [
    ("drop", DROP),
    ("debug", 2),
    ("capture", CAPTURE),
    ("trace", TRACE),
    ("policy-verdict", POLICY_VERDICT),
    ("trace-sock", TRACE_SOCK),
    ("l7", 129),
    ("agent", 130),
];

/// A reserved identity's name.
pub(super) fn identity_name(number: u32) -> Option<&'static str> {
    IDENTITIES.get(usize::try_from(number).ok()?).copied()
}

/// An identity by number or name.
pub(super) fn identity(text: &str) -> Option<u32> {
    let reserved = IDENTITIES.iter().zip(0..).find(|(name, _)| **name == text);
    reserved.map(|(_, number)| number).or_else(|| text.parse().ok())
}

/// `KIND/NAME` or `NAME`.
pub(super) fn workload(text: &str) -> Workload {
    let (kind, name) = text.split_once('/').unwrap_or(("", text));
    Workload { name: name.to_owned(), kind: kind.to_owned() }
}

pub(super) fn ip_version(text: &str) -> i32 {
    let version = match text.to_lowercase().as_str() {
        "4" | "v4" | "ipv4" | "ip4" => IpVersion::IPv4,
        "6" | "v6" | "ipv6" | "ip6" => IpVersion::IPv6,
        _ => IpVersion::IpNotUsed,
    };
    version.into()
}

/// `TYPE[:SUBTYPE]`, each by name or number.
pub(super) fn event_type(text: &str) -> Option<(i32, Option<i32>)> {
    let (kind, sub) = text.split_once(':').map_or((text, None), |(kind, sub)| (kind, Some(sub)));
    let number = |text: &str| text.parse::<u32>().ok().and_then(|number| i32::try_from(number).ok());
    let named = EVENT_TYPES.iter().find(|(name, _)| *name == kind).map(|&(_, number)| number);
    let kind = named.or_else(|| number(kind))?;
    let Some(sub) = sub else { return Some((kind, None)) };
    let point = TRACE_POINTS.iter().zip(0..).find(|(name, _)| named == Some(TRACE) && **name == sub);
    let sub = point.map(|(_, number)| number).or_else(|| number(sub))?;
    Some((kind, Some(sub)))
}

/// A trace point's name.
pub(super) fn trace_point(sub_type: i32) -> String {
    let low = sub_type & 0xff;
    let name = usize::try_from(low).ok().and_then(|at| TRACE_POINTS.get(at));
    name.map_or_else(|| low.to_string(), |name| (*name).to_owned())
}

/// What a policy verdict matched.
pub(super) fn policy_match(number: u32) -> String {
    let names = ["none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only"];
    let name = usize::try_from(number).ok().and_then(|at| names.get(at));
    name.map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// A drop reason in words; numbers that the clients do not know print as `250, 0`.
pub(super) fn drop_reason(sub_type: i32) -> String {
    let low = sub_type & 0xff;
    let named = REASONS.iter().find(|(number, _)| *number == low);
    named.map_or_else(|| format!("{low}, 0"), |(_, name)| (*name).to_owned())
}

const REASONS: [(i32, &str); 90] = [
    (0, "Success"),
    (2, "Invalid packet"),
    (3, "Interface"),
    (4, "Interface Decrypted"),
    (5, "LB, sock cgroup: No backend slot entry found"),
    (6, "LB, sock cgroup: No backend entry found"),
    (7, "LB, sock cgroup: Reverse entry update failed"),
    (8, "LB, sock cgroup: Reverse entry stale"),
    (9, "Fragmented packet"),
    (10, "Fragmented packet entry update failed"),
    (11, "Missed tail call to custom program"),
    (12, "Interface Encrypting"),
    (13, "Interface Encrypted"),
    (14, "LB: sock cgroup: Reverse entry delete succeeded"),
    (15, "MTU error message"),
    (130, "Invalid source mac"),
    (131, "Invalid destination mac"),
    (132, "Invalid source ip"),
    (133, "Policy denied"),
    (134, "Invalid packet"),
    (135, "CT: Truncated or invalid header"),
    (136, "CT: Missing TCP ACK flag"),
    (137, "CT: Unknown L4 protocol"),
    (138, "CT: Can't create entry from packet"),
    (139, "Unsupported L3 protocol"),
    (140, "Missed tail call"),
    (141, "Error writing to packet"),
    (142, "Unknown L4 protocol"),
    (143, "Unknown ICMPv4 code"),
    (144, "Unknown ICMPv4 type"),
    (145, "Unknown ICMPv6 code"),
    (146, "Unknown ICMPv6 type"),
    (147, "Error retrieving tunnel key"),
    (148, "Error retrieving tunnel options"),
    (149, "Invalid Geneve option"),
    (150, "Unknown L3 target address"),
    (151, "Stale or unroutable IP"),
    (152, "No matching local container found"),
    (153, "Error while correcting L3 checksum"),
    (154, "Error while correcting L4 checksum"),
    (155, "CT: Map insertion failed"),
    (156, "Invalid IPv6 extension header"),
    (157, "IP fragmentation not supported"),
    (158, "Service backend not found"),
    (160, "No tunnel/encapsulation endpoint (datapath BUG!)"),
    (161, "NAT 46/64 not enabled"),
    (162, "Reached EDT rate-limiting drop horizon"),
    (163, "Unknown connection tracking state"),
    (164, "Local host is unreachable"),
    (165, "No configuration available to perform policy decision"),
    (166, "Unsupported L2 protocol"),
    (167, "No mapping for NAT masquerade"),
    (168, "Unsupported protocol for NAT masquerade"),
    (169, "FIB lookup failed"),
    (170, "Encapsulation traffic is prohibited"),
    (171, "Invalid identity"),
    (172, "Unknown sender"),
    (173, "NAT not needed"),
    (174, "Is a ClusterIP"),
    (175, "First logical datagram fragment not found"),
    (176, "Forbidden ICMPv6 message"),
    (177, "Denied by LB src range check"),
    (178, "Socket lookup failed"),
    (179, "Socket assign failed"),
    (180, "Proxy redirection not supported for protocol"),
    (181, "Policy denied by denylist"),
    (182, "VLAN traffic disallowed by VLAN filter"),
    (183, "Incorrect VNI from VTEP"),
    (184, "Failed to update or lookup TC buffer"),
    (185, "No SID was found for the IP address"),
    (186, "SRv6 state was removed during tail call"),
    (187, "L3 translation from IPv4 to IPv6 failed (NAT46)"),
    (188, "L3 translation from IPv6 to IPv4 failed (NAT64)"),
    (189, "Authentication required"),
    (190, "No conntrack map found"),
    (191, "No nat map found"),
    (192, "Invalid ClusterID"),
    (193, "Unsupported packet protocol for DSR encapsulation"),
    (194, "No egress gateway found"),
    (195, "Traffic is unencrypted"),
    (196, "TTL exceeded"),
    (197, "No node ID found"),
    (198, "Rate limited"),
    (199, "IGMP handled"),
    (200, "IGMP subscribed"),
    (201, "Multicast handled"),
    (202, "Host datapath not ready"),
    (203, "Endpoint policy program not available"),
    (204, "No Egress IP configured"),
    (205, "Punt to proxy"),
];
