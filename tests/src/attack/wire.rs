//! A pod's own end of its link as root there sees it: any frame goes out, every frame that comes in is kept.
//!
//! In: bytes from the Ethernet header on. Out: what the interface received (never what it sent). A [`Wire`] is an AF_PACKET
//! socket made in its namespace; [`Wire::send_outside_linear`] sends through a TX ring, which leaves all but the Ethernet
//! header outside the linear part of the kernel's buffer. Must not know what a frame means.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, getsockname, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::ring;
use crate::netns::Namespace;

/// How long one look for frames waits for the first.
const LOOK: Duration = Duration::from_millis(5);
/// Longest frame that a link of the harness carries.
const FRAME: usize = 2048;
/// Room for what arrives between two looks.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The raw end of a link.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    mac: [u8; 6],
    received: Vec<Vec<u8>>,
}

impl Wire {
    /// Opens an interface of a namespace.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or if there is no such interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace
            .enter(|| bound_socket(interface))?
            .with_context(|| format!("cannot open {interface} of {}", namespace.name()))?;
        setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(i64::try_from(LOOK.as_millis())?))?;
        let address: LinkAddr = getsockname(socket.as_raw_fd())?;
        let mac = address.addr().context("an interface has a MAC address")?;
        Ok(Self { socket, mac, received: Vec::new() })
    }

    /// The interface's MAC address.
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the kernel does not take all of it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).context("cannot send a frame")?;
        ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
        Ok(())
    }

    /// Sends frames of which only the Ethernet header lies in the linear part of the kernel's buffer.
    ///
    /// # Errors
    /// If the kernel refuses the ring or a frame.
    pub fn send_outside_linear(namespace: &Namespace, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
        let socket = namespace.enter(|| bound_socket(interface))??;
        ring::send(&socket, frames)
    }

    /// Everything received so far.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn received(&mut self) -> Result<&[Vec<u8>]> {
        let mut buffer = [0; FRAME];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => self.received.push(buffer.get(..length).unwrap_or_default().to_vec()),
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(&self.received),
                Err(error) => return Err(error).context("cannot receive frames"),
            }
        }
    }

    /// Waits until a received frame is a wanted one. False if none was in time.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn wait_for(&mut self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            if self.received()?.iter().any(|frame| wanted(frame)) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
        }
    }

    /// Forgets what was received so far.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn forget(&mut self) -> Result<()> {
        self.received()?;
        self.received.clear();
        Ok(())
    }
}

/// A socket that sends on the interface and hears all that it receives.
fn bound_socket(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let every_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: every_protocol,
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the address is a whole `sockaddr_ll` of the length given, and outlives the call.
    #[expect(unsafe_code, reason = "nix cannot make a link address")]
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Sets an option of `SOL_PACKET`.
pub(super) fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>())?;
    let value: *const T = value;
    // SAFETY: the kernel reads `length` bytes of a value that outlives the call.
    #[expect(unsafe_code, reason = "nix knows no options of packet sockets")]
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value.cast(), length) };
    Errno::result(answer).with_context(|| format!("cannot set option {option} of a packet socket"))?;
    Ok(())
}
