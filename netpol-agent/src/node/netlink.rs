//! Netlink in and out: dumps and notifications as [`Update`]s, and the question that makes the kernel look for an
//! address. Nothing is remembered here. Needs `CAP_NET_ADMIN`, for the questions only.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has attributes by the dozen and grows new ones; what is not read is of no interest"
)]

use std::io;
use std::net::IpAddr;
use std::pin::Pin;

use futures_util::{FutureExt, Stream, StreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Error, Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::task::JoinHandle;

use super::NodeError;
use super::locate::Probe;
use super::state::{Link, LinkKind, Mac, Neighbour, State, Update};

/// Notifications that are listened to.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];
/// Room for notifications that wait to be read; the kernel caps it at `net.core.rmem_max`.
const RECEIVE_BUFFER: u32 = 1 << 20;

/// What a notification means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Something changed.
    Update(Update),
    /// Nothing of interest.
    Nothing,
    /// Notifications were lost: only a new dump tells.
    Lost,
}

type Notices = Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>;

/// Connections to the kernel, one to listen and one to ask, in the network namespace of the thread that made it.
pub(super) struct Netlink {
    handle: Handle,
    notices: Notices,
    connections: [JoinHandle<()>; 2],
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connections.iter().for_each(JoinHandle::abort);
    }
}

impl Netlink {
    /// Connects and subscribes. What changes from now on is not missed.
    pub(super) fn connect() -> Result<Self, NodeError> {
        // kernel: a notification carries the sequence number of the request that caused it, whoever made that. On a socket
        // that also asks, one may pass for an answer: it is lost then, and the question ends too early.
        let (mut listening, _, notices) = new_multicast_connection(&GROUPS).map_err(NodeError::Connect)?;
        listening.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER).map_err(NodeError::Connect)?;
        let (asking, handle, _) = new_connection().map_err(NodeError::Connect)?;
        Ok(Self { handle, notices: Box::pin(notices), connections: [tokio::spawn(listening), tokio::spawn(asking)] })
    }

    /// For questions that are asked once.
    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The next notification; cancel safe.
    pub(super) async fn notice(&mut self) -> Result<Notice, NodeError> {
        let closed = || NodeError::Connect(io::Error::from(io::ErrorKind::ConnectionAborted));
        self.notices.next().await.map(|(message, _)| notice(message)).ok_or_else(closed)
    }

    /// A notification that is already there.
    pub(super) fn waiting_notice(&mut self) -> Option<Notice> {
        self.notices.next().now_or_never().flatten().map(|(message, _)| notice(message))
    }

    /// Asks the kernel for everything.
    pub(super) fn dump(&self) -> impl Future<Output = Result<State, NodeError>> + Send + use<> {
        dump(self.handle.clone())
    }

    /// As if the kernel had broken it off.
    #[cfg(test)]
    pub(super) fn break_off(&self) {
        self.connections.iter().for_each(JoinHandle::abort);
    }

    /// Makes the kernel ask for an address, as if it had a packet for it. It answers by notification.
    pub(super) fn probe(&mut self, probe: Probe) -> Result<(), NodeError> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = probe.ifindex;
        let destination = match probe.address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(address)
            }
            IpAddr::V6(address) => {
                message.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(address)
            }
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        if probe.forget {
            self.send(RouteNetlinkMessage::DelNeighbour(message.clone()), 0)?;
        }
        // kernel: NTF_USE does what a packet to the address would do, and needs no MAC address.
        message.header.flags = NeighbourFlags::Use;
        self.send(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NodeError> {
        let mut request = NetlinkMessage::from(message);
        // With an acknowledgement, or the library would wait for an answer for ever.
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        self.handle.notify(request).map_err(|source| NodeError::Dump { what: "an address", source })
    }
}

async fn dump(handle: Handle) -> Result<State, NodeError> {
    let mut state = State::default();
    collect(&mut state, "links", handle.link().get().execute(), link).await?;
    collect(&mut state, "addresses", handle.address().get().execute(), |message| {
        own_address(message).map(|(ifindex, address)| Update::Address(ifindex, address))
    })
    .await?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family;
        collect(&mut state, "routes", handle.route().get(wanted).execute(), |message| {
            host_route(message).map(|(ifindex, address)| Update::HostRoute(ifindex, address))
        })
        .await?;
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        let entries = handle.neighbours().get().set_address_family(family).execute();
        collect(&mut state, "neighbours", entries, neighbour).await?;
    }
    Ok(state)
}

async fn collect<M>(
    state: &mut State,
    what: &'static str,
    messages: impl Stream<Item = Result<M, Error>>,
    decode: impl Fn(M) -> Option<Update>,
) -> Result<(), NodeError> {
    let mut messages = std::pin::pin!(messages);
    while let Some(message) = messages.next().await {
        if let Some(update) = decode(message.map_err(|source| NodeError::Dump { what, source })?) {
            state.apply(update);
        }
    }
    Ok(())
}

