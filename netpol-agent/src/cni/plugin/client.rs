//! One question to the agent, one answer, by a deadline that holds for everything together.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::super::protocol::{CniAnswer, CniRequest};

/// An answer has one message.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("netpol-agent is not there: cannot connect to {path}: {source}")]
    Absent { path: String, source: io::Error },
    #[error("netpol-agent did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("netpol-agent went away before it answered ({0})")]
    Lost(io::Error),
    #[error("netpol-agent answered with something else ({0}); is it another version?")]
    Garbled(String),
}

/// Asks the agent behind `path`.
pub(super) fn ask(path: &Path, request: &CniRequest, limit: Duration) -> Result<CniAnswer, Unanswered> {
    let deadline = Instant::now() + limit;
    let line = serde_json::to_string(request).map_err(|error| Unanswered::Garbled(error.to_string()))? + "\n";
    let mut stream = match open(path, limit) {
        Ok(stream) => stream,
        Err(error) if is_timeout(&error) => return Err(Unanswered::TimedOut(limit)),
        Err(source) => return Err(Unanswered::Absent { path: path.display().to_string(), source }),
    };
    let answer = exchange(&mut stream, line.as_bytes(), deadline)
        .map_err(|error| if is_timeout(&error) { Unanswered::TimedOut(limit) } else { Unanswered::Lost(error) })?;
    serde_json::from_slice(&answer).map_err(|error| Unanswered::Garbled(error.to_string()))
}

/// A connection, also where the agent does not accept: the time to connect has a limit too (that of sending).
fn open(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let descriptor: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let milliseconds = i64::try_from(limit.as_millis()).map_err(io::Error::other)?;
    setsockopt(&descriptor, sockopt::SendTimeout, &TimeVal::milliseconds(milliseconds))?;
    connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(descriptor))
}

fn exchange(stream: &mut UnixStream, line: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    let mut unsent = line;
    while !unsent.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        let sent = again_if_interrupted(|| stream.write(unsent))?;
        unsent = unsent.get(sent..).unwrap_or_default();
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.contains(&b'\n') {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let read = again_if_interrupted(|| stream.read(&mut buffer))?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if answer.len() > LONGEST_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
    }
    Ok(answer)
}

fn again_if_interrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The time that is left; a timeout of zero would be none.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
