//! Messages as JSON, byte for byte as Hubble's clients write it: the proto file's names, in its order; zero values left out;
//! 64-bit numbers as text; `<`, `>` and `&` escaped.

use std::collections::HashMap;
use std::io;
use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _,
    SerializeOptions, Value,
};
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

use super::proto::{self, flow, observer};

/// Why JSON is no message, or a message has no JSON.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The build's descriptors lack it.
    #[error("no message {0} in the descriptors")]
    Unknown(&'static str),
    /// Not JSON, or not of this message.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Its bytes are no message.
    #[error(transparent)]
    Bytes(#[from] prost::DecodeError),
}

/// A message that has a name in the descriptors.
pub trait Named: Message + Default {
    /// Package and message.
    const NAME: &'static str;
}

impl Named for observer::GetFlowsResponse {
    const NAME: &'static str = "observer.GetFlowsResponse";
}
impl Named for observer::GetFlowsRequest {
    const NAME: &'static str = "observer.GetFlowsRequest";
}
impl Named for observer::ServerStatusResponse {
    const NAME: &'static str = "observer.ServerStatusResponse";
}
impl Named for flow::FlowFilter {
    const NAME: &'static str = "flow.FlowFilter";
}

/// Fields of each message in the order of its proto file; the pool gives them by number.
static FIELDS: LazyLock<HashMap<String, Vec<FieldDescriptor>>> = LazyLock::new(|| {
    let declared = |message: MessageDescriptor| {
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_by_key(|field| field.path().last().copied());
        (message.full_name().to_owned(), fields)
    };
    proto::POOL.all_messages().map(declared).collect()
});

fn descriptor<M: Named>() -> Result<MessageDescriptor, JsonError> {
    proto::POOL.get_message_by_name(M::NAME).ok_or(JsonError::Unknown(M::NAME))
}

/// One line of JSON, without its end.
///
/// # Errors
/// If the message holds an extension of a type that is not known here.
pub fn to_line<M: Named>(message: &M) -> Result<String, JsonError> {
    let dynamic = DynamicMessage::decode(descriptor::<M>()?, message.encode_to_vec().as_slice())?;
    let mut line = Vec::with_capacity(1024);
    Ordered(&dynamic).serialize(&mut serde_json::Serializer::with_formatter(&mut line, Escaped))?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// A message read from JSON; `lenient` passes over fields that are not known here.
///
/// # Errors
/// If it is not one.
pub fn parse<M: Named>(text: &str, lenient: bool) -> Result<M, JsonError> {
    let options = DeserializeOptions::new().deny_unknown_fields(!lenient);
    let mut input = serde_json::Deserializer::from_str(text);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor::<M>()?, &mut input, &options)?;
    input.end()?;
    Ok(M::decode(dynamic.encode_to_vec().as_slice())?)
}

/// Messages that follow one another, as `--allowlist` takes them.
///
/// # Errors
/// If one of them is none.
pub fn parse_stream<M: Named>(text: &str) -> Result<Vec<M>, JsonError> {
    let stream = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    stream.map(|value| parse(&value?.to_string(), false)).collect()
}

fn wire_options() -> SerializeOptions {
    SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true)
}

/// A message whose fields are written in the order of the proto file.
struct Ordered<'m>(&'m DynamicMessage);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0.descriptor();
        if message.full_name().starts_with("google.protobuf.") {
            return self.0.serialize_with_options(serializer, &wire_options());
        }
        let mut map = serializer.serialize_map(None)?;
        for field in FIELDS.get(message.full_name()).into_iter().flatten().filter(|field| self.0.has_field(field)) {
            let value = self.0.get_field(field);
            map.serialize_entry(field.name(), &OfKind { value: &value, kind: field.kind() })?;
        }
        map.end()
    }
}

struct OfKind<'v> {
    value: &'v Value,
    kind: Kind,
}

impl Serialize for OfKind<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.value, &self.kind) {
            (Value::Bool(value), _) => serializer.serialize_bool(*value),
            (Value::I32(value), _) => serializer.serialize_i32(*value),
            (Value::U32(value), _) => serializer.serialize_u32(*value),
            (Value::I64(value), _) => serializer.collect_str(value),
            (Value::U64(value), _) => serializer.collect_str(value),
            (Value::F64(value), _) => serializer.serialize_f64(*value),
            (Value::F32(value), _) => serializer.serialize_f32(*value),
            (Value::String(value), _) => serializer.serialize_str(value),
            (Value::EnumNumber(number), Kind::Enum(of)) => match of.get_value(*number) {
                Some(named) => serializer.serialize_str(named.name()),
                None => serializer.serialize_i32(*number),
            },
            (Value::EnumNumber(number), _) => serializer.serialize_i32(*number),
            (Value::Message(message), _) => Ordered(message).serialize(serializer),
            (Value::List(values), kind) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&OfKind { value, kind: kind.clone() })?;
                }
                list.end()
            }
            (Value::Bytes(_) | Value::Map(_), _) => Err(serde::ser::Error::custom("the API has no bytes and no maps")),
        }
    }
}

/// Go's encoder escapes what would end a script in a page.
struct Escaped;

impl serde_json::ser::Formatter for Escaped {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let special = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        let mut rest = fragment;
        while let Some(at) = rest.find(special) {
            let (plain, from) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut letters = from.chars();
            let letter = letters.next().map_or(0, u32::from);
            write!(writer, "\\u{letter:04x}")?;
            rest = letters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}