fn notice(message: NetlinkMessage<RouteNetlinkMessage>) -> Notice {
    let inner = match message.payload {
        NetlinkPayload::InnerMessage(inner) => inner,
        NetlinkPayload::Overrun(_) => return Notice::Lost,
        // Answers to questions about an interface that is gone meanwhile.
        _ => return Notice::Nothing,
    };
    let update = match inner {
        RouteNetlinkMessage::NewLink(message) => link(message),
        RouteNetlinkMessage::DelLink(message) => link_gone(&message),
        RouteNetlinkMessage::NewAddress(message) => {
            own_address(message).map(|(ifindex, address)| Update::Address(ifindex, address))
        }
        RouteNetlinkMessage::DelAddress(message) => {
            own_address(message).map(|(ifindex, address)| Update::AddressGone(ifindex, address))
        }
        RouteNetlinkMessage::NewRoute(message) => {
            host_route(message).map(|(ifindex, address)| Update::HostRoute(ifindex, address))
        }
        RouteNetlinkMessage::DelRoute(message) => {
            host_route(message).map(|(ifindex, address)| Update::HostRouteGone(ifindex, address))
        }
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(message).map(gone),
        _ => None,
    };
    update.map_or(Notice::Nothing, Notice::Update)
}

fn link(message: LinkMessage) -> Option<Update> {
    // Bridges tell of their ports in messages of their own, which lack what matters here.
    if message.header.interface_family == AddressFamily::Bridge {
        return None;
    }
    let (mut name, mut kind, mut elsewhere, mut peer) = (None, LinkKind::Other, false, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Link(index) => peer = Some(index),
            LinkAttribute::LinkInfo(details) => {
                for detail in details {
                    match detail {
                        LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::VethToElsewhere,
                        LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if let (LinkKind::VethToElsewhere, false, Some(peer)) = (kind, elsewhere, peer) {
        kind = LinkKind::VethToHere(peer);
    }
    if message.header.flags.contains(LinkFlags::Loopback) {
        kind = LinkKind::Loopback;
    }
    let carrier = message.header.flags.contains(LinkFlags::LowerUp);
    let has_link_header = message.header.link_layer_type == LinkLayerType::Ether;
    Some(Update::Link(message.header.index, Link { name: name?, kind, carrier, has_link_header }))
}

fn link_gone(message: &LinkMessage) -> Option<Update> {
    // Sent also when a port leaves its bridge.
    let port = message.header.interface_family == AddressFamily::Bridge;
    (!port).then_some(Update::LinkGone(message.header.index))
}

fn own_address(message: AddressMessage) -> Option<(u32, IpNet)> {
    // The address turned out to be somebody else's.
    if message.header.flags.contains(AddressHeaderFlags::Dadfailed) {
        return None;
    }
    let (mut address, mut local) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Address(found) => address = Some(found),
            AddressAttribute::Local(found) => local = Some(found),
            _ => {}
        }
    }
    // kernel: on a point-to-point link the first is the peer's.
    let own = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((message.header.index, own))
}

fn host_route(message: RouteMessage) -> Option<(u32, IpAddr)> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut destination, mut interface) = (None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(IpAddr::V4(address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = Some(IpAddr::V6(address)),
            RouteAttribute::Oif(ifindex) => interface = Some(ifindex),
            // Through a gateway it is not behind the interface.
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    let (destination, interface) = (destination?, interface?);
    let whole = if destination.is_ipv4() { 32 } else { 128 };
    (message.header.destination_prefix_length == whole).then_some((interface, destination))
}

fn neighbour(message: NeighbourMessage) -> Option<Update> {
    let (mut address, mut mac, mut bridge) = (None, None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::V4(found)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::V6(found)),
            NeighbourAttribute::LinkLayerAddress(found) => mac = Mac::try_from(found).ok(),
            NeighbourAttribute::Controller(found) => bridge = Some(found),
            _ => {}
        }
    }
    let ifindex = message.header.ifindex;
    if message.header.family == AddressFamily::Bridge {
        // Permanent ones are the bridge's and its ports' own addresses.
        let learned = message.header.state != NeighbourState::Permanent;
        return learned.then_some(Update::Forwarding(bridge?, mac?, ifindex));
    }
    let neighbour = match (message.header.state, mac) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (NeighbourState::Incomplete | NeighbourState::None, _) | (_, None) => Neighbour::Pending,
        (_, Some(mac)) => Neighbour::Known(mac),
    };
    Some(Update::Neighbour(ifindex, address?, neighbour))
}

fn gone(update: Update) -> Update {
    match update {
        Update::Neighbour(ifindex, address, _) => Update::NeighbourGone(ifindex, address),
        Update::Forwarding(bridge, mac, port) => Update::ForwardingGone(bridge, mac, port),
        other => other,
    }
}
