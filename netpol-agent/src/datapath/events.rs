//! The event ring as a stream of records.

use std::io;

use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Records taken in one turn, so that a storm of drops leaves time for policy.
const BATCH: usize = 256;

/// The ring buffer of the programs' events.
pub struct EventRing {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventRing {
    /// Waits on this ring.
    ///
    /// # Errors
    /// If its descriptor cannot be polled.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: a `RingBuf` owns its descriptor, always answers with the same one, and closes it when it is dropped.
        #[expect(unsafe_code, reason = "the promise that AsyncFd wants about a descriptor")]
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self { ring: ring.map_err(io::Error::from)? })
    }

    /// Waits for records and takes some. Cancel safe: what is taken is returned in the same poll.
    ///
    /// # Errors
    /// If the descriptor cannot be polled any more.
    pub async fn next(&mut self) -> io::Result<Vec<Bytes>> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            let mut records = Vec::new();
            while records.len() < BATCH {
                let record = ready.get_inner_mut().next().map(|record| Bytes::copy_from_slice(&record));
                let Some(record) = record else {
                    ready.clear_ready();
                    break;
                };
                records.push(record);
            }
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }
}
