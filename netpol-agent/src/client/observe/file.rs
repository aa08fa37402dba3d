//! `--input-file`: lines as `-o jsonpb` writes them -> the responses that a request asks for.
//!
//! Filters, since and until are asked of every line; `--last` keeps the last ones, other than a server does.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use crate::observe::hubble::filter::Selection;
use crate::observe::hubble::json::{self, JsonError};
use crate::observe::hubble::proto::flow::Flow;
use crate::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use crate::observe::hubble::proto::observer::{GetFlowsRequest, GetFlowsResponse};
use crate::observe::hubble::reading::compare;

/// Most flows that `--last` may keep.
const MOST: u64 = 1_000_000;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("cannot read flows")]
    Read(#[from] io::Error),
    /// None of its lines is one.
    #[error("no line of it is a flow as -o jsonpb writes them; the first is not: {0}")]
    NoFlows(String),
    /// Too many to keep.
    #[error("--last must be at most {MOST} with --input-file, got {0}")]
    TooMany(u64),
}

/// Hands every response that is asked for to `sink`, until it wants no more. Says how many lines are none.
///
/// # Errors
/// If the input cannot be read, or none of its lines is a response.
pub fn read(
    input: impl BufRead,
    request: &GetFlowsRequest,
    selection: &Selection,
    mut sink: impl FnMut(&GetFlowsResponse) -> bool,
) -> Result<u64, FileError> {
    let is_limited = request.number > 0 && request.number < u64::MAX;
    let keeps_last = is_limited && !request.first;
    if keeps_last && request.number > MOST {
        return Err(FileError::TooMany(request.number));
    }
    let most = usize::try_from(request.number).unwrap_or(usize::MAX);
    let mut last: VecDeque<GetFlowsResponse> = VecDeque::new();
    let (mut sent, mut read) = (0, 0_u64);
    let mut foreign = Foreign::default();
    for line in input.lines() {
        let response = match parse(&line?) {
            Ok(Some(response)) if response.response_types.is_none() => {
                foreign.count("neither flow nor lost_events nor node_status in it".to_owned());
                continue;
            }
            Ok(response) => response,
            Err(error) => {
                foreign.count(error.to_string());
                continue;
            }
        };
        read += u64::from(response.is_some());
        let Some(response) = response.filter(|response| is_wanted(response, request, selection)) else { continue };
        if keeps_last {
            if last.len() == most {
                last.pop_front();
            }
            last.push_back(response);
            continue;
        }
        sent += 1;
        if !sink(&response) || is_limited && sent == request.number {
            return Ok(foreign.lines);
        }
    }
    if let Some(error) = foreign.first.filter(|_| read == 0) {
        return Err(FileError::NoFlows(error));
    }
    for response in &last {
        if !sink(response) {
            break;
        }
    }
    Ok(foreign.lines)
}

/// Lines that are no responses.
#[derive(Debug, Default)]
struct Foreign {
    lines: u64,
    first: Option<String>,
}

impl Foreign {
    fn count(&mut self, error: String) {
        self.lines += 1;
        self.first.get_or_insert(error);
    }
}

/// A line's response, unless it is empty. What is newer than this version loses what is not known.
pub(super) fn parse(line: &str) -> Result<Option<GetFlowsResponse>, JsonError> {
    if line.trim().is_empty() { Ok(None) } else { json::parse(line, true).map(Some) }
}

fn is_wanted(response: &GetFlowsResponse, request: &GetFlowsRequest, selection: &Selection) -> bool {
    let time = response.time.unwrap_or_default();
    let in_time = request.since.is_none_or(|since| compare(&time, &since).is_ge())
        && request.until.is_none_or(|until| compare(&time, &until).is_le());
    in_time
        && match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => selection.keeps(flow),
            // A filter about flows matches no other line.
            _ => selection.keeps(&Flow::default()),
        }
}
