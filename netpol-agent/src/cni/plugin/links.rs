//! What the kernel says of interfaces, here and inside a pod, where the plugins before us do not.
//!
//! Looking into a pod's network namespace needs CAP_SYS_ADMIN, which the plugin has as a program of the runtime and the
//! agent has not. It is done on a thread of its own, so that nothing else of the process is ever there.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_veth: bool,
    /// Index of a veth's other end, in that end's namespace.
    pub(super) peer: Option<u32>,
    pub(super) mac: Option<String>,
}

/// An interface inside a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    pub(super) link: Link,
    /// Its addresses that leave the link, each family at most once.
    pub(super) addresses: Vec<IpAddr>,
}

/// The interface of this name in the calling thread's namespace; none if there is none.
pub(super) fn by_name(name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(message)
}

/// The interface of this index in the calling thread's namespace; none if there is none.
pub(super) fn by_index(index: u32) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(message)
}

/// The interface `name` inside the namespace at `netns`; none if it has none.
pub(super) fn inside(netns: &Path, name: &str) -> io::Result<Option<Inside>> {
    let namespace = File::open(netns)?;
    let look = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let Some(link) = by_name(name)? else { return Ok(None) };
        Ok(Some(Inside { link, addresses: addresses(name)? }))
    };
    std::thread::scope(|scope| {
        let looking = std::thread::Builder::new().spawn_scoped(scope, look)?;
        looking.join().unwrap_or_else(|_panic| Err(io::Error::other("the thread ended early")))
    })
}

fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = Vec::new();
    for entry in getifaddrs()?.filter(|entry| entry.interface_name == name) {
        let Some(address) = entry.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let v6 = address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip()));
        let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if let Some(address) = v4.or(v6).filter(|address| !is_link_local(address))
            && !found.iter().any(|other| other.is_ipv4() == address.is_ipv4())
        {
            found.push(address);
        }
    }
    Ok(found)
}

fn get(message: LinkMessage) -> io::Result<Option<Link>> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(of(&link))),
        NetlinkPayload::Error(error) => match error.to_io() {
            error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            error => Err(error),
        },
        NetlinkPayload::InnerMessage(_)
        | NetlinkPayload::Done(_)
        | NetlinkPayload::Noop
        | NetlinkPayload::Overrun(_) => Err(io::Error::other("the kernel answered with something else than a link")),
        _ => Err(io::Error::other("the kernel answered with a message of an unknown kind")),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a link has dozens of attributes, of which four matter here")]
fn of(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => name.clone_into(&mut link.name),
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::Address(mac) if mac.len() == 6 => {
                let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
                link.mac = Some(octets.join(":"));
            }
            LinkAttribute::LinkInfo(info) => {
                link.is_veth = info.iter().any(|it| matches!(it, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    link
}
