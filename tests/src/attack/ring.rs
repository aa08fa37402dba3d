//! A TX ring of AF_PACKET: the kernel sends frames from memory that it shares with the sender.
//!
//! kernel: `tpacket_fill_skb` (net/packet/af_packet.c) copies the link header alone into the linear part of the buffer and
//! hangs the ring's pages behind it, so that a program which only looks between `data` and `data_end` finds no IP header.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send as flush};

use super::wire::set_option;

const BLOCK: usize = 4096;
const SLOT: usize = 2048;
const SLOTS: usize = 8;
/// Where a frame begins in its slot: behind the header, which the kernel aligns to 16 bytes.
const DATA: usize = size_of::<libc::tpacket2_hdr>().next_multiple_of(16);

/// Memory that the kernel shares; unmapped when dropped.
struct Mapping(*mut u8);

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nobody keeps a pointer into it.
        #[expect(unsafe_code, reason = "shared memory")]
        // A mapping that cannot be removed ends with the process.
        let _ended = unsafe { libc::munmap(self.0.cast(), SLOT * SLOTS) };
    }
}

/// Sends the frames, at most [`SLOTS`] of them, through a ring of their own.
pub(super) fn send(socket: &OwnedFd, frames: &[Vec<u8>]) -> Result<()> {
    ensure!(frames.len() <= SLOTS, "the ring has {SLOTS} slots");
    set_option(socket, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V2)?;
    let request = libc::tpacket_req {
        tp_block_size: u32::try_from(BLOCK)?,
        tp_block_nr: u32::try_from(SLOT * SLOTS / BLOCK)?,
        tp_frame_size: u32::try_from(SLOT)?,
        tp_frame_nr: u32::try_from(SLOTS)?,
    };
    set_option(socket, libc::PACKET_TX_RING, &request)?;
    let ring = map(socket)?;
    for (slot, frame) in frames.iter().enumerate() {
        ensure!(DATA + frame.len() <= SLOT, "a frame of {} bytes does not fit its slot", frame.len());
        let length = u32::try_from(frame.len())?;
        // SAFETY: `slot` is below SLOTS and the frame fits behind the header, so all writes are inside the mapping; the
        // kernel reads the slot only after its status says so, in the call below.
        #[expect(unsafe_code, reason = "shared memory")]
        unsafe {
            let at = ring.0.add(slot * SLOT);
            ptr::copy_nonoverlapping(frame.as_ptr(), at.add(DATA), frame.len());
            let header = at.cast::<libc::tpacket2_hdr>();
            (&raw mut (*header).tp_len).write_volatile(length);
            (&raw mut (*header).tp_status).write_volatile(libc::TP_STATUS_SEND_REQUEST);
        }
    }
    let sent = flush(socket.as_raw_fd(), &[], MsgFlags::empty()).context("cannot send the ring's frames")?;
    let wanted: usize = frames.iter().map(Vec::len).sum();
    ensure!(sent == wanted, "{sent} of {wanted} bytes were sent");
    Ok(())
}

fn map(socket: &OwnedFd) -> Result<Mapping> {
    // SAFETY: a new shared mapping of the socket's ring, of the length that was just asked for.
    #[expect(unsafe_code, reason = "shared memory")]
    let at = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), SLOT * SLOTS, access, libc::MAP_SHARED, socket.as_raw_fd(), 0)
    };
    ensure!(at != libc::MAP_FAILED, "cannot map the ring: {}", Errno::last());
    Ok(Mapping(at.cast()))
}
