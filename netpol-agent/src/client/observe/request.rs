//! Flags -> the request, with Hubble's defaults. Pure but for the time that it is told.

use jiff::Timestamp;
use prost_types::FieldMask;

use super::filters::{self, FlagError};
use super::flags::{Flags, Given, Output};
use super::when;
use crate::observe::hubble::json::{self, JsonError};
use crate::observe::hubble::proto::flow::FlowFilter;
use crate::observe::hubble::proto::observer::GetFlowsRequest;

/// How many flows are shown where nobody says.
const DEFAULT_LAST: u64 = 20;

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Flags that exclude each other.
    #[error("cannot set both --{0} and --{1}")]
    Both(&'static str, &'static str),
    /// A table that never ends.
    #[error("table output format is not compatible with follow mode")]
    TableFollow,
    /// A mask for what people read.
    #[error("{0} output format is not compatible with custom field mask")]
    Mask(&'static str),
    /// No time.
    #[error("failed to parse the {flag} time: failed to convert {text} to time")]
    Time {
        /// Which flag.
        flag: &'static str,
        /// What was given.
        text: String,
    },
    /// A filter flag.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// A filter in JSON.
    #[error("invalid --{flag} flag: failed to decode {text:?}: {error}")]
    Raw {
        /// Which flag.
        flag: &'static str,
        /// What was given.
        text: String,
        /// Why.
        error: JsonError,
    },
}

/// The request that these flags ask for.
///
/// # Errors
/// If they contradict each other, or a value is none.
pub fn build(flags: &Flags, given: &[Given], now: Timestamp) -> Result<GetFlowsRequest, RequestError> {
    check(flags)?;
    let time = |flag, text: &str| match text {
        "" => Ok(None),
        text => when::parse(text, now).map(Some).ok_or_else(|| RequestError::Time { flag, text: text.to_owned() }),
    };
    let since = time("since", &flags.since)?;
    let until = if flags.follow { None } else { time("until", &flags.until)? };
    let first = flags.first > 0;
    let mut last = flags.last;
    if since.is_none() && until.is_none() && !first {
        if flags.all {
            last = u64::MAX;
        } else if last == 0 && !flags.follow && flags.input_file.is_none() && !flags.summary {
            last = DEFAULT_LAST;
        }
    }
    let (mut whitelist, mut blacklist) = filters::lists(given)?;
    whitelist.extend(raw("allowlist", &flags.allowlist)?);
    blacklist.extend(raw("denylist", &flags.denylist)?);
    let field_mask = (!flags.field_mask.is_empty()).then(|| FieldMask { paths: flags.field_mask.clone() });
    Ok(GetFlowsRequest {
        number: if first { flags.first } else { last },
        follow: flags.follow,
        blacklist,
        whitelist,
        since,
        until,
        first,
        field_mask,
        ..GetFlowsRequest::default()
    })
}

fn check(flags: &Flags) -> Result<(), RequestError> {
    let (first, last) = (flags.first > 0, flags.last > 0);
    match flags {
        _ if first && last => Err(RequestError::Both("first", "last")),
        Flags { all: true, .. } if first => Err(RequestError::Both("first", "all")),
        Flags { follow: true, .. } if first => Err(RequestError::Both("first", "follow")),
        Flags { all: true, .. } if last => Err(RequestError::Both("last", "all")),
        Flags { follow: true, output: Output::Table, .. } => Err(RequestError::TableFollow),
        Flags { output, field_mask, .. } if !field_mask.is_empty() => match output {
            Output::Compact => Err(RequestError::Mask("compact")),
            Output::Dict => Err(RequestError::Mask("dict")),
            Output::Table => Err(RequestError::Mask("table")),
            Output::Json | Output::Jsonpb => Ok(()),
        },
        _ => Ok(()),
    }
}

fn raw(flag: &'static str, texts: &[String]) -> Result<Vec<FlowFilter>, RequestError> {
    let mut filters = Vec::new();
    for text in texts {
        let failed = |error| RequestError::Raw { flag, text: text.clone(), error };
        filters.extend(json::parse_stream::<FlowFilter>(text).map_err(failed)?);
    }
    Ok(filters)
}

/// Both lists as YAML, for `--print-raw-filters`.
///
/// # Errors
/// Never: filters hold nothing that has no JSON.
pub fn filters_as_yaml(request: &GetFlowsRequest) -> Result<String, JsonError> {
    let mut text = String::new();
    for (name, filters) in [("allowlist", &request.whitelist), ("denylist", &request.blacklist)] {
        if filters.is_empty() {
            continue;
        }
        text.push_str(name);
        text.push_str(":\n");
        for filter in filters {
            text.push_str("    - '");
            text.push_str(&json::to_line(filter)?.replace('\'', "''"));
            text.push_str("'\n");
        }
    }
    Ok(if text.is_empty() { "{}\n".to_owned() } else { text })
}

/// The flags by which another `netpol observe` makes the same request.
///
/// # Errors
/// Never: filters hold nothing that has no JSON.
pub fn as_flags(request: &GetFlowsRequest) -> Result<Vec<String>, JsonError> {
    let mut flags = vec!["--local".to_owned(), "-o".to_owned(), "jsonpb".to_owned()];
    if request.follow {
        flags.push("--follow".to_owned());
    }
    if request.number > 0 {
        flags.push(if request.first { "--first" } else { "--last" }.to_owned());
        flags.push(request.number.to_string());
    } else if !request.follow && request.since.is_none() && request.until.is_none() {
        flags.push("--all".to_owned());
    }
    let layout = when::Layout::Rfc3339(9);
    for (flag, time) in [("--since", &request.since), ("--until", &request.until)] {
        if let Some(time) = time {
            flags.extend([flag.to_owned(), layout.format(Some(time))]);
        }
    }
    for (flag, filters) in [("--allowlist", &request.whitelist), ("--denylist", &request.blacklist)] {
        for filter in filters {
            flags.extend([flag.to_owned(), json::to_line(filter)?]);
        }
    }
    Ok(flags)
}
