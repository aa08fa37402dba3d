//! The clsact qdisc and its BPF filters over a netlink socket of their own: what `attach` uses where the kernel has no
//! TCX. Ours is the filter with our priority, our handle and our name; everything else is left alone.
//!
//! Calls block for one round trip to the kernel and act in the network namespace of the calling thread.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has attributes by the dozen and grows new ones; what is not read is of no interest"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netpol_common::abi::Hook;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Priority of our filters: the first, so that no other filter can let a packet go before policy has seen it.
const PRIORITY: u16 = 1;
/// Handle of our filter within the priority, which several programs may share ("np" and, where two of ours meet while an
/// interface changes its role, the number after it).
const fn handle(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::FromPod | Hook::ToPod => 0x6e70,
        Hook::ToUplink => 0x6e71,
    };
    TcHandle { major: 0, minor }
}

/// `ETH_P_ALL`, in network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// What is at our priority and handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Nothing.
    Absent,
    /// Our filter.
    Ours {
        /// The program that it runs.
        program: u32,
    },
    /// Somebody else's.
    Foreign,
}

const fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::FromPod => TcHandle::MIN_INGRESS,
        Hook::ToPod | Hook::ToUplink => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

/// Name of our filter, as `tc filter show` prints it.
const fn filter_name(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => "netpol_from_pod",
        Hook::ToPod => "netpol_to_pod",
        Hook::ToUplink => "netpol_to_uplink",
    }
}

fn message(ifindex: u32) -> io::Result<TcMessage> {
    Ok(TcMessage::with_index(i32::try_from(ifindex).map_err(io::Error::other)?))
}

fn qdisc(ifindex: u32) -> io::Result<TcMessage> {
    let mut message = message(ifindex)?;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    Ok(message)
}

fn filter(ifindex: u32, hook: Hook) -> io::Result<TcMessage> {
    let mut message = message(ifindex)?;
    message.header.parent = parent(hook);
    message.header.handle = handle(hook);
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    Ok(message)
}

/// What came of [`add_clsact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It was not there before.
    New,
    /// It was there.
    Present,
    /// The ingress qdisc is in its place.
    // kernel: takes filters for egress too, and runs them at ingress (net/sched/sch_ingress.c, ingress_tcf_block).
    Blocked,
}

/// Adds the clsact qdisc.
pub(super) fn add_clsact(ifindex: u32) -> io::Result<Added> {
    let add = RouteNetlinkMessage::NewQueueDiscipline(qdisc(ifindex)?);
    match request(add, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(Added::New),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            Ok(if is_clsact(ifindex)? { Added::Present } else { Added::Blocked })
        }
        Err(error) => Err(error),
    }
}

/// True if the qdisc at the hooks of an interface is clsact.
fn is_clsact(ifindex: u32) -> io::Result<bool> {
    let asked = message(ifindex)?;
    let index = asked.header.index;
    let found = request(RouteNetlinkMessage::GetQueueDiscipline(asked), NLM_F_DUMP)?;
    Ok(found.iter().any(|reply| match reply {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            qdisc.header.index == index && qdisc.attributes.contains(&TcAttribute::Kind("clsact".to_owned()))
        }
        _ => false,
    }))
}

/// Removes the clsact qdisc with every filter in it.
pub(super) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    request(RouteNetlinkMessage::DelQueueDiscipline(qdisc(ifindex)?), NLM_F_ACK).map(drop)
}

/// Makes our filter at `hook` run `program`, in one step if it is there already.
pub(super) fn set_filter(ifindex: u32, hook: Hook, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = filter(ifindex, hook)?;
    let fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(fd)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(filter_name(hook).to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_ACK | NLM_F_CREATE).map(drop)
}

/// Removes whatever is at our priority and handle; ask [`own_filter`] first.
pub(super) fn remove_filter(ifindex: u32, hook: Hook) -> io::Result<()> {
    request(RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, hook)?), NLM_F_ACK).map(drop)
}

/// What is at our priority and handle.
pub(super) fn own_filter(ifindex: u32, hook: Hook) -> io::Result<Filter> {
    let ours = filters(ifindex, hook)?
        .into_iter()
        .find(|found| found.header.handle == handle(hook) && found.header.info >> 16 == u32::from(PRIORITY));
    Ok(ours.map_or(Filter::Absent, |found| classify(&found, hook)))
}

/// Number of filters at a hook, ours included.
pub(super) fn count_filters(ifindex: u32, hook: Hook) -> io::Result<usize> {
    // kernel: each priority is also listed once by itself, with handle 0.
    Ok(filters(ifindex, hook)?.iter().filter(|found| found.header.handle != TcHandle::UNSPEC).count())
}

fn classify(found: &TcMessage, hook: Hook) -> Filter {
    let options = found.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let (mut named, mut program) = (false, 0);
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => named = name == filter_name(hook),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = *id,
            _ => {}
        }
    }
    if named { Filter::Ours { program } } else { Filter::Foreign }
}

fn filters(ifindex: u32, hook: Hook) -> io::Result<Vec<TcMessage>> {
    let mut dump = message(ifindex)?;
    dump.header.parent = parent(hook);
    let replies = request(RouteNetlinkMessage::GetTrafficFilter(dump), NLM_F_DUMP)?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
            _ => None,
        })
        .collect())
}

/// Sends one request and collects the kernel's answers up to its acknowledgement or the end of the dump.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => match error.code {
                    Some(_) => return Err(error.to_io()),
                    None => return Ok(answers),
                },
                NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                _ => {}
            }
            // Messages are aligned to four bytes within a datagram.
            let length = usize::try_from(answer.header.length).map_err(io::Error::other)?.max(1).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
