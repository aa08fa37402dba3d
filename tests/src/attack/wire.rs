//! A pod's own end of its link as root there sees it: any frame goes out, every frame that comes in is kept.
//!
//! In: bytes from the Ethernet header on. Out: what the interface received (never what it sent). A [`Wire`] is an AF_PACKET
//! socket made in its namespace; [`Wire::send_outside_linear`] sends through a TX ring, which leaves all but the Ethernet
//! header outside the linear part of the kernel's buffer. Must not know what a frame means.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket};

use super::ring;
use crate::netns::Namespace;

/// Between two looks for a frame that is waited for.
const LOOK: Duration = Duration::from_millis(1);
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
        let (socket, mac) = namespace
            .enter(|| anyhow::Ok((bound_socket(interface)?, mac_of(interface)?)))?
            .with_context(|| format!("cannot open {interface} of {}", namespace.name()))?;
        setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
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
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
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
        self.wait_until(limit, |frames| frames.iter().any(|frame| wanted(frame)))
    }

    /// Waits until the received frames are all that is wanted. False if they were not in time.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn wait_until(&mut self, limit: Duration, enough: impl Fn(&[Vec<u8>]) -> bool) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            if enough(self.received()?) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(LOOK);
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

fn mac_of(interface: &str) -> Result<[u8; 6]> {
    let mut addresses = getifaddrs()?.filter(|it| it.interface_name == interface).filter_map(|it| it.address);
    let mac = addresses.find_map(|it| it.as_link_addr().and_then(LinkAddr::addr));
    mac.context("an interface has a MAC address")
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
