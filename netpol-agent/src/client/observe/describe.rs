//! What each column says of a flow. Pure.

use super::paint::Paint;
use super::words;
use crate::observe::hubble::proto::flow::layer4::Protocol;
use crate::observe::hubble::proto::flow::{
    DebugCapturePoint, Endpoint, Flow, L7FlowType, Policy, Service, SocketTranslationPoint, TrafficDirection, Verdict,
    layer7,
};

/// Length from which names of nodes are only counted.
const NODE_NAMES_CUT: usize = 50;

/// What ends are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Names {
    /// Pods, services and DNS names.
    #[default]
    Translated,
    /// Addresses.
    Addresses,
}

/// One end in words.
#[derive(Clone, Debug, Default)]
pub(super) struct EndText {
    /// Name and port.
    pub(super) host: String,
    /// Identity.
    pub(super) identity: String,
}

/// Both ends in words.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    pub(super) source: EndText,
    pub(super) destination: EndText,
}

impl Ends {
    pub(super) fn of(flow: &Flow, names: Names, paint: Paint) -> Self {
        let (source, destination) = hosts(flow, names, paint);
        Self {
            source: EndText { host: source, identity: identity(flow.source.as_ref(), paint) },
            destination: EndText { host: destination, identity: identity(flow.destination.as_ref(), paint) },
        }
    }
}

fn hosts(flow: &Flow, names: Names, paint: Paint) -> (String, String) {
    let Some(ip) = &flow.ip else {
        return match &flow.ethernet {
            Some(link) => (paint.cyan(&link.source), paint.cyan(&link.destination)),
            None => (String::new(), String::new()),
        };
    };
    let (source_port, destination_port) = ports(flow);
    let source = Named { end: flow.source.as_ref(), service: flow.source_service.as_ref(), names: &flow.source_names };
    let destination = Named {
        end: flow.destination.as_ref(),
        service: flow.destination_service.as_ref(),
        names: &flow.destination_names,
    };
    (
        paint.cyan(&with_port(&source.host(&ip.source, names), source_port, paint)),
        paint.cyan(&with_port(&destination.host(&ip.destination, names), destination_port, paint)),
    )
}

struct Named<'f> {
    end: Option<&'f Endpoint>,
    service: Option<&'f Service>,
    names: &'f [String],
}

impl Named<'_> {
    fn host(&self, address: &str, names: Names) -> String {
        if names == Names::Addresses {
            return address.to_owned();
        }
        let pod = self.end.map(|end| end.pod_name.as_str()).unwrap_or_default();
        let service = self.service.map(|it| it.name.as_str()).unwrap_or_default();
        // A service's namespace stands for the pod's too.
        let namespace = match self.service {
            Some(service) => service.namespace.as_str(),
            None => self.end.map(|end| end.namespace.as_str()).unwrap_or_default(),
        };
        let joined = |name: &str| if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        if !pod.is_empty() {
            joined(pod)
        } else if !service.is_empty() {
            joined(service)
        } else if self.names.is_empty() {
            address.to_owned()
        } else {
            self.names.join(",")
        }
    }
}

fn with_port(host: &str, port: u32, paint: Paint) -> String {
    if port == 0 {
        return host.to_owned();
    }
    let port = paint.yellow(&port.to_string());
    if host.contains([':', '%']) { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(super) fn ports(flow: &Flow) -> (u32, u32) {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(it)) => (it.source_port, it.destination_port),
        Some(Protocol::Udp(it)) => (it.source_port, it.destination_port),
        Some(Protocol::Sctp(it)) => (it.source_port, it.destination_port),
        Some(Protocol::IcmPv4(_) | Protocol::IcmPv6(_) | Protocol::Vrrp(_) | Protocol::Igmp(_)) | None => (0, 0),
    }
}

fn identity(end: Option<&Endpoint>, paint: Paint) -> String {
    let number = end.map(|end| end.identity).unwrap_or_default();
    paint.magenta(&match words::identity_name(number) {
        Some(name) => format!("({name})"),
        None => format!("(ID:{number})"),
    })
}

