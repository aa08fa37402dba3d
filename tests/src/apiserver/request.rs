//! What a request asks for: path and query, checked as kube-apiserver checks list options.

use hyper::{Method, Uri};

use super::store::Kind;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A list or watch, of one namespace or all.
    Collection { kind: Kind, namespace: Option<String>, options: Options },
    /// One object.
    Single { kind: Kind, namespace: String, name: String },
    /// An Event to be taken.
    Event,
    /// The server's version.
    Version,
    /// Nothing that is served.
    Nothing,
}

/// ListOptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) watch: bool,
    pub(super) resource_version: String,
    pub(super) version_match: String,
    pub(super) limit: usize,
    pub(super) continue_token: String,
    pub(super) timeout: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) send_initial_events: Option<bool>,
}

impl Asked {
    pub(super) fn read(method: &Method, uri: &Uri) -> Self {
        let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let inside = match path.as_slice() {
            ["version"] => return Self::Version,
            ["apis", "events.k8s.io", "v1", "namespaces", _, "events"] if method == Method::POST => return Self::Event,
            ["api", "v1", inside @ ..] => inside,
            ["apis", "networking.k8s.io", "v1", inside @ ..] => inside,
            _ => return Self::Nothing,
        };
        let core = path.first() == Some(&"api");
        let kind_of = |plural: &str| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.plural() == plural)?;
            ((kind.api_version() == "v1") == core).then_some(kind)
        };
        if method != Method::GET {
            return Self::Nothing;
        }
        let options = Options::read(uri.query().unwrap_or_default());
        let (kind, namespace, name) = match inside {
            [plural] => (kind_of(plural), None, None),
            ["namespaces", name] if core => (Some(Kind::Namespace), Some(""), Some(*name)),
            ["namespaces", namespace, plural] => (kind_of(plural), Some(*namespace), None),
            ["namespaces", namespace, plural, name] => (kind_of(plural), Some(*namespace), Some(*name)),
            _ => (None, None, None),
        };
        match (kind, namespace.map(str::to_owned), name) {
            (Some(kind), namespace, None) => Self::Collection { kind, namespace, options },
            (Some(kind), Some(namespace), Some(name)) => Self::Single { kind, namespace, name: name.to_owned() },
            (None, _, _) | (Some(_), None, Some(_)) => Self::Nothing,
        }
    }
}

impl Options {
    fn read(query: &str) -> Self {
        let mut options = Self::default();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value);
            let truth = || value == "true" || value == "1";
            match key {
                "watch" => options.watch = truth(),
                "resourceVersion" => options.resource_version = value,
                "resourceVersionMatch" => options.version_match = value,
                "limit" => options.limit = value.parse().unwrap_or_default(),
                "continue" => options.continue_token = value,
                "timeoutSeconds" => options.timeout = value.parse().ok(),
                "allowWatchBookmarks" => options.bookmarks = truth(),
                "sendInitialEvents" => options.send_initial_events = Some(truth()),
                _ => {}
            }
        }
        options
    }

    /// The version that is asked for, 0 if none is.
    pub(super) fn version(&self) -> Result<u64, String> {
        if self.resource_version.is_empty() {
            return Ok(0);
        }
        self.resource_version
            .parse()
            .map_err(|_no_number| format!("invalid resource version {:?}", self.resource_version))
    }

    /// What ValidateListOptions says.
    pub(super) fn invalid(&self, streaming: bool) -> Option<String> {
        let refuse = |field: &str, why: &str| Some(format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {why}"));
        if self.watch {
            return match (self.send_initial_events, self.version_match.as_str()) {
                (Some(_), _) if !streaming => refuse(
                    "sendInitialEvents",
                    "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
                ),
                (Some(_), "NotOlderThan") => None,
                (Some(_), _) => refuse(
                    "resourceVersionMatch",
                    "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ),
                (None, "") => None,
                (None, _) => refuse(
                    "resourceVersionMatch",
                    "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ),
            };
        }
        if self.send_initial_events.is_some() {
            return refuse("sendInitialEvents", "Forbidden: sendInitialEvents is forbidden for list");
        }
        match self.version_match.as_str() {
            "" => None,
            _ if self.resource_version.is_empty() => refuse(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            _ if !self.continue_token.is_empty() => {
                refuse("resourceVersionMatch", "Forbidden: resourceVersionMatch is forbidden when continue is provided")
            }
            "Exact" if self.resource_version == "0" => refuse(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            "Exact" | "NotOlderThan" => None,
            other => refuse("resourceVersionMatch", &format!("Unsupported value: \"{other}\"")),
        }
    }
}

/// Percent and plus signs of a query undone.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let code = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(code.unwrap_or(b'%'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
