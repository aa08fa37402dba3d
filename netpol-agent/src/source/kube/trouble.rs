//! What can go wrong with a request, and what to do about it.

use std::time::Duration;

use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Response, StatusCode};
use kube::client::Body;

use super::lines::{self, Cut};
use super::resource::Resource;
use super::wire::Status;
use crate::source::decode::one_line;

/// Longest `Retry-After` that is heeded.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const MOST_OF_A_STATUS: usize = 1 << 20;

/// Why a try ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The version that was to be watched from, or the list, is not kept any more.
    #[error("the API server no longer keeps this version ({0}); listing again")]
    Expired(String),
    /// It does not do streaming lists.
    #[error("the API server refuses streaming lists ({0}); listing page by page")]
    NoStreaming(String),
    /// It takes a streaming list for a watch, or is very slow.
    #[error("the streaming list does not go on ({0}); listing page by page")]
    StuckStreaming(Cut),
    /// 401.
    #[error("the API server does not take these credentials (401): {0}")]
    Unauthorized(String),
    /// 403.
    #[error(
        "forbidden (403): a ClusterRole with apiGroups [{group:?}], resources [{:?}], verbs [\"list\", \"watch\"] is missing: \
         {message}", resource.plural()
    )]
    Forbidden { resource: Resource, group: &'static str, message: String },
    /// Any other status.
    #[error("the API server says {status}: {message}")]
    Refused { status: u16, message: String, retry_after: Option<Duration> },
    /// It cannot be reached, or does not answer.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// It accepted the request and the answer broke off.
    #[error("{0}")]
    Cut(#[from] Cut),
    /// What it says makes no sense.
    #[error("the API server's answer makes no sense: {0}")]
    Garbage(String),
    /// A watch ended as soon as it began.
    #[error("the API server ends watches at once")]
    EndedAtOnce,
}

impl Trouble {
    /// What an answer that is no success means.
    pub(super) async fn of_answer(resource: Resource, answer: Response<Body>, patience: Duration) -> Self {
        let (parts, body) = answer.into_parts();
        // A status without text is as good as one whose text does not come.
        let text = lines::whole(body, patience, MOST_OF_A_STATUS).await.unwrap_or_default();
        let message = match serde_json::from_slice::<Status>(&text) {
            Ok(status) if !status.message.is_empty() => one_line(&status.message),
            Ok(_) | Err(_) => one_line(&String::from_utf8_lossy(&text)),
        };
        let retry_after = retry_after(&parts.headers);
        Self::of_status(resource, parts.status.as_u16(), message, retry_after)
    }

    /// What an ERROR event means.
    pub(super) fn of_event(resource: Resource, status: Status) -> Self {
        Self::of_status(resource, status.code, one_line(&status.message), None)
    }

    fn of_status(resource: Resource, status: u16, message: String, retry_after: Option<Duration>) -> Self {
        let about_streaming = message.contains("sendInitialEvents") || message.contains("resourceVersionMatch");
        match StatusCode::from_u16(status) {
            Ok(StatusCode::GONE) => Self::Expired(message),
            Ok(StatusCode::UNAUTHORIZED) => Self::Unauthorized(message),
            Ok(StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
                if about_streaming =>
            {
                Self::NoStreaming(message)
            }
            Ok(StatusCode::FORBIDDEN) => Self::Forbidden { resource, group: resource.group(), message },
            Ok(_) | Err(_) => Self::Refused { status, message, retry_after },
        }
    }

    /// How long the API server wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Expired(_)
            | Self::NoStreaming(_)
            | Self::StuckStreaming(_)
            | Self::Unauthorized(_)
            | Self::Forbidden { .. }
            | Self::Unreachable(_)
            | Self::Cut(_)
            | Self::Garbage(_)
            | Self::EndedAtOnce => None,
        }
    }

    /// True if somebody has to do something about it.
    pub(super) fn is_grave(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::Forbidden { .. })
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY))
}
