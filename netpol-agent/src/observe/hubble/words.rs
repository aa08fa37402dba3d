//! What the headers say in Hubble's words, and what only we can tell, as the extension that its clients print.

use std::collections::BTreeMap;

use netpol_common::packet::{ether_type, protocol, tcp_flag};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Timestamp, Value};

use super::proto::flow as hubble;
use crate::flow::{Flow, Headers};

pub(super) const IGMP: u8 = 2;
pub(super) const VRRP: u8 = 112;

pub(super) const PSH: u8 = 0x08;
pub(super) const URG: u8 = 0x20;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// The last column of a line.
#[must_use]
pub fn summary(headers: &Headers) -> String {
    let family = match headers.ether_type {
        ether_type::IPV4 => "IPv4",
        ether_type::IPV6 => "IPv6",
        _ => return "Ethernet".to_owned(),
    };
    match headers.protocol {
        protocol::TCP => tcp(headers.tcp_flags),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        protocol::ICMP => format!("ICMPv4 {}", icmpv4(headers.icmp_type, headers.icmp_code)),
        protocol::ICMPV6 => format!("ICMPv6 {}", icmpv6(headers.icmp_type, headers.icmp_code)),
        VRRP => "VRRP".to_owned(),
        IGMP => "IGMP".to_owned(),
        _ => family.to_owned(),
    }
}

fn tcp(flags: u8) -> String {
    let names = [
        (tcp_flag::SYN, "SYN"),
        (tcp_flag::ACK, "ACK"),
        (tcp_flag::RST, "RST"),
        (tcp_flag::FIN, "FIN"),
        (PSH, "PSH"),
        (URG, "URG"),
        (ECE, "ECE"),
        (CWR, "CWR"),
    ];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| flags & bit != 0).map(|&(_, name)| name).collect();
    format!("TCP Flags: {}", set.join(", "))
}

fn with_code(name: &str, code: u8, codes: &[&str]) -> String {
    match codes.get(usize::from(code)) {
        Some(known) => format!("{name}({known})"),
        None => format!("{name}(Code: {code})"),
    }
}

fn icmpv4(kind: u8, code: u8) -> String {
    let plain = match kind {
        0 => "EchoReply",
        3 => {
            let codes = [
                "Net",
                "Host",
                "Protocol",
                "Port",
                "FragmentationNeeded",
                "SourceRoutingFailed",
                "NetUnknown",
                "HostUnknown",
                "SourceIsolated",
                "NetAdminProhibited",
                "HostAdminProhibited",
                "NetTOS",
                "HostTOS",
                "CommAdminProhibited",
                "HostPrecedence",
                "PrecedenceCutoff",
            ];
            return with_code("DestinationUnreachable", code, &codes);
        }
        4 => "SourceQuench",
        5 => return with_code("Redirect", code, &["Net", "Host", "TOS+Net", "TOS+Host"]),
        8 => "EchoRequest",
        9 => "RouterAdvertisement",
        10 => "RouterSolicitation",
        11 => return with_code("TimeExceeded", code, &["TTLExceeded", "FragmentReassemblyTimeExceeded"]),
        12 => return with_code("ParameterProblem", code, &["PointerIndicatesError", "MissingOption", "BadLength"]),
        13 => "TimestampRequest",
        14 => "TimestampReply",
        15 => "InfoRequest",
        16 => "InfoReply",
        17 => "AddressMaskRequest",
        18 => "AddressMaskReply",
        other => return format!("{other}({code})"),
    };
    if code == 0 { plain.to_owned() } else { format!("{plain}(Code: {code})") }
}

fn icmpv6(kind: u8, code: u8) -> String {
    let plain = match kind {
        1 => {
            let codes = [
                "NoRouteToDst",
                "AdminProhibited",
                "BeyondScopeOfSrc",
                "AddressUnreachable",
                "PortUnreachable",
                "SrcAddressFailedPolicy",
                "RejectRouteToDst",
            ];
            return with_code("DestinationUnreachable", code, &codes);
        }
        2 => "PacketTooBig",
        3 => return with_code("TimeExceeded", code, &["HopLimitExceeded", "FragmentReassemblyTimeExceeded"]),
        4 => {
            let codes = ["ErroneousHeader", "UnrecognizedNextHeader", "UnrecognizedIPv6Option"];
            return with_code("ParameterProblem", code, &codes);
        }
        128 => "EchoRequest",
        129 => "EchoReply",
        130 => "MLDv1MulticastListenerQueryMessage",
        131 => "MLDv1MulticastListenerReportMessage",
        132 => "MLDv1MulticastListenerDoneMessage",
        133 => "RouterSolicitation",
        134 => "RouterAdvertisement",
        135 => "NeighborSolicitation",
        136 => "NeighborAdvertisement",
        137 => "Redirect",
        143 => "MLDv2MulticastListenerReportMessageV2",
        other => return format!("{other}({code})"),
    };
    if code == 0 { plain.to_owned() } else { format!("{plain}(Code: {code})") }
}

const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

/// How many more packets a flow stands for.
#[must_use]
pub fn suppressed(flow: &hubble::Flow) -> f64 {
    match fields_of(flow).remove("suppressed").and_then(|value| value.kind) {
        Some(Kind::NumberValue(number)) => number,
        _ => 0.0,
    }
}

/// Has a flow stand for so many packets, the last of them at that time.
pub fn sum_up(flow: &mut hubble::Flow, packets: f64, last: Timestamp) {
    let mut fields = fields_of(flow);
    fields.remove("suppressed");
    fields.insert("packets".to_owned(), Value { kind: Some(Kind::NumberValue(packets)) });
    fields.insert("last".to_owned(), Value { kind: Some(Kind::StringValue(last.to_string())) });
    flow.extensions = Some(Any { type_url: STRUCT.to_owned(), value: Struct { fields }.encode_to_vec() });
}

fn fields_of(flow: &hubble::Flow) -> BTreeMap<String, Value> {
    let ours = flow.extensions.as_ref().filter(|any| any.type_url == STRUCT);
    ours.and_then(|any| Struct::decode(any.value.as_slice()).ok()).map(|it| it.fields).unwrap_or_default()
}

/// Our own reason, the nearest miss and how many packets like it there were, as `google.protobuf.Struct`: the one type of
/// extension that every client can print.
pub(super) fn extension(flow: &Flow) -> Option<Any> {
    let hint = ("hint", flow.hint.as_str());
    let texts = [Some(("reason", flow.reason.name())), Some(hint).filter(|_| !flow.hint.is_empty())];
    Some(of_text(&texts.into_iter().flatten().collect::<Vec<_>>(), f64::from(flow.suppressed)))
}

/// An extension of these texts, and how many more packets it stands for.
#[must_use]
pub fn of_text(texts: &[(&str, &str)], suppressed: f64) -> Any {
    let text =
        |&(name, text): &(&str, &str)| (name.to_owned(), Value { kind: Some(Kind::StringValue(text.to_owned())) });
    let mut fields: BTreeMap<String, Value> = texts.iter().map(text).collect();
    if suppressed > 0.0 {
        fields.insert("suppressed".to_owned(), Value { kind: Some(Kind::NumberValue(suppressed)) });
    }
    Any { type_url: STRUCT.to_owned(), value: Struct { fields }.encode_to_vec() }
}
