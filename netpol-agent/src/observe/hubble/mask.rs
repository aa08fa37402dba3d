//! What of a flow a client wants to have: a field mask in, a flow reduced to it out. Pure.
//!
//! The default mask of Hubble's client asks for the event's type and not for what its own TYPE column and policy names are
//! made of (upstream prints `TRAFFIC_DIRECTION_UNKNOWN` for that). So a mask is a lower bound: who asks for the event's
//! type gets these fields too. Paths that are not known are passed over: newer clients ask for fields of their own.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _, Value};

use super::proto::POOL;
use super::proto::flow::Flow;
use super::proto::observer::GetFlowsRequest;

/// What a client prints an event's type, its names and its policies by.
const WITH_EVENT_TYPE: [&str; 9] = [
    "source_names",
    "destination_names",
    "egress_allowed_by",
    "ingress_allowed_by",
    "egress_denied_by",
    "ingress_denied_by",
    "traffic_direction",
    "policy_match_type",
    "drop_reason_desc",
];

/// Field names, each with those below it that are wanted (none: all).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tree(BTreeMap<String, Tree>);

impl Tree {
    fn add(&mut self, path: &str) {
        let (name, below) = path.split_once('.').map_or((path, None), |(name, below)| (name, Some(below)));
        let is_whole = self.0.get(name).is_some_and(|tree| tree.0.is_empty());
        let tree = self.0.entry(name.to_owned()).or_default();
        match below {
            None => tree.0.clear(),
            Some(below) if !is_whole => tree.add(below),
            Some(_) => {}
        }
    }

    /// Clears every field that is not wanted.
    fn reduce(&self, message: &mut DynamicMessage) {
        let descriptor = message.descriptor();
        for field in descriptor.fields() {
            match self.0.get(field.name()) {
                None => message.clear_field(&field),
                Some(below) if below.0.is_empty() || field.is_list() || !matches!(field.kind(), Kind::Message(_)) => {}
                Some(below) if message.has_field(&field) => {
                    if let Value::Message(inner) = message.get_field_mut(&field) {
                        below.reduce(inner);
                    }
                }
                Some(_) => {}
            }
        }
    }
}

/// A request's mask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(Option<Tree>);

impl Mask {
    /// The mask of a request, wherever its client puts it; without one everything is sent.
    #[must_use]
    pub fn of(request: &GetFlowsRequest) -> Self {
        let experimental = request.experimental.as_ref().and_then(|it| it.field_mask.as_ref());
        let masks = [request.field_mask.as_ref(), experimental];
        let paths: Vec<&str> = masks.into_iter().flatten().flat_map(|mask| &mask.paths).map(String::as_str).collect();
        let Some(flow) = POOL.get_message_by_name("flow.Flow") else { return Self::default() };
        let mut tree = Tree::default();
        for path in &paths {
            let first = path.split('.').next().unwrap_or_default();
            if flow.get_field_by_name(first).is_some() {
                tree.add(path);
            }
        }
        if tree.0.is_empty() {
            return Self::default();
        }
        if tree.0.contains_key("event_type") {
            WITH_EVENT_TYPE.iter().for_each(|path| tree.add(path));
        }
        Self(Some(tree))
    }

    /// The flow with what is wanted of it.
    #[must_use]
    pub fn apply(&self, flow: &Flow) -> Flow {
        let (Some(tree), Some(descriptor)) = (&self.0, POOL.get_message_by_name("flow.Flow")) else {
            return flow.clone();
        };
        let Ok(mut dynamic) = DynamicMessage::decode(descriptor, flow.encode_to_vec().as_slice()) else {
            return flow.clone();
        };
        tree.reduce(&mut dynamic);
        Flow::decode(dynamic.encode_to_vec().as_slice()).unwrap_or_else(|_never| flow.clone())
    }
}
