//! The body of an answer -> whole lines of it. What is cut off by the end of the connection is never given out.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;
use tokio::time::{Instant, timeout_at};

/// An object in etcd has at most some megabytes.
const LONGEST_LINE: usize = 32 << 20;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    /// Nothing, or no whole line, came for this long.
    #[error("nothing came for {}", seconds(*.0))]
    Silent(Duration),
    /// The connection broke, or ended in the middle of a line.
    #[error("the connection broke: {0}")]
    Broken(String),
}

fn seconds(time: Duration) -> String {
    format!("{:?}", Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// Lines of a body as they come.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Up to here there is no end of line.
    scanned: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), scanned: 0 }
    }

    /// The next line, `None` at the end of the body. A line that takes longer than `patience` to come whole is as none.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<Bytes>, Cut> {
        let deadline = Instant::now() + patience;
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + end + 1).freeze();
                self.scanned = 0;
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > LONGEST_LINE {
                return Err(Cut::Broken(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            match timeout_at(deadline, self.body.frame()).await {
                Err(_elapsed) => return Err(Cut::Silent(patience)),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err(Cut::Broken("it ended in the middle of an object".to_owned())),
                Ok(Some(Err(error))) => return Err(Cut::Broken(crate::problem::chain(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// A whole body, if every piece of it comes within `patience` and it has at most `most` bytes.
pub(super) async fn whole(mut body: Body, patience: Duration, most: usize) -> Result<BytesMut, Cut> {
    let mut text = BytesMut::new();
    loop {
        match timeout_at(Instant::now() + patience, body.frame()).await {
            Err(_elapsed) => return Err(Cut::Silent(patience)),
            Ok(None) => return Ok(text),
            Ok(Some(Err(error))) => return Err(Cut::Broken(crate::problem::chain(&error))),
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    text.extend_from_slice(data);
                }
                if text.len() > most {
                    return Err(Cut::Broken(format!("an answer of more than {most} bytes")));
                }
            }
        }
    }
}
