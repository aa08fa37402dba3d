//! Drops as told by the programs: bytes in ([`decode`]), named by pod and policy ([`enrich`]), out to a sink ([`sink`]).
//!
//! Reads the cluster and the compiler's provenance, changes nothing. Start at [`Flow`].

pub mod decode;
pub mod enrich;
pub mod export;
pub mod sink;

use std::net::IpAddr;
use std::time::SystemTime;

use netpol_common::abi::{Direction, Reason};
use serde::{Serialize, Serializer};

use crate::cluster::model::{PodKey, PolicyKey};

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
}

/// A dropped packet with everything that is known of it.
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
