//! Drops, and new flows that were let through if that is asked for, as told by the programs: bytes in ([`decode`]), named by
//! pod and policy ([`enrich`]), out to a sink ([`sink`]).
//!
//! Reads the cluster and the compiler's provenance, changes nothing. Start at [`Flow`].

pub mod decode;
pub mod departed;
pub mod enrich;
pub mod sink;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use netpol_common::abi::{Direction, Reason};
use serde::{Serialize, Serializer};

use crate::cluster::model::{ObjectKey, Pod, PodKey, PolicyKey};

/// Who is behind an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Nobody knows: the frame is not IP, or several pods claim the address.
    #[default]
    Unknown,
    /// A pod, perhaps one that is gone already.
    Pod(Arc<Pod>),
    /// This node.
    Host,
    /// Another node, by its name.
    RemoteNode(Arc<str>),
    /// A node that the API server runs on.
    KubeApiServer,
    /// A service's address that nothing translated yet.
    Service,
    /// Outside of the cluster, as far as is known.
    World,
}

/// How much of a flow the rules that let it through ask about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Match {
    /// No rule lets it through: nothing isolates the pod, or it was denied.
    #[default]
    None,
    /// Only the peer.
    Peer,
    /// Peer and port.
    PeerAndPort,
    /// Only the port.
    Port,
    /// Neither.
    All,
}

/// What the packet's headers say beside addresses and ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// EtherType.
    pub ether_type: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Ethernet source.
    pub source_mac: [u8; 6],
    /// Ethernet destination.
    pub destination_mac: [u8; 6],
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// Address; none for a frame that is not IP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Port, for protocols that have ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The pod that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodKey>,
    /// Everything that is known of who has the address.
    #[serde(skip)]
    pub who: Who,
    /// The service whose address it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ObjectKey>,
}

/// A packet that was dropped, or that opened a flow, with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// When, wall clock.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// The pod that it was dropped at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodKey>,
    /// Direction as that pod sees it.
    #[serde(serialize_with = "direction_name")]
    pub direction: Direction,
    /// Why.
    #[serde(serialize_with = "reason_name")]
    pub reason: Reason,
    /// Hubble's number for it.
    pub drop_reason: u32,
    /// Sender.
    pub source: End,
    /// Receiver.
    pub destination: End,
    /// `TCP`, `UDP`, `SCTP`, `ICMPv4`, `ICMPv6`, a number, or an EtherType.
    pub protocol: String,
    /// TCP flags or ICMP type, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// The policies that isolate the pod, default deny included.
    pub policies: Vec<PolicyKey>,
    /// The direction that these policies isolate it in: of a reply to a revoked flow, the opener's.
    #[serde(serialize_with = "optional_direction_name", skip_serializing_if = "Option::is_none")]
    pub isolated_for: Option<Direction>,
    /// The nearest miss: what would have had to be different.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// The policies with a rule that lets it through.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_by: Vec<PolicyKey>,
    /// What these rules ask about.
    #[serde(skip)]
    pub matched: Match,
    /// The rest of the headers.
    #[serde(skip)]
    pub headers: Headers,
    /// The slot of the pod.
    #[serde(skip)]
    pub slot: u16,
    /// Bytes of the packet.
    pub length: u32,
    /// More drops of this flow since its last line.
    pub suppressed: u32,
    /// Interface index of the hook.
    pub ifindex: u32,
}

fn direction_name<S: Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction.name())
}

fn optional_direction_name<S: Serializer>(direction: &Option<Direction>, serializer: S) -> Result<S::Ok, S::Error> {
    direction.map(Direction::name).serialize(serializer)
}

fn reason_name<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.name())
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*time))
}

/// RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let nanoseconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => i128::try_from(before.duration().as_nanos()).map_or(i128::MIN, |it| -it),
    };
    match jiff::Timestamp::from_nanosecond(nanoseconds) {
        Ok(stamp) => format!("{stamp:.3}"),
        Err(_out_of_range) => "N/A".to_owned(),
    }
}
