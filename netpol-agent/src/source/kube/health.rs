//! How following the API server goes, kind by kind: [`SourceHealth`].

use std::time::SystemTime;

use serde::Serialize;

/// How each kind is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceHealth {
    /// True if every kind was listed whole once.
    pub synced: bool,
    /// The kinds.
    pub kinds: Vec<KindHealth>,
}

impl SourceHealth {
    /// True if what is known is not as the API server has it now, or may not be.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.kinds.iter().any(|kind| kind.stale_since.is_some())
    }
}

/// How one kind is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindHealth {
    /// The kind as the API calls it in the plural.
    pub kind: &'static str,
    /// True if it was listed whole once.
    pub synced: bool,
    /// How many objects are known.
    pub objects: usize,
    /// What is being done.
    pub doing: Doing,
    /// When the API server was last heard of for this kind.
    #[serde(serialize_with = "as_seconds")]
    pub last_heard: Option<SystemTime>,
    /// Since when what is known may be out of date; `None` if it is not.
    #[serde(serialize_with = "as_seconds")]
    pub stale_since: Option<SystemTime>,
    /// How many tries in a row went wrong.
    pub failures: u32,
    /// What went wrong, if the last try did.
    pub error: Option<String>,
}

/// What is being done to follow a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Asking the API server.
    Connecting,
    /// Reading all objects.
    Listing,
    /// Following changes.
    Watching,
    /// Waiting before the next try.
    Waiting,
}

/// Seconds since 1970, which every reader of JSON understands.
#[expect(clippy::ref_option, reason = "serde gives a reference to the field")]
fn as_seconds<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        Some(since) => serializer.serialize_some(&since.as_secs()),
        None => serializer.serialize_none(),
    }
}
