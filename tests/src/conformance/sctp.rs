//! SCTP without a kernel that has it: an INIT and its answer over raw sockets, so that routes and neighbours are the
//! kernel's own.
//!
//! In: an address to send from and a namespace. Out: packets as bytes, with the CRC that RFC 9260 asks for (connection
//! tracking drops others).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, recvfrom, sendto};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Common header and one INIT chunk without parameters.
const LENGTH: usize = 32;

/// What a chunk of the two says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Ports.
    pub(super) from: u16,
    /// To which port.
    pub(super) to: u16,
    /// True for an answer.
    pub(super) is_answer: bool,
    /// The tag in the header: the asker's in an answer, zero in a question.
    pub(super) verification: u32,
    /// The sender's own tag.
    pub(super) tag: u32,
}

impl Message {
    /// The packet.
    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        let mut packet = [0; LENGTH];
        let kind = if self.is_answer { INIT_ACK } else { INIT };
        let chunk = [&[kind, 0, 0, 20][..], &self.tag.to_be_bytes(), &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat();
        let ports = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        let all = [&ports[..], &self.verification.to_be_bytes(), &[0; 4], &chunk].concat();
        packet.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        let crc = crc32c(&packet).to_le_bytes();
        packet.iter_mut().skip(8).zip(crc).for_each(|(to, from)| *to = from);
        packet
    }

    /// Reads a packet; none if it is another.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
        let port = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
        let kind = *packet.get(12)?;
        let is_answer = kind == INIT_ACK;
        (is_answer || kind == INIT).then_some(())?;
        Some(Self { from: port(0)?, to: port(2)?, is_answer, verification: word(4)?, tag: word(16)? })
    }
}

/// CRC-32C (Castagnoli), reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A raw socket of one address, in the namespace of the calling thread.
pub(super) fn raw_socket(address: IpAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 } as i32;
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call; the descriptor that it returns is nobody else's.
    #[expect(unsafe_code, reason = "nix does not know the protocol")]
    let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(libc::socket(family, kind, libc::IPPROTO_SCTP))?) };
    at(&socket, address, Endpoint::Own).with_context(|| format!("cannot bind {address}/sctp"))?;
    Ok(socket)
}

enum Endpoint<'a> {
    Own,
    Peer(&'a [u8]),
}

/// Binds to an address, or sends there.
fn at(socket: &OwnedFd, address: IpAddr, end: Endpoint<'_>) -> nix::Result<()> {
    let fd = socket.as_raw_fd();
    // The port of a raw socket's address means nothing.
    match (SocketAddr::new(address, 0), end) {
        (SocketAddr::V4(to), Endpoint::Own) => bind(fd, &SockaddrIn::from(to)),
        (SocketAddr::V6(to), Endpoint::Own) => bind(fd, &SockaddrIn6::from(to)),
        (SocketAddr::V4(to), Endpoint::Peer(packet)) => {
            sendto(fd, packet, &SockaddrIn::from(to), MsgFlags::empty()).map(drop)
        }
        (SocketAddr::V6(to), Endpoint::Peer(packet)) => {
            sendto(fd, packet, &SockaddrIn6::from(to), MsgFlags::empty()).map(drop)
        }
    }
}

/// Sends a message.
pub(super) fn send(socket: &OwnedFd, to: IpAddr, message: &Message) -> nix::Result<()> {
    at(socket, to, Endpoint::Peer(&message.bytes()))
}

/// The next message that waits, and who sent it. Other packets are passed over.
pub(super) fn receive(socket: &OwnedFd) -> nix::Result<(IpAddr, Message)> {
    let mut buffer = [0; 256];
    loop {
        let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
        let packet = buffer.get(..length).unwrap_or_default();
        let from = from.and_then(|from| {
            let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
            v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())))
        });
        // IPv4 sockets see the IP header, IPv6 ones do not.
        let header = match (from, packet.first()) {
            (Some(IpAddr::V4(_)), Some(first)) => usize::from(first & 0xf) * 4,
            _ => 0,
        };
        if let (Some(from), Some(message)) = (from, packet.get(header..).and_then(Message::parse)) {
            return Ok((from, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let message = Message { from: 40_000, to: 80, is_answer: true, verification: 7, tag: 9 };
        assert_eq!(Message::parse(&message.bytes()), Some(message));
        assert_eq!(Message::parse(&[0; LENGTH]), None);
    }
}
