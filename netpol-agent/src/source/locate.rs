//! Field path -> line of the document's text. Only for messages: where it finds nothing, nothing is lost.
//!
//! Paths are written as `decode` writes them. The document is parsed a second time for this, with positions, so it is done
//! only for documents that something is wrong with.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::decode::{child, index};
use super::document::options;

/// Lines of the fields of one document.
#[derive(Debug, Default)]
pub(super) struct Lines(BTreeMap<String, u64>);

impl Lines {
    /// The lines of `text`; empty if it cannot be parsed.
    pub(super) fn of(text: &str) -> Self {
        let mut lines = BTreeMap::new();
        if let Ok(Spanned { value: node, .. }) = serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options()) {
            node.collect("", &mut lines);
        }
        Self(lines)
    }

    /// Line of `path`, from 0, or that of the nearest field around it, or that of the first field at all; `None` if
    /// nothing is known.
    pub(super) fn line(&self, path: &str) -> Option<usize> {
        let around = std::iter::successors(Some(path), |path| path.get(..path.rfind(['.', '['])?));
        let mut lines = around.filter_map(|path| self.0.get(path));
        let line = lines.next().or_else(|| self.0.values().min())?;
        usize::try_from(line.saturating_sub(1)).ok()
    }
}

/// The shape of a document, and where its parts begin.
#[derive(Debug)]
enum Node {
    Leaf,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn collect(&self, path: &str, lines: &mut BTreeMap<String, u64>) {
        match self {
            Self::Leaf => {}
            Self::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    let path = index(path, at);
                    lines.insert(path.clone(), item.referenced.line());
                    item.value.collect(&path, lines);
                }
            }
            Self::Map(fields) => {
                for (key, value) in fields {
                    let path = child(path, &key.value);
                    lines.insert(path.clone(), key.referenced.line());
                    value.collect(&path, lines);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Node::Map(map))
    }
}