/// The TYPE column.
#[expect(deprecated, reason = "flows of Cilium may have it still")]
pub(super) fn flow_type(flow: &Flow) -> String {
    if let Some(l7) = &flow.l7 {
        let kind = L7FlowType::try_from(l7.r#type).unwrap_or_default().as_str_name().to_lowercase();
        return match &l7.record {
            Some(layer7::Record::Http(_)) => format!("http-{kind}"),
            Some(layer7::Record::Dns(dns)) => format!("dns-{kind} {}", dns.observation_source),
            Some(layer7::Record::Kafka(_)) => format!("kafka-{kind}"),
            None => format!("l7-{kind}"),
        };
    }
    let event = flow.event_type.unwrap_or_default();
    match event.r#type {
        words::TRACE => words::trace_point(event.sub_type),
        words::DROP => words::drop_reason(event.sub_type),
        words::POLICY_VERDICT => {
            let direction = TrafficDirection::try_from(flow.traffic_direction).unwrap_or_default().as_str_name();
            format!("policy-verdict:{} {direction}", words::policy_match(flow.policy_match_type))
        }
        words::CAPTURE => {
            DebugCapturePoint::try_from(flow.debug_capture_point).unwrap_or_default().as_str_name().to_owned()
        }
        words::TRACE_SOCK => match flow.sock_xlate_point() {
            SocketTranslationPoint::SockXlatePointPostDirectionFwd => "post-xlate-fwd".to_owned(),
            SocketTranslationPoint::SockXlatePointPostDirectionRev => "post-xlate-rev".to_owned(),
            SocketTranslationPoint::SockXlatePointPreDirectionFwd => "pre-xlate-fwd".to_owned(),
            SocketTranslationPoint::SockXlatePointPreDirectionRev => "pre-xlate-rev".to_owned(),
            SocketTranslationPoint::SockXlatePointUnknown => "SOCK_XLATE_POINT_UNKNOWN".to_owned(),
        },
        _ => "UNKNOWN".to_owned(),
    }
}

fn is_policy_verdict(flow: &Flow) -> bool {
    flow.event_type.is_some_and(|event| event.r#type == words::POLICY_VERDICT)
}

/// The VERDICT column, without policies.
pub(super) fn verdict_word(flow: &Flow) -> String {
    let Ok(verdict) = Verdict::try_from(flow.verdict) else { return flow.verdict.to_string() };
    let of_policy = match verdict {
        Verdict::Forwarded | Verdict::Redirected => Some("ALLOWED"),
        Verdict::Dropped | Verdict::Error => Some("DENIED"),
        Verdict::Audit => Some("AUDITED"),
        Verdict::Unknown | Verdict::Traced | Verdict::Translated => None,
    };
    of_policy.filter(|_| is_policy_verdict(flow)).unwrap_or_else(|| verdict.as_str_name()).to_owned()
}

/// ` BY name (kind), ...` of a policy verdict.
pub(super) fn policies(flow: &Flow) -> String {
    if !is_policy_verdict(flow) {
        return String::new();
    }
    let (egress, ingress) = match flow.verdict() {
        Verdict::Forwarded | Verdict::Redirected => (&flow.egress_allowed_by, &flow.ingress_allowed_by),
        Verdict::Dropped | Verdict::Error => (&flow.egress_denied_by, &flow.ingress_denied_by),
        Verdict::Unknown | Verdict::Audit | Verdict::Traced | Verdict::Translated => return String::new(),
    };
    let name = |policy: &Policy| {
        (!policy.name.is_empty() && !policy.kind.is_empty()).then(|| format!("{} ({})", policy.name, policy.kind))
    };
    let names: Vec<String> = egress.iter().chain(ingress).filter_map(name).collect();
    if names.is_empty() { String::new() } else { format!(" BY {}", names.join(", ")) }
}

/// Names of nodes; of many the first few.
pub(super) fn node_names(names: &[String]) -> String {
    let mut length = 0;
    let fits = |(at, name): &(usize, &String)| {
        length += name.len() + 2;
        length <= NODE_NAMES_CUT || *at == 0
    };
    let shown: Vec<&str> = names.iter().enumerate().take_while(fits).map(|(_, name)| name.as_str()).collect();
    let left = names.len() - shown.len();
    let shown = shown.join(", ");
    if left == 0 { shown } else { format!("{shown} (and {left} more)") }
}
