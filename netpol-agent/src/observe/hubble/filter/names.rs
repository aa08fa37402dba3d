//! Patterns of DNS and node names: `*` stands for any run of lower-case letters, digits, dots and hyphens.

use super::{Check, FilterError};
use crate::observe::hubble::proto::flow::Flow;

/// The cluster of a node whose name has none.
const DEFAULT_CLUSTER: &str = "default";

/// What is wrong with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing in it.
    #[error("empty pattern")]
    Empty,
    /// `example.com..`.
    #[error("multiple trailing dots in pattern")]
    TrailingDots,
    /// More than `cluster/node`.
    #[error("too many slashes in pattern")]
    Slashes,
    /// Not a letter of a name.
    #[error("{0:?}: only letters, digits, '-', '_', '.' and '*' are allowed")]
    Letter(char),
}

/// One pattern, in its canonical form.
struct Pattern(String);

impl Pattern {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.trim();
        let text = text.strip_suffix('.').unwrap_or(text).to_lowercase();
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.ends_with('.') {
            return Err(PatternError::TrailingDots);
        }
        match text.chars().find(|c| !matches!(c, '-' | '_' | '.' | '*' | '0'..='9' | 'a'..='z')) {
            Some(letter) => Err(PatternError::Letter(letter)),
            None => Ok(Self(text)),
        }
    }

    fn matches(&self, name: &str) -> bool {
        glob(self.0.as_bytes(), name.as_bytes())
    }
}

/// True if the whole name fits. Linear but for the way back to the last `*`.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let starred = |byte: u8| matches!(byte, b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z');
    let (mut at, mut seen) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                back = Some((at + 1, seen));
                at += 1;
                continue;
            }
            Some(&literal) if literal == byte => {
                at += 1;
                seen += 1;
                continue;
            }
            _ => {}
        }
        let Some((after_star, from)) = back else { return false };
        if !name.get(from).is_some_and(|&byte| starred(byte)) {
            return false;
        }
        back = Some((after_star, from + 1));
        at = after_star;
        seen = from + 1;
    }
    pattern.get(at..).unwrap_or_default().iter().all(|&byte| byte == b'*')
}

/// A name of dot-separated parts, none of them empty: what an empty pattern of a cluster or node takes.
fn is_name(name: &str) -> bool {
    name.split('.').all(|part| {
        !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z'))
    })
}

pub(super) fn fqdns(patterns: &[String], of: fn(&Flow) -> &Vec<String>) -> Result<Check, FilterError> {
    let patterns = parse_all("FQDN", patterns, Pattern::parse)?;
    Ok(Box::new(move |flow| of(flow).iter().any(|name| patterns.iter().any(|it| it.matches(name)))))
}

/// `cluster/node`; without a slash any cluster's.
struct NodePattern {
    cluster: Option<Pattern>,
    node: Option<Pattern>,
}

impl NodePattern {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let (cluster, node) = text.split_once('/').unwrap_or(("", text));
        match (text, node.contains('/')) {
            ("", _) => return Err(PatternError::Empty),
            (_, true) => return Err(PatternError::Slashes),
            _ => {}
        }
        let part = |text: &str| (!text.is_empty()).then(|| Pattern::parse(text)).transpose();
        Ok(Self { cluster: part(cluster)?, node: part(node)? })
    }

    fn matches(&self, cluster: &str, node: &str) -> bool {
        let fits = |pattern: &Option<Pattern>, name: &str| match pattern {
            Some(pattern) => pattern.matches(name),
            None => is_name(name),
        };
        fits(&self.cluster, cluster) && fits(&self.node, node)
    }
}

pub(super) fn nodes(patterns: &[String]) -> Result<Check, FilterError> {
    let patterns = parse_all("node name", patterns, NodePattern::parse)?;
    Ok(Box::new(move |flow| {
        if flow.node_name.is_empty() {
            return false;
        }
        let (cluster, node) = flow.node_name.split_once('/').unwrap_or((DEFAULT_CLUSTER, &flow.node_name));
        patterns.iter().any(|it| it.matches(cluster, node))
    }))
}

fn parse_all<T>(
    what: &'static str,
    patterns: &[String],
    parse: fn(&str) -> Result<T, PatternError>,
) -> Result<Vec<T>, FilterError> {
    let one = |pattern: &String| {
        parse(pattern).map_err(|error| FilterError::Pattern { what, pattern: pattern.clone(), error })
    };
    patterns.iter().map(one).collect()
}
