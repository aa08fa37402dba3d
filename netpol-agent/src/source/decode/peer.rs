//! One item of `from` or `to` -> [`Peer`], or nobody.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::IPBlock;
use serde_json::{Map, Value};

use super::report::{Report, child, index, quote, show, suggestion, typed};
use super::selector;
use crate::cluster::model::{IpBlock, Peer};

const FIELDS: [&str; 3] = ["podSelector", "namespaceSelector", "ipBlock"];
const NOBODY: &str = "this peer matches nobody";

/// Reads the peer at `path`; `None` is nobody.
pub(super) fn peer(report: &mut Report, path: &str, value: &Value) -> Option<Peer> {
    let Value::Object(fields) = value else {
        let message = format!("{} is no peer; use podSelector, namespaceSelector or ipBlock", show(value));
        report.refuse(path, message, NOBODY);
        return None;
    };
    let mut usable = true;
    for key in fields.keys().filter(|key| !FIELDS.contains(&key.as_str())) {
        usable = false;
        report.refuse(&child(path, key), format!("unknown field{}", suggestion(key, &FIELDS)), NOBODY);
    }
    let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let (pods, namespaces, block) = (field("podSelector"), field("namespaceSelector"), field("ipBlock"));
    let peer = match (pods.is_some() || namespaces.is_some(), block) {
        (true, Some(_)) => {
            report.refuse(path, "ipBlock cannot be combined with a selector; make it two peers", NOBODY);
            None
        }
        (false, Some(block)) => ip_block(report, &child(path, "ipBlock"), block).map(Peer::IpBlock),
        (true, None) => selectors(report, path, fields),
        (false, None) if usable => {
            let message =
                "empty peer; use podSelector, namespaceSelector or ipBlock, or leave out the list for everyone";
            report.refuse(path, message, NOBODY);
            None
        }
        (false, None) => None,
    };
    peer.filter(|_| usable)
}

fn selectors(report: &mut Report, path: &str, fields: &Map<String, Value>) -> Option<Peer> {
    let mut exact = true;
    let mut read = |name: &str| {
        let value = fields.get(name).filter(|value| !value.is_null())?;
        let decoded = selector::decode(report, &child(path, name), value, NOBODY);
        exact &= decoded.exact;
        Some(decoded.selector)
    };
    let (namespaces, pods) = (read("namespaceSelector"), read("podSelector"));
    // A missing podSelector beside a namespaceSelector is every pod of those namespaces.
    exact.then(|| Peer::Pods { namespaces, pods: pods.unwrap_or_default() })
}

fn ip_block(report: &mut Report, path: &str, value: &Value) -> Option<IpBlock> {
    let read = match typed::<IPBlock>(path, value) {
        Ok(read) => read,
        Err(mismatch) => {
            report.refuse(&mismatch.path, mismatch.message, NOBODY);
            return None;
        }
    };
    for field in &read.unknown {
        report.refuse(field, "unknown field; an ipBlock has cidr and except", NOBODY);
    }
    let cidr = block(report, &child(path, "cidr"), &read.value.cidr);
    // An exception that is not applied would widen: any that cannot be used makes the peer unusable.
    let mut usable = read.unknown.is_empty();
    let mut except = Vec::new();
    for (at, text) in read.value.except.unwrap_or_default().iter().enumerate() {
        let path = index(&child(path, "except"), at);
        match (cidr, block(report, &path, text)) {
            (Some(cidr), Some(hole)) if hole == cidr || !cidr.contains(&hole) => {
                usable = false;
                let message = format!("exception {hole} is not strictly inside {cidr}; {}", why_outside(&cidr, &hole));
                report.refuse(&path, message, NOBODY);
            }
            (_, Some(hole)) => except.push(hole),
            (_, None) => usable = false,
        }
    }
    cidr.filter(|_| usable).map(|cidr| IpBlock { cidr, except })
}

fn why_outside(cidr: &IpNet, hole: &IpNet) -> &'static str {
    match (cidr, hole) {
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => {
            "it is of the other address family: an ipBlock for each family"
        }
        _ if cidr == hole => "it leaves nothing of the block: remove the peer",
        _ => "an exception cuts a part out of its own block",
    }
}

/// Reads a CIDR. One with host bits is taken as the block it is in, as the API server has always done.
fn block(report: &mut Report, path: &str, text: &str) -> Option<IpNet> {
    let net = match parse_cidr(text) {
        Ok(net) => net,
        Err(advice) => {
            report.refuse(path, format!("bad CIDR {}; {advice}", quote(text)), NOBODY);
            return None;
        }
    };
    let whole = net.trunc();
    if whole != net {
        let own = format!("{}/{}", net.addr(), net.max_prefix_len());
        let message = format!("{net} has bits set beyond its prefix; write {whole}, or {own}");
        report.note(path, message, format!("the block is {whole}"));
    }
    Some(whole)
}

/// `address/length`, or what to write instead. Stricter than `IpNet`, which takes 010.0.0.0 for 10.0.0.0; to others that
/// is octal.
fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let Some((address, length)) = text.split_once('/') else {
        return Err(match IpAddr::from_str(text) {
            Ok(IpAddr::V4(address)) => format!("add the prefix length, as {address}/32"),
            Ok(IpAddr::V6(address)) => format!("add the prefix length, as {address}/128"),
            Err(_) => "write address/length, as 10.0.0.0/8".to_owned(),
        });
    };
    let Ok(address) = IpAddr::from_str(address) else {
        return Err(format!("{} is no IP address (no leading zeros, all parts)", quote(address)));
    };
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err("write the IPv4 block itself".to_owned());
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    let digits =
        !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length = length.parse::<u8>().ok().filter(|_| digits);
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    net.ok_or_else(|| format!("the prefix length is a number from 0 to {most}"))
}
