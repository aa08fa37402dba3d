//! Sends the body of an answer, whole or spoiled.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{mpsc, watch as signal};

use super::faults::Spoil;

/// The receiving end, which hyper sends.
pub(crate) struct Piped {
    frames: mpsc::Receiver<io::Result<Bytes>>,
}

impl Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.frames.poll_recv(context).map(|frame| frame.map(|data| data.map(Frame::data)))
    }
}

/// The connection broke, or the client is gone: there is nobody to send to.
#[derive(Debug)]
pub(super) struct Over;

/// The sending end.
pub(super) struct Pipe {
    frames: mpsc::Sender<io::Result<Bytes>>,
    spoil: Option<Spoil>,
    sent: usize,
    breaks: signal::Receiver<u64>,
}

impl Pipe {
    pub(super) fn new(spoil: Option<Spoil>, mut breaks: signal::Receiver<u64>) -> (Self, Piped) {
        breaks.mark_unchanged();
        let (sender, frames) = mpsc::channel(4);
        (Self { frames: sender, spoil, sent: 0, breaks }, Piped { frames })
    }

    /// Sends some bytes as one chunk, unless they are to be spoiled.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
        match self.spoil {
            None => self.chunk(bytes).await,
            Some(Spoil::CutAfter(limit)) => {
                if self.sent + bytes.len() < limit {
                    return self.chunk(bytes).await;
                }
                let kept = limit - self.sent;
                self.chunk(bytes.get(..kept).unwrap_or_default()).await?;
                self.break_off().await
            }
            Some(Spoil::StallAfter(limit)) => {
                if self.sent + bytes.len() < limit {
                    return self.chunk(bytes).await;
                }
                let kept = limit - self.sent;
                self.chunk(bytes.get(..kept).unwrap_or_default()).await?;
                self.ended().await;
                Err(Over)
            }
            Some(Spoil::Trickle { bytes: few, pause }) => {
                for piece in bytes.chunks(few.max(1)) {
                    self.chunk(piece).await?;
                    tokio::time::sleep(pause).await;
                }
                Ok(())
            }
        }
    }

    async fn chunk(&mut self, bytes: &[u8]) -> Result<(), Over> {
        self.sent += bytes.len();
        if bytes.is_empty() {
            return Ok(());
        }
        let data = Bytes::copy_from_slice(bytes);
        tokio::select! {
            biased;
            broken = self.breaks.changed() => {
                drop(broken);
                // Half of it gets out: whoever reads has to do without the rest.
                let half = data.slice(..data.len() / 2);
                if self.frames.send(Ok(half)).await.is_err() {
                    return Err(Over);
                }
                self.break_off().await
            }
            sent = self.frames.send(Ok(data.clone())) => sent.map_err(|_gone| Over),
        }
    }

    /// Ends the connection without ending the body.
    pub(super) async fn break_off(&mut self) -> Result<(), Over> {
        // What was sent before is to arrive: hyper throws away what it has not written yet.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let reset = io::Error::new(io::ErrorKind::ConnectionReset, "broken on purpose");
        drop(self.frames.send(Err(reset)).await);
        Err(Over)
    }

    /// Waits until connections are to be broken, or the client is gone. True if it is the former.
    pub(super) async fn ended(&mut self) -> bool {
        tokio::select! {
            broken = self.breaks.changed() => broken.is_ok(),
            () = self.frames.closed() => false,
        }
    }
}
