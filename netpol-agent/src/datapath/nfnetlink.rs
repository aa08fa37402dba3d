//! Netlink messages of netfilter's subsystems (nf_tables, conntrack), as bytes: requests to write, messages and attributes to
//! read, and the socket that carries them. It knows no subsystem's meaning.
//!
//! The netlink crates in use have no nf_tables. Numbers are those of include/uapi/linux/netfilter/nfnetlink.h, which never
//! change; integers of netfilter are in network order but for what is compared with the kernel's own words.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NETLINK_HEADER: usize = 16;
/// Bytes between netlink's header and the attributes.
const NETFILTER_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// Set on an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
/// What is left of an attribute's kind without its flags.
const KIND: u16 = 0x3fff;

const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 4;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what is listed changed meanwhile.
const INTERRUPTED: u16 = 0x10;

/// A socket that speaks to netfilter. It acts in the network namespace of the calling thread.
pub(crate) fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Attributes that grow at the end of a message.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// An attribute of plain bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.0.extend_from_slice(value));
    }

    /// A string, with the zero behind it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.0.extend_from_slice(value.as_bytes());
            writer.0.push(0);
        });
    }

    /// 32 bits in network order.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// 64 bits in network order.
    pub(crate) fn long(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Attributes within an attribute.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        // Callers keep what they nest far below 64 KiB; the kernel refuses a length that lies.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// The bytes written so far.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    /// One message: netlink header, nfnetlink header, attributes.
    pub(crate) fn message(&mut self, head: Head, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&head.kind.to_ne_bytes());
        self.0.extend_from_slice(&(REQUEST | head.flags).to_ne_bytes());
        self.0.extend_from_slice(&head.sequence.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&[head.family, 0]);
        self.0.extend_from_slice(&head.resource.to_be_bytes());
        fill(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
    }
}

/// What stands before a message's attributes.
pub(crate) struct Head {
    /// Subsystem and message.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) family: u8,
    pub(crate) resource: u16,
}

/// One message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// The message of this number was carried out (0), or refused with this error number.
    Result {
        /// Number of the message.
        sequence: u32,
        /// 0, or an error number.
        error: i32,
    },
    /// The end of a list. Errors on the way to it have a number of their own.
    Done {
        /// 0, or an error number.
        error: i32,
    },
    /// Attributes of one object.
    Object {
        /// The attributes.
        attributes: Attributes<'a>,
        /// The list that it belongs to changed while it was made.
        interrupted: bool,
    },
}

/// The messages of one datagram; what is cut short ends them.
pub(crate) fn answers(mut datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let number = |body: &[u8], missing: i32| {
        body.first_chunk().map_or(missing, |bytes| i32::from_ne_bytes(*bytes).wrapping_neg())
    };
    std::iter::from_fn(move || {
        let Received { length, kind, flags, sequence } = header(datagram)?;
        let body = datagram.get(NETLINK_HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match kind {
            ERROR => Answer::Result { sequence, error: number(body, libc::EPROTO) },
            DONE => Answer::Done { error: number(body, 0) },
            _ => Answer::Object {
                attributes: Attributes(body.get(NETFILTER_HEADER..).unwrap_or_default()),
                interrupted: flags & INTERRUPTED != 0,
            },
        })
    })
}

/// What stands before a message of the kernel.
struct Received {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn header(bytes: &[u8]) -> Option<Received> {
    let [a, b, c, d, e, f, g, h, w, x, y, z, ..] = *bytes else { return None };
    let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
    (length >= NETLINK_HEADER).then_some(Received {
        length,
        kind: u16::from_ne_bytes([e, f]),
        flags: u16::from_ne_bytes([g, h]),
        sequence: u32::from_ne_bytes([w, x, y, z]),
    })
}

/// Attributes to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Every attribute: its kind and what is in it.
    pub(crate) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let [a, b, c, d, ..] = *rest else { return None };
            let length = usize::from(u16::from_ne_bytes([a, b]));
            let value = rest.get(ATTRIBUTE_HEADER..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((u16::from_ne_bytes([c, d]) & KIND, value))
        })
    }

    /// The first attribute of a kind.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes in the first attribute of a kind.
    pub(crate) fn nested(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }

    /// The attributes in every attribute here.
    pub(crate) fn each(self) -> impl Iterator<Item = Self> {
        self.all().map(|(_, value)| Self(value))
    }

    /// True if the attribute of this kind is this string.
    pub(crate) fn is_text(self, kind: u16, text: &str) -> bool {
        self.get(kind).and_then(|value| value.strip_suffix(&[0])) == Some(text.as_bytes())
    }

    /// So many bytes, or what begins with them.
    pub(crate) fn fixed<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)?.first_chunk().copied()
    }

    /// 64 bits in network order.
    pub(crate) fn long(self, kind: u16) -> Option<u64> {
        self.fixed(kind).map(u64::from_be_bytes)
    }
}

#[cfg(test)]
impl Writer {
    /// What was written, to be read back.
    pub(crate) fn read(&self) -> Attributes<'_> {
        Attributes(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_read_back_as_written() {
        let mut writer = Writer::default();
        writer.text(1, "netpol");
        writer.nested(2, |inner| {
            inner.long(3, 7);
            inner.bytes(4, &[1, 2, 3]);
        });
        writer.number(5, 9);
        assert_eq!(writer.0.len() % 4, 0);
        let read = Attributes(&writer.0);
        assert!(read.is_text(1, "netpol") && !read.is_text(1, "netpo") && !read.is_text(5, "netpol"));
        assert_eq!(read.nested(2).long(3), Some(7));
        assert_eq!(read.nested(2).get(4), Some(&[1, 2, 3][..]));
        assert_eq!(read.fixed(5), Some(9_u32.to_be_bytes()));
        assert_eq!(read.fixed::<8>(5), None);
        assert_eq!(read.all().map(|(kind, _)| kind).collect::<Vec<_>>(), [1, 2, 5]);
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let mut writer = Writer::default();
        writer.long(1, 1);
        writer.long(2, 2);
        for length in 0..writer.0.len() {
            let found = Attributes(&writer.0[..length]).all().count();
            assert_eq!(found, usize::from(length >= 12), "{length}");
        }
        let mut writer = Writer::default();
        writer.message(Head { kind: 16, flags: 0, sequence: 0, family: 0, resource: 10 }, |_| {});
        let bytes = writer.finish();
        assert_eq!(answers(&bytes[..20]).count(), 1);
        assert_eq!(answers(&bytes[..19]).count(), 0);
        assert_eq!(answers(&[0; 64]).count(), 0);
    }
}
